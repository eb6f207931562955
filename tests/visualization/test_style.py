"""One look: a method's colour and marker, curves of one method, and plotly's renderer."""

import os
import subprocess
import sys

import pytest

from acertlab import visualization as plots
from acertlab.training.methods.catalogue import METHODS
from acertlab.visualization.style import CONFIG, PALETTE, TEMPLATE, dashes, eps_axis, faded


def test_methods_differ_in_colour_and_marker():
    styles = [plots.method_style(method)[1:] for method in METHODS]
    assert len(set(styles)) == len(styles)
    assert len({symbol for _, symbol in styles}) == len(styles)
    assert plots.method_style("mine")[0] == "mine"


def test_mine_beside_others_have_the_colour_and_an_open_marker():
    _, colour, marker = plots.method_style("acert")
    assert plots.method_style("ACERT (mine)") == ("ACERT (mine)", colour, f"{marker}-open")
    assert plots.method_style("other (mine)") == ("other (mine)", plots.GREY, "circle-open")


@pytest.mark.parametrize(
    ("end", "texts"),
    [
        (8 / 255, "0 2/255 4/255 6/255 8/255"),
        (11 / 255, "0 2/255 4/255 6/255 8/255 10/255"),
        (4.4 / 255, "0 1/255 2/255 3/255 4/255"),
        (0.5 / 255, "0 0.1/255 0.2/255 0.3/255 0.4/255 0.5/255"),
        (0.2, "0 0.05 0.1 0.15 0.2"),
        (0.4, "0 0.1 0.2 0.3 0.4"),
    ],
)
def test_ticks_of_eps_are_round(end, texts):
    axis = eps_axis(end)
    assert axis["ticktext"] == texts.split()
    values = [float(text.removesuffix("/255")) / (255 if "/" in text else 1) for text in axis["ticktext"]]
    assert axis["tickvals"] == pytest.approx(values)
    assert axis["range"][1] >= axis["tickvals"][-1]


def test_plotlys_toolbar_covers_no_title_and_has_no_logo():
    assert TEMPLATE.layout.modebar.orientation == "v"  # in the margin at the right
    assert CONFIG == {"displaylogo": False}  # and it comes with the mouse, by plotly's default


def test_every_colour_of_a_method_is_in_the_palette():
    assert {method.colour for method in METHODS.values()} <= PALETTE.keys()


def test_curves_of_one_method_differ_in_dash():
    assert list(dashes(["a", "b", "a", "a", "a", "a", "b"])) == [
        "solid",
        "solid",
        "dash",
        "dot",
        "dashdot",
        "solid",
        "dash",
    ]


def test_faded():
    assert faded(plots.GREEN, 0.22) == "rgba(0, 158, 115, 0.22)"


LOADED = (
    "import sys; print(*(name for name in ('nbformat', 'jsonschema', 'plotly.io._renderers') if name in sys.modules))"
)


def printed(code, **environment):
    """What a fresh interpreter prints."""
    environment = {k: v for k, v in os.environ.items() if k != "PLOTLY_RENDERER"} | environment
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_an_import_outside_a_kernel_loads_no_renderers():
    """They load nbformat, whose grammars take seconds."""
    assert printed("import acertlab.visualization.pages.report, acertlab.visualization.widgets\n" + LOADED) == ""


RENDERERS = [
    ({}, "plotly_mimetype+notebook_connected"),
    ({"PLOTLY_RENDERER": "png"}, "png"),
    ({"VSCODE_PID": "1"}, "vscode"),
]
KERNELS = f"""
import os
from ipykernel.zmqshell import ZMQInteractiveShell
ZMQInteractiveShell.instance()
for environment, _ in {RENDERERS}:
    if not os.fork():  # what a kernel has loaded takes longer than all the rest
        os.environ.update(environment)
        import acertlab.visualization.style, plotly.io
        print(plotly.io.renderers.default, flush=True)
        os._exit(0)
    os.wait()
"""


def test_figures_in_a_kernel_are_html_too_where_nothing_else_is_asked_for():
    assert printed(KERNELS).split() == [renderer for _, renderer in RENDERERS]
