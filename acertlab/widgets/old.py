"""Sliders around the figures of `plots`: every change calls a plain function, and its figure's data replace the old.

The widgets keep no state of their own; what they show at any position of the sliders is what `radii_near`,
`scores_at` and `certificate_at` compute and the functions of `plots` draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from acertlab import metrics, plots
from acertlab.box import Box
from acertlab.interval import propagate
from acertlab.margin import certified_margin
from acertlab.radius import certified_radius
from acertlab.runs import load_radii, load_runs, rescore

# ---- the tradeoff of many runs


@dataclass(frozen=True)
class Curve:
    """The radii of one method at one kappa, its seeds pooled."""

    method: str
    kappa: float
    radii: np.ndarray


def radii_near(runs: pd.DataFrame, radii: Mapping[str, np.ndarray], kappa: float) -> dict[str, Curve]:
    """Every method's radii at its kappa nearest to the given one, by the name that figures show.

    Args:
        runs: A row a run.
        radii: `load_radii(runs)`.
        kappa: Share of the clean loss; of two kappa equally near, the smaller counts.
    """
    curves = {}
    for method in metrics.mean_over_seeds(runs).method.unique():
        of_method = runs[runs.method == method]
        nearest = min(of_method.kappa.unique(), key=lambda k: (abs(k - kappa), k))
        paths = of_method.path[of_method.kappa == nearest]
        name = f"{plots.method_style(method)[0]}, kappa = {nearest:g}"
        curves[name] = Curve(method, float(nearest), np.concatenate([radii[path] for path in paths]))
    return curves


def scores_at(
    runs: pd.DataFrame, radii: Mapping[str, np.ndarray], kappa: float, eps_max: float, eps: float
) -> pd.DataFrame:
    """Acc, ACR, ART and the certified accuracy at eps, in percent: a row a method, at its kappa nearest to `kappa`."""
    table = metrics.mean_over_seeds(rescore(runs, radii, eps_max)).set_index(["method", "kappa"])
    rows = []
    for curve in radii_near(runs, radii, kappa).values():
        scores = table.loc[(curve.method, curve.kappa)]
        certified = float(metrics.certified_accuracy(curve.radii, np.array([eps]))[0])
        percent = {"Acc": scores.acc, "ACR": scores.acr, "ART": scores.art, f"certified at {eps:.4g}": certified}
        label = {"method": plots.method_style(curve.method)[0], "kappa": curve.kappa}
        rows.append(label | {name: 100 * value for name, value in percent.items()})
    return pd.DataFrame(rows)


def pareto_figures(
    runs: pd.DataFrame, radii: Mapping[str, np.ndarray], kappa: float, eps_max: float, eps: float
) -> tuple[go.Figure, go.Figure]:
    """What `pareto_explorer` draws at one position of its sliders: the tradeoff, and the certified accuracies."""
    curves = radii_near(runs, radii, kappa)
    span = (max(runs.acc.min() - 0.05, 0.0), min(runs.acc.max() + 0.05, 1.0)), (0.0, 1.0)  # stays as eps_max moves
    methods = {name: curve.method for name, curve in curves.items()}
    return (
        plots.tradeoff(rescore(runs, radii, eps_max), kappa=kappa, span=span),
        plots.certified_accuracy_curves({n: c.radii for n, c in curves.items()}, eps_max, methods=methods, eps=eps),
    )


def pareto_explorer(
    runs: pd.DataFrame | str | Path, eps_max: float | None = None, kappa: float | None = None
) -> ipw.VBox:
    """Fig. 1 and Fig. 3 under three sliders: eps_max, kappa and eps; ACR and ART are recomputed from the stored radii.

    Args:
        runs: A row a run, of one dataset and trained for one eps_max; or the folder that holds the runs.
        eps_max: Where its slider starts; None: what the runs were trained for.
        kappa: Where its slider starts, or near it; None: the smallest.

    Returns:
        A box of (the three sliders), the numbers, the two figures.

    Raises:
        ValueError: No finished run, or runs of several datasets or trained eps_max.
    """
    runs = runs if isinstance(runs, pd.DataFrame) else load_runs(runs)
    if runs.empty:
        raise ValueError("runs: there is no finished run to explore; train some first")
    radii = load_radii(runs)
    cap, start = float(runs.radius_cap.min()), float(eps_max or runs.eps_max.iloc[0])
    kappas = sorted(float(k) for k in runs.kappa.unique())
    nearest = min(kappas, key=lambda k: abs(k - (kappa if kappa is not None else kappas[0])))
    sliders = (
        _slider("largest radius that counts, eps_max", start, cap / 100, cap),
        ipw.SelectionSlider(description="share of the clean loss, kappa", options=[(f"{k:g}", k) for k in kappas],
                            value=nearest, continuous_update=False, **WIDE),
        _slider("certified at radius eps", start / 2, 0.0, cap),
    )  # fmt: skip

    def draw(eps_max: float, kappa: float, eps: float) -> tuple[str, Sequence[go.Figure]]:
        eps = min(eps, eps_max)
        return _html(scores_at(runs, radii, kappa, eps_max, eps)), pareto_figures(runs, radii, kappa, eps_max, eps)

    return _explorer(sliders, draw)


# ---- the certificate of one image


@dataclass(frozen=True)
class Certificate:
    """What IBP proves of one image at one eps.

    Attributes:
        logits: Bounds of the logits, (1, C).
        margin: R_cert with the last layer merged, which decides: < 0 is certified.
        margin_eq3: R_cert by Eq. (3), from the bounds of the logits; never smaller.
    """

    logits: Box
    margin: float
    margin_eq3: float

    @property
    def sentence(self) -> str:
        verdict = "certified" if self.margin < 0 else "certificate broken"
        looser = self.margin < 0 <= self.margin_eq3
        note = "; the intervals of the logits alone (Eq. 3) would not prove it" if looser else ""
        return f"R_cert = {self.margin:.4g}, by Eq. (3) {self.margin_eq3:.4g}: {verdict}{note}"


def certificate_at(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Certificate:
    """The certificate of one image.

    Args:
        model: In evaluation mode.
        x: (1, C, H, W) the image, pixel units.
        y: (1,) its label.
        eps: Radius of the box, pixel units.
    """
    with torch.no_grad():
        logits = propagate(model, Box.around(x, eps))
        merged, eq3 = (float(certified_margin(model, x, y, eps, merged=merged)) for merged in (True, False))
    return Certificate(logits, merged, eq3)


def margins_over(model: nn.Module, x: Tensor, y: Tensor, eps: np.ndarray) -> np.ndarray:
    """R_cert of one image (1, C, H, W) at every eps (M,), in one pass: (M,)."""
    several = (len(eps), *(-1,) * (x.dim() - 1))
    radii = torch.as_tensor(eps, dtype=x.dtype, device=x.device)
    with torch.no_grad():
        return certified_margin(model, x.expand(several), y.expand(len(eps)), radii).cpu().numpy()


def radius_figures(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    eps_max: float,
    radius: float,
    classes: Sequence[str] | None = None,
) -> tuple[go.Figure, go.Figure, go.Figure]:
    """What `radius_explorer` draws at one position of its sliders: the box, the logits' intervals, the margin's curve.

    Args:
        model: In evaluation mode.
        x: (1, C, H, W) the image, pixel units.
        y: (1,) its label.
        eps, eps_max: Radius of the box, and the end of the curve.
        radius: Its certified radius.
        classes: The classes' names.
    """
    certificate, box = certificate_at(model, x, y, eps), Box.around(x, eps)
    grid = np.linspace(0.0, eps_max, 81)
    images = torch.cat([box.lower, x, box.upper]).cpu()
    lower, upper = (bound[0].cpu() for bound in (certificate.logits.lower, certificate.logits.upper))
    return (
        plots.image_grid(images, ["darkest in the box", "the image", "brightest in the box"], columns=3),
        plots.logit_intervals(lower, upper, int(y), classes),
        plots.margin_curve(grid, margins_over(model, x, y, grid), radius=radius, current=(eps, certificate.margin)),
    )


def radius_explorer(
    model: nn.Module, x: Tensor, y: Tensor, eps_max: float, classes: Sequence[str] | None = None
) -> ipw.VBox:
    """Choose an image and a radius: its box, the intervals of the logits, the margin, and whether it is certified.

    Args:
        model: In evaluation mode, (B, C, H, W) -> (B, classes).
        x: (B, C, H, W) images, pixel units, in [0, 1].
        y: (B,) labels.
        eps_max: The largest radius.
        classes: The classes' names.

    Returns:
        A box of (the two sliders), the verdict, the three figures.
    """
    radii = certified_radius(model, x, y, eps_max).radius.tolist()
    image = ipw.IntSlider(description="image", value=0, min=0, max=len(x) - 1, continuous_update=False, **WIDE)
    eps = _slider("radius of the box, eps", radii[0], 0.0, eps_max)

    def draw(image: int, eps: float) -> tuple[str, Sequence[go.Figure]]:
        one = slice(image, image + 1)
        figures = radius_figures(model, x[one], y[one], eps, eps_max, radii[image], classes)
        return f"<b>{certificate_at(model, x[one], y[one], eps).sentence}</b>", figures

    return _explorer((image, eps), draw)


# ---- common to both

WIDE = {"layout": ipw.Layout(width="640px"), "style": {"description_width": "240px"}}


def _slider(description: str, value: float, low: float, high: float) -> ipw.FloatSlider:
    return ipw.FloatSlider(description=description, value=value, min=low, max=high, step=(high - low) / 200,
                           readout_format=".4f", continuous_update=False, **WIDE)  # fmt: skip


def _explorer(sliders: Sequence[ipw.Widget], draw: Callable[..., tuple[str, Sequence[go.Figure]]]) -> ipw.VBox:
    """The sliders over a text and figures; `draw` turns the sliders' values into both."""
    text, figures = draw(*(slider.value for slider in sliders))
    label, live = ipw.HTML(text), [go.FigureWidget(figure) for figure in figures]

    def redraw(_change: dict) -> None:
        label.value, figures = draw(*(slider.value for slider in sliders))
        for shown, figure in zip(live, figures, strict=True):
            _replace(shown, figure)

    for slider in sliders:
        slider.observe(redraw, names="value")
    return ipw.VBox([ipw.VBox(list(sliders)), label, *live])


def _replace(shown: go.FigureWidget, figure: go.Figure) -> None:
    """What differs in one figure's traces and layout into those of another that has as many traces."""
    with shown.batch_update():
        for old, new in zip((*shown.data, shown.layout), (*figure.data, figure.layout), strict=True):
            before, after = old.to_plotly_json(), new.to_plotly_json()
            for name in after.keys() - {"template"}:
                if not _equal(before.get(name), after[name]):
                    old[name] = after[name]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    return np.array_equal(a, b)


def _html(table: pd.DataFrame) -> str:
    return table.to_html(index=False, border=0, float_format=lambda value: f"{value:.4g}", justify="right")
