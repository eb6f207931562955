"""Best and worst images of a run, each with its [certified, attacked] range, as far as that can be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch

from acertlab.data.datasets import ImageData, load_dataset, to_float
from acertlab.data.run import Run, check_tested_on, load_run
from acertlab.radius.attack import attacked_radius
from acertlab.visualization.radius import image_grid

EACH = 6  # images of either kind


@dataclass(frozen=True, eq=False)
class Gallery:
    """The images of one run with the largest certified radii, then those with the smallest above 0.

    Attributes:
        best: How many are of the first kind.
        images: (K, C, H, W) in [0, 1]; None without the dataset.
        titles: (K,) what each shows.
        certified: (K,) radii, pixel units.
        attacked: (K,) distances at which the attack succeeded, inf where it did not up to `cap`; None without weights.
        cap: Up to where radii were searched.
        note: What is missing, or "".
    """

    best: int
    images: np.ndarray | None
    titles: tuple[str, ...]
    certified: np.ndarray
    attacked: np.ndarray | None
    cap: float
    note: str

    @property
    def ranges(self) -> list[str]:
        """Each image's range in words: its true robust radius lies in it."""
        if self.attacked is None:
            return [f"certified {radius:.3g}" for radius in self.certified]
        ends = ["?" if np.isinf(end) else f"{end:.3g}" for end in self.attacked]
        return [f"[{radius:.3g}, {end}]" for radius, end in zip(self.certified, ends, strict=True)]


def gallery_of(paths: Sequence[str], data_root: str | None = None) -> Gallery:
    """The gallery of the first of some runs whose weights are there, or else of the first one; kept once it is whole.

    The dataset is looked for in ``data_root``, as by `load_dataset`; nothing is downloaded.
    """
    path = next((path for path in paths if Path(path, "model.safetensors").is_file()), paths[0])
    gallery = _gallery(str(path), data_root)
    if gallery.note:
        _gallery.cache_clear()  # what is missing may be there the next time
    return gallery


@lru_cache(maxsize=256)
def _gallery(path: str, data_root: str | None) -> Gallery:
    try:
        run = load_run(path)
    except (FileNotFoundError, ValueError) as error:
        return Gallery(0, None, (), np.empty(0), None, 0.0, f"No images are shown: {error}")
    cap = float(run.result["radius_cap"])
    ordered = run.radii.query("radius > 0").sort_values(by="radius", kind="stable")
    best, worst = ordered[::-1][:EACH], ordered[: max(min(EACH, len(ordered) - EACH), 0)]
    index, label, radius = (np.concatenate([best[c], worst[c]]) for c in ("index", "label", "radius"))
    index, label = torch.as_tensor(index.astype(np.int64)), torch.as_tensor(label.astype(np.int64))
    images, attacked, note, names = None, None, "", label.tolist()
    try:
        if not len(index):
            raise ValueError("none has a certified radius above 0")
        data = _dataset(str(run.result["dataset"]), data_root)
        check_tested_on(run, data)
        images, names = to_float(data.test_x[index]), [data.classes[y] for y in names]
    except (FileNotFoundError, ValueError) as error:
        note = f"No images are shown: {error}"
    if images is not None:
        try:
            attacked = _attacks(run, images, label, cap)
        except (FileNotFoundError, ValueError) as error:
            note = f"No attacks: {error}"
    titles = tuple(f"{name}, no. {i}" for name, i in zip(names, index.tolist(), strict=True))
    shown = None if images is None else images.numpy()
    return Gallery(len(best), shown, titles, radius.astype(float), attacked, cap, note)


def _attacks(run: Run, images: torch.Tensor, labels: torch.Tensor, cap: float) -> np.ndarray:
    model, domain = run.load_model(), run.config.get("domain")
    found = attacked_radius(model, images, labels, cap, domain=None if domain is None else tuple(domain))
    return found.radius.double().numpy()


@lru_cache(maxsize=1)
def _dataset(name: str, root: str | None) -> ImageData:
    return load_dataset(name, root=root, download=False)


def gallery_figure(gallery: Gallery) -> go.Figure:
    """The images in two rows, the best above the worst, each with its range; without images an empty figure."""
    if gallery.images is None:
        return image_grid(np.ones((1, 1, 1, 1)))
    what = "certified radius" if gallery.attacked is None else "[certified, attacked]"
    title = f"The largest radii, and below them the smallest above 0: {what}"
    texts = [f"{title}<br>{ends}" for title, ends in zip(gallery.titles, gallery.ranges, strict=True)]
    return image_grid(gallery.images, texts, columns=EACH, title=title)


def gallery_text(gallery: Gallery) -> str:
    """What the ranges mean; or what is missing, and the radii."""
    if gallery.images is None:
        listed = "; ".join(f"{name}: {ends}" for name, ends in zip(gallery.titles, gallery.ranges, strict=True))
        return gallery.note + (f". By class and number: {listed}" if listed else "")
    if gallery.attacked is None:
        return gallery.note
    unbroken = (
        f" A ? stands where no attack up to {gallery.cap:.4g} succeeded." if np.isinf(gallery.attacked).any() else ""
    )
    return (
        "Up to the first number no change of the pixels alters the class, which is proved; at the second a change was "
        f"found that does.{unbroken}"
    )
