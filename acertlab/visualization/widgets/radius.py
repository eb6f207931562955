"""One image's certificate under two sliders: the box, the intervals of the logits, the margin, and where it breaks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from acertlab.bounds.box import Box
from acertlab.bounds.ibp import propagate
from acertlab.bounds.margin import certified_margin
from acertlab.data.datasets import ImageData, to_float
from acertlab.radius.certified import certified_radius
from acertlab.radius.search import RadiusStatus
from acertlab.training.presets import preset
from acertlab.visualization.radius import image_grid, logit_intervals, margin_curve
from acertlab.visualization.widgets.components import WIDE, Explorer, Part, follow, side_by_side, slider

GRID = 81  # eps of the margin's curve
NARROW = {"height": 430, "margin_t": 135, "legend_font_size": 11}  # room for the legend where two share the width


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


# ---- figures
def radius_figures(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    eps_max: float,
    radius: float,
    classes: Sequence[str] | None = None,
) -> dict[str, go.Figure]:
    """What `radius_explorer` draws at one position of its sliders.

    Args:
        model: In evaluation mode.
        x: (1, C, H, W) the image, pixel units.
        y: (1,) its label.
        eps, eps_max: Radius of the box, and the end of the curve.
        radius: Its certified radius.
        classes: The classes' names.

    Returns:
        "box", the ends of the box beside the image; "logits", their intervals; "margin", its curve over eps.
    """
    grid = np.linspace(0.0, eps_max, GRID)
    certificate = certificate_at(model, x, y, eps)
    return {
        "box": _box(x, eps),
        "logits": _logits(certificate, int(y), classes),
        "margin": _margin(grid, margins_over(model, x, y, grid), radius, eps, certificate),
    }


def _box(x: Tensor, eps: float) -> go.Figure:
    box = Box.around(x, eps)
    titles = ["darkest in the box", "the image", "brightest in the box"]
    return image_grid(torch.cat([box.lower, x, box.upper]).cpu(), titles, columns=3)


def _logits(certificate: Certificate, y: int, classes: Sequence[str] | None) -> go.Figure:
    lower, upper = (bound[0].cpu() for bound in (certificate.logits.lower, certificate.logits.upper))
    figure = logit_intervals(lower, upper, y, classes)
    title = f"Intervals of the logits: Eq. (3) gives {certificate.margin_eq3:.3g}"
    return figure.update_layout(title_text=title, **NARROW)


def _margin(grid: np.ndarray, margins: np.ndarray, radius: float, eps: float, certificate: Certificate) -> go.Figure:
    figure = margin_curve(grid, margins, radius=radius, current=(eps, certificate.margin))
    return figure.update_layout(title_text="The certified margin", **NARROW)


# ---- live
def radius_explorer(
    model: nn.Module,
    data: ImageData | tuple[Tensor, Tensor],
    eps_max: float | None = None,
    *,
    images: int = 200,
    classes: Sequence[str] | None = None,
) -> Explorer:
    """Choose an image and a radius: its box, the intervals of the logits, the margin, and whether it is certified.

    Args:
        model: In evaluation mode, (B, C, H, W) -> (B, classes).
        data: A dataset, of which test images are shown; or images (B, C, H, W) in [0, 1], with their labels (B,).
        eps_max: The largest radius, pixel units; None: that of the dataset's preset.
        images: How many to choose from, at most: the first ones.
        classes: The classes' names; None: the dataset's, or their numbers.

    Returns:
        A box of the two sliders and two buttons, the verdict and the figures; `.controls` and `.parts` have them by
        name.

    Raises:
        ValueError: No images, or no eps_max for images that come without a dataset's name.
    """
    if isinstance(data, ImageData):
        device = next((p.device for p in model.parameters()), None)
        x, y = to_float(data.test_x[:images], device), data.test_y[:images].to(device=device)
        classes = data.classes if classes is None else classes
        eps_max = preset(data.name, "acert").eps_max if eps_max is None else float(eps_max)
    else:
        x, y = (part[:images] for part in data)
    if not len(x):
        raise ValueError("data: holds no images to choose from")
    if eps_max is None:
        raise ValueError("eps_max: is needed where data are tensors; in pixel units, such as 8 / 255")
    found = certified_radius(model, x, y, eps_max)
    start = int((found.status == RadiusStatus.CONVERGED).int().argmax())  # the first radius inside, if there is one
    controls = {
        "image": ipw.IntSlider(description="image", value=start, min=0, max=len(x) - 1, continuous_update=False,
                               **WIDE),
        "eps": slider("radius of the box, eps", float(found.radius[start]), 0.0, eps_max),
    }  # fmt: skip
    grid = np.linspace(0.0, eps_max, GRID)

    # what one movement needs several times, or the next one again
    @lru_cache(maxsize=256)
    def certificate(image: int, eps: float) -> Certificate:
        return certificate_at(model, x[image : image + 1], y[image : image + 1], eps)

    @lru_cache(maxsize=256)
    def curve(image: int) -> np.ndarray:
        return margins_over(model, x[image : image + 1], y[image : image + 1], grid)

    def verdict(image: int, eps: float) -> str:
        name = y[image].item() if classes is None else classes[y[image]]
        status = RadiusStatus(int(found.status[image]))
        what = (
            f"image {image}, a {html.escape(str(name))}: certified radius {found.radius[image]:.4g}. {status.sentence}"
        )
        return f"<b>At eps = {eps:.4g}: {certificate(image, eps).sentence}</b><br>{what}"

    def margin(image: int, eps: float) -> go.Figure:
        return _margin(grid, curve(image), float(found.radius[image]), eps, certificate(image, eps))

    both = ("image", "eps")
    parts = follow(controls, {
        "verdict": Part(verdict, both),
        "box": Part(lambda image, eps: _box(x[image : image + 1], eps), both),
        "logits": Part(lambda image, eps: _logits(certificate(image, eps), int(y[image]), classes), both),
        "margin": Part(margin, both),
    })  # fmt: skip
    buttons = _buttons(controls, found.radius.tolist(), found.upper.tolist())
    rows = [controls["image"], controls["eps"], ipw.HBox(buttons)]
    return Explorer(controls, parts, [ipw.VBox(rows), parts["verdict"], side_by_side(parts["box"]),
                                      side_by_side(parts["logits"], parts["margin"])])  # fmt: skip


def _buttons(controls: dict[str, ipw.Widget], radii: Sequence[float], beyond: Sequence[float]) -> list[ipw.Button]:
    """Two places that a slider's steps jump over: the last eps that is certified, and the first that is not."""

    def go_to(ends: Sequence[float], _button: ipw.Button) -> None:
        controls["eps"].value = min(ends[controls["image"].value], controls["eps"].max)

    buttons = []
    for text, ends in (("to its certified radius", radii), ("a hair beyond", beyond)):
        buttons.append(ipw.Button(description=text, layout=ipw.Layout(width="200px")))
        buttons[-1].on_click(partial(go_to, ends))
    return buttons
