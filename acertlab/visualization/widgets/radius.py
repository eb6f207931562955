"""`radius_explorer`: an image's box, the intervals of its logits, its margin, and where the certificate breaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
import torch
from markupsafe import Markup
from torch import Tensor, nn

from acertlab.bounds.box import Box
from acertlab.bounds.ibp import propagate
from acertlab.bounds.margin import certified_margin
from acertlab.data.datasets import ImageData, on_device_of
from acertlab.radius.certified import certified_radius
from acertlab.radius.search import RadiusStatus
from acertlab.training.config import preset
from acertlab.visualization.radius import image_grid, logit_intervals, margin_curve
from acertlab.visualization.style import eps_words
from acertlab.visualization.widgets.components import Explorer, Part, follow, labelled, side_by_side, slider

GRID = 81  # eps of the margin's curve
NARROW = {"height": 345, "margin_t": 105, "legend_font_size": 11}  # room for the legend where two share the width


@dataclass(frozen=True)
class Certificate:
    """What IBP proves of one image at one eps."""

    logits: Box  # (1, C)
    margin: float  # R_cert with the last layer merged, which decides: < 0 is certified
    margin_eq3: float  # R_cert by Eq. (3), from the bounds of the logits; never smaller

    @property
    def sentence(self) -> str:
        verdict = "certified" if self.margin < 0 else "certificate broken"
        looser = self.margin < 0 <= self.margin_eq3
        note = "; the intervals of the logits alone (Eq. 3) would not prove it" if looser else ""
        return f"R_cert = {self.margin:.4g}, by Eq. (3) {self.margin_eq3:.4g}: {verdict}{note}"


def certificate_at(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Certificate:
    """The certificate of one image (1, C, H, W), with its label (1,), in the box of radius eps; pixel units."""
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
) -> dict[str, go.Figure]:
    """What `radius_explorer` draws at one position of its sliders, of an image x (1, C, H, W) with label y (1,).

    "box", the ends of the box beside the image; "logits", their intervals; "margin", its curve up to eps_max, with the
    image's certified ``radius``. All radii are in pixel units.
    """
    shown = _Images(model, x, y, eps_max, classes, [radius])
    return {"box": shown.box(0, eps), "logits": shown.logits(0, eps), "margin": shown.margin(0, eps)}


def logit_span(model: nn.Module, x: Tensor, y: Tensor, eps_max: float) -> tuple[float, float]:
    """One axis for the logits at every eps, so that one sees the intervals grow.

    It holds those at eps_max, but no more than twice the clean logits' spread beyond these: what is wider is broken.
    """
    clean, widest = (certificate_at(model, x, y, eps).logits for eps in (0.0, eps_max))
    low, high = float(clean.lower.min()), float(clean.upper.max())
    reach = 2 * max(high - low, 1e-6)
    low, high = max(float(widest.lower.min()), low - reach), min(float(widest.upper.max()), high + reach)
    return low - 0.05 * reach, high + 0.05 * reach


class _Images:
    """Images with their certified radii; a method draws one part of `radius_explorer` for an image and an eps."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, eps_max: float, classes: Sequence[str] | None, radii: Any
    ) -> None:
        self.x, self.y, self.eps_max, self.classes, self.radii = x, y, eps_max, classes, radii
        self.grid = np.linspace(0.0, eps_max, GRID)
        # what one movement needs several times, or the next one again
        self.certificate = lru_cache(maxsize=256)(lambda image, eps: certificate_at(model, *self.sample(image), eps))
        self.margins = lru_cache(maxsize=256)(lambda image: margins_over(model, *self.sample(image), self.grid))
        self.span = lru_cache(maxsize=256)(lambda image: logit_span(model, *self.sample(image), eps_max))

    def sample(self, image: int) -> tuple[Tensor, Tensor]:
        return self.x[image : image + 1], self.y[image : image + 1]

    def verdict(self, image: int, eps: float, status: Tensor) -> str:
        label, radius = int(self.y[image]), float(self.radii[image])
        name = label if self.classes is None else self.classes[label]
        words = eps_words(self.eps_max)
        told = RadiusStatus(int(status[image])).sentence
        what = f"image {image}, a {name}: certified radius {words(radius)}. {told}"
        text = "<b>At eps = {}: {}</b><br>{}"
        return Markup(text).format(words(eps), self.certificate(image, eps).sentence, what)

    def box(self, image: int, eps: float) -> go.Figure:
        x, titles = self.sample(image)[0], ["darkest in the box", "the image", "brightest in the box"]
        box = Box.around(x, eps)
        return image_grid(torch.cat([box.lower, x, box.upper]).cpu(), titles, columns=3)

    def logits(self, image: int, eps: float) -> go.Figure:
        found = self.certificate(image, eps)
        lower, upper = (bound[0].cpu() for bound in (found.logits.lower, found.logits.upper))
        figure = logit_intervals(lower, upper, int(self.y[image]), self.classes, span=self.span(image))
        title = f"Intervals of the logits: Eq. (3) gives {found.margin_eq3:.3g}"
        return figure.update_layout({**NARROW, "title_text": title})

    def margin(self, image: int, eps: float) -> go.Figure:
        here, radius = (eps, self.certificate(image, eps).margin), float(self.radii[image])
        figure = margin_curve(self.grid, self.margins(image), radius=radius, current=here)
        return figure.update_layout({**NARROW, "title_text": "The certified margin"})


def radius_explorer(
    model: nn.Module,
    data: ImageData | tuple[Tensor, Tensor],
    eps_max: float | None = None,
    *,
    images: int = 200,
    classes: Sequence[str] | None = None,
) -> Explorer:
    """Sliders for an image and a radius: its box, the intervals of the logits, the margin, whether it is certified.

    ``model`` is in evaluation mode, (B, C, H, W) -> (B, classes); ``data`` a dataset, of which the first so many test
    ``images`` are shown, or images (B, C, H, W) in [0, 1] with their labels (B,). ``eps_max``, in pixel units, is by
    default that of the dataset's preset. ValueError without images, or without eps_max where data are tensors.
    """
    if isinstance(data, ImageData):
        x = on_device_of(model, data.test_x[:images])
        y = data.test_y[:images].to(x.device)
        classes = data.classes if classes is None else classes
        eps_max = preset(data.name, "acert").eps_max if eps_max is None else float(eps_max)
    else:
        x, y = (part[:images] for part in data)
    if not len(x):
        raise ValueError("data: holds no images to choose from")
    if eps_max is None:
        raise ValueError("eps_max: is needed where data are tensors; in pixel units, such as 8 / 255")
    found = certified_radius(model, x, y, eps_max)
    shown = _Images(model, x, y, eps_max, classes, found.radius)
    start = int((found.status == RadiusStatus.CONVERGED).int().argmax())  # the first radius inside, if there is one
    places = {"value": start, "min": 0, "max": len(x) - 1, "continuous_update": False}
    image = ipw.IntSlider(readout=False, **places)
    eps = slider(float(found.radius[start]), 0.0, eps_max)
    verdict = partial(shown.verdict, status=found.status)
    draws = {"verdict": verdict, "box": shown.box, "logits": shown.logits, "margin": shown.margin}
    controls = {"image": image, "eps": eps}
    parts = follow(controls, {name: Part(draw, ("image", "eps")) for name, draw in draws.items()})
    buttons = _buttons(image, eps, {"to its certified radius": found.radius, "a hair beyond": found.upper})
    sliders = labelled("image", image, str), labelled("radius of the box, eps", eps, eps_words(eps_max))
    rows = [
        side_by_side(*sliders),
        ipw.HBox(buttons),
        parts["verdict"],
        parts["box"],
        side_by_side(parts["logits"], parts["margin"]),
    ]
    return Explorer(controls, parts, rows)


def _buttons(image: ipw.IntSlider, eps: ipw.FloatSlider, places: Mapping[str, Tensor]) -> list[ipw.Button]:
    """For eps that a slider's steps jump over: the last one that is certified, and the first that is not."""

    def go_to(radii: Tensor, _button: ipw.Button) -> None:
        eps.value = min(float(radii[image.value]), eps.max)

    buttons = []
    for description, radii in places.items():
        buttons.append(ipw.Button(description=description, layout=ipw.Layout(width="180px")))
        buttons[-1].on_click(partial(go_to, radii))
    return buttons
