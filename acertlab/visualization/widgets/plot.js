// Draws `spec`, a plotly figure, as wide as its room, and tells which point was clicked. One plotly.js does for a page:
// JupyterLab's own, once it has shown any figure; else the kernel is asked for it, once.
function plotly(model) {
    globalThis.acertlabPlotly ??= new Promise(resolve => {
        const look = waited => window.Plotly ? resolve(window.Plotly) :
            (waited === 5 && model.send("plotly"), setTimeout(look, 100, waited + 1));
        model.on("msg:custom", async (_, [compressed]) => {
            const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("gzip"));
            const text = await new Response(stream).text();
            if (!window.Plotly) await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
        });
        look(0);
    });
    return globalThis.acertlabPlotly;
}

function render({ model, el }) {
    const figure = el.appendChild(document.createElement("div"));
    let drawn = Promise.resolve(), listens = false;
    const draw = () => {
        drawn = drawn.then(async () => {
            const Plotly = await plotly(model), width = el.clientWidth;
            if (width === 0) return; // in a tab that is not shown
            const { data, layout } = structuredClone(model.get("spec"));
            Object.assign(layout, { width, uirevision: true, paper_bgcolor: "#0000", plot_bgcolor: "#0000" });
            await Plotly.react(figure, data, layout, model.get("config"));
            if (listens) return;
            listens = true;
            figure.on("plotly_click", ({ points: [{ curveNumber, pointNumber }] }) => {
                model.set("clicked", [curveNumber, pointNumber]);
                model.save_changes();
            });
        });
    };
    const room = new ResizeObserver(draw);
    room.observe(el);
    model.on("change:spec", draw);
    return () => {
        room.disconnect();
        model.off("change:spec", draw);
        window.Plotly?.purge(figure);
    };
}

export default { render };
