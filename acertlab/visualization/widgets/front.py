"""`front_explorer`: a slider along a front's kappa, and what the network there does on a few hundred images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import ipywidgets as ipw
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from markupsafe import Markup

from acertlab._validation import Within, check
from acertlab.data.datasets import ImageData, to_float
from acertlab.data.run import check_tested_on
from acertlab.radius import metrics
from acertlab.radius.attack import attacked_radius
from acertlab.radius.certified import certified_radius
from acertlab.training.loop.front import Front
from acertlab.visualization.fronts import tradeoff_spec
from acertlab.visualization.pages.template import page
from acertlab.visualization.radius import image_grid, shares_spec
from acertlab.visualization.style import eps_words, method_style
from acertlab.visualization.widgets.components import Explorer, Part, follow, labelled, side_by_side, slider
from acertlab.visualization.widgets.gallery import ranges_told

GRID = 201  # points of a certified-accuracy curve
SHOWN = 6  # images


@dataclass(frozen=True, eq=False)
class Measured:
    """What a network does on the explorer's images: (n,) predictions and certified radii, pixel units."""

    predicted: np.ndarray
    radii: np.ndarray

    def scores(self, labels: np.ndarray, eps_max: float, eps: float) -> dict[str, float]:
        """Acc, ACR, ART and the share certified at eps, fractions."""
        acc, acr = float((self.predicted == labels).mean()), metrics.acr(self.radii, eps_max)
        shared = metrics.certified_accuracy(self.radii, [eps])[0]
        return {"Acc": acc, "ACR": float(acr), "ART": float(metrics.art(acc, acr)), "certified": float(shared)}


class FrontView:
    """What `front_explorer`, whose first arguments these are, shows at one position of its controls."""

    def __init__(self, front: Front, data: ImageData, images: int = 500) -> None:
        run = front.knots[front.kappas[0]]
        check("images", images, Within(1, kind=int))
        of = _told(run.config["dataset"], run.config["classes"], run.config["in_shape"])
        if of != (given := _told(data.name, data.num_classes, data.in_shape)) or not len(data.test_y):
            raise ValueError(f"data: the front is of {of}; these are {len(data.test_y)} test images of {given}")
        self.front, self.data = front, data
        self.x, self.y = to_float(data.test_x[:images]), data.test_y[:images]
        self.labels = self.y.numpy()
        self.eps_max, self.method = float(run.result["eps_max"]), run.result["method"]
        self.domain = run.config["domain"]
        self.network = lru_cache(maxsize=8)(front.network)
        self.measure = lru_cache(maxsize=512)(self._measured)
        self.attacks = lru_cache(maxsize=64)(self._attacked)
        try:
            check_tested_on(run, data)
            known, self.note = self._of_run, ""
        except ValueError as error:
            why = str(error).removeprefix("data: ")
            known, self.note = self.measure, f" Since {why}, the stored networks were measured anew, too."
        self.stored = {kappa: known(kappa) for kappa in sorted(front.knots | front.between)}
        self.picked = self._picked()

    def _of_run(self, kappa: float) -> Measured:
        """The same images as a stored run found them."""
        table = (self.front.knots | self.front.between)[kappa].radii.sort_values(by="index").head(len(self.y))
        predicted, radii = table["predicted"].to_numpy(), table["radius"].to_numpy(float)
        return Measured(predicted, np.minimum(radii, self.eps_max))

    def _measured(self, kappa: float) -> Measured:
        model = self.network(kappa)
        with torch.no_grad():
            predicted = model(self.x).argmax(1)
        radii = certified_radius(model, self.x, self.y, self.eps_max, domain=self.domain, rtol=1e-4).radius
        return Measured(predicted.numpy(), radii.double().numpy())

    def _picked(self) -> list[int]:
        """Images of all kinds: spread over the radii at the middle of the front."""
        middle = self.stored[sorted(self.stored)[len(self.stored) // 2]]
        order = np.argsort(middle.radii, kind="stable")
        return order[np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)].tolist()

    def _attacked(self, kappa: float) -> np.ndarray:
        x, y = self.x[self.picked], self.y[self.picked]
        return attacked_radius(self.network(kappa), x, y, self.eps_max, domain=self.domain).radius.numpy()

    def tradeoff(self, kappa: float) -> dict:
        """Acc and ACR along the front, with the network at ``kappa`` circled; all on these images."""
        scores = [of.scores(self.labels, self.eps_max, self.eps_max) for of in self.stored.values()]
        told = {"acc": [s["Acc"] for s in scores], "acr": [s["ACR"] for s in scores], "kappa": list(self.stored)}
        spread = {"acc_std": 0.0, "acr_std": 0.0, "art_std": 0.0, "art": [s["ART"] for s in scores], "seeds": 1}
        about = {"dataset": self.data.name, "eps_max": self.eps_max, "method": self.method}
        here = self.measure(kappa).scores(self.labels, self.eps_max, self.eps_max)
        table = pd.DataFrame(told | spread | about)
        return tradeoff_spec(table, kappa=round(kappa, 4), circled=[(here["Acc"], here["ACR"])], height=430)

    def curves(self, kappa: float, eps: float) -> dict:
        """Certified accuracies at every radius: of the network at ``kappa`` and of the front's two ends."""
        grid = np.linspace(0.0, self.eps_max, GRID)
        ends = {f"kappa = {k:g}": self.stored[k] for k in (min(self.front.kappas), max(self.front.kappas))}
        held = {f"here, kappa = {kappa:.3g}": self.measure(kappa)} | ends
        shares = {name: metrics.certified_accuracy(of.radii, grid) for name, of in held.items()}
        methods = dict.fromkeys(shares, "the ends") | {next(iter(held)): self.method}
        return shares_spec(grid, shares, methods=methods, eps=eps, height=430)

    def text(self, kappa: float, eps: float) -> str:
        """The scores there and at both neighbours, and what of them was measured on what."""
        kappas = sorted(self.front.kappas)
        below, above = max(k for k in kappas if k <= kappa), min(k for k in kappas if k >= kappa)
        trained = below == above
        rows = [self._row("here, measured now", kappa, self.measure(kappa), eps)]
        rows += [self._row("trained", k, self.stored[k], eps) for k in dict.fromkeys((below, above)) if not trained]
        how = (
            "The network was trained at this kappa"
            if trained
            else f"Its weights lie between those trained at kappa = {below:g} and {above:g}; it was not trained itself"
        )
        said = "<b>{} at kappa = {:.4g}</b>. {}. All scores are of the first {} test images, in percent.{}"
        name = method_style(self.method)[0]
        return Markup(said).format(name, kappa, how, len(self.y), self.note) + page("table.html", rows=rows)

    def _row(self, what: str, kappa: float, of: Measured, eps: float) -> dict[str, object]:
        scores = of.scores(self.labels, self.eps_max, eps)
        certified = f"certified at {eps_words(self.eps_max)(eps)}"
        percent = {{"certified": certified}.get(name, name): 100 * value for name, value in scores.items()}
        return {"network": what, "kappa": float(f"{kappa:.4g}"), **percent}

    def images(self, kappa: float, attack: bool) -> go.Figure:
        """Some images: what the network there takes them for, and how far that is proved; and broken, where asked."""
        of = self.measure(kappa)
        ranges = ranges_told(of.radii[self.picked], self.attacks(kappa) if attack else None, self.eps_max)
        titles = [f"{self._name(i, of)}<br>{told}" for i, told in zip(self.picked, ranges, strict=True)]
        title = "[certified radius, attacked]" if attack else "Certified radii"
        return image_grid(self.x[self.picked], titles, columns=SHOWN, title=f"{title} at kappa = {kappa:.3g}")

    def _name(self, i: int, of: Measured) -> str:
        taken, label = (self.data.classes[int(k)] for k in (of.predicted[i], self.labels[i]))
        return taken if taken == label else f"{taken}, not {label}"


def _told(name: str, classes: int, shape: Sequence[int]) -> str:
    return f"{name} ({classes} classes, {' x '.join(map(str, shape))})"


def front_explorer(front: Front, data: ImageData, *, images: int = 500, kappa: float | None = None) -> Explorer:
    """A slider that moves a real network along its front: scores, curve and images of the network at any kappa.

    Nothing is looked up between trained networks: at each position the weights there are made, and that network is
    measured on the first test images. On a second click it is attacked.

    ``front`` is from `train_front` or `load_front`, ``data`` the dataset that it was trained on, ``images`` how many to
    measure on, and ``kappa`` where the slider starts; None: the middle. On other test images of that dataset than the
    front was measured on, stored networks are measured anew. ValueError for another dataset, or kappa outside.
    """
    view = FrontView(front, data, images)
    low, high = min(front.kappas), max(front.kappas)
    front.network(start := (low + high) / 2 if kappa is None else kappa)  # refuses one outside
    stops = sorted({float(k) for k in np.round(np.linspace(low, high, 101), 4)} | set(view.stored))
    nearest = min(stops, key=lambda stop: abs(stop - start))
    told = {stop: f"{stop:g}" + " (trained)" * (stop in front.knots) for stop in stops}
    options = [(text, stop) for stop, text in told.items()]
    controls = {
        "kappa": ipw.SelectionSlider(options=options, value=nearest, readout=False, continuous_update=False),
        "eps": slider(view.eps_max / 2, 0.0, view.eps_max),
        "attack": ipw.ToggleButton(value=False, description="attack these images", layout=ipw.Layout(width="220px")),
    }
    parts = {
        "tradeoff": Part(view.tradeoff, ("kappa",)),
        "curves": Part(view.curves, ("kappa", "eps")),
        "text": Part(view.text, ("kappa", "eps")),
        "images": Part(view.images, ("kappa", "attack")),
    }
    shown = follow(controls, parts)
    sliders = (
        labelled("share of the clean loss, kappa", controls["kappa"], told.__getitem__),
        labelled("certified at radius eps", controls["eps"], eps_words(view.eps_max)),
    )
    rows: Sequence[ipw.Widget] = [
        side_by_side(*sliders),
        side_by_side(shown["tradeoff"], shown["curves"]),
        shown["text"],
        controls["attack"],
        shown["images"],
    ]
    return Explorer(controls, shown, rows)
