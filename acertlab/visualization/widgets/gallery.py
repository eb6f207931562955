"""Best and worst images of a run, each with its [certified, attacked] range, as far as that can be had."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image

from acertlab.data.datasets import ImageData, load_dataset, to_float
from acertlab.data.files import read_json
from acertlab.data.run import SHIPPED, Run, check_tested_on, load_run, packed_folder
from acertlab.radius.attack import attacked_radius
from acertlab.visualization.radius import image_grid
from acertlab.visualization.style import eps_words

EACH = 4  # images of either kind


@dataclass(frozen=True, eq=False)
class Gallery:
    """The images of one run with the largest certified radii, then those with the smallest above 0."""

    best: int  # how many are of the first kind
    images: np.ndarray | None  # (K, C, H, W) in [0, 1]; None without the dataset
    titles: tuple[str, ...]  # (K,) what each shows
    certified: np.ndarray  # (K,) radii, pixel units
    attacked: np.ndarray | None  # (K,) where the attack succeeded, inf where it did not; None without weights
    cap: float  # up to where radii were searched
    note: str  # what is missing

    @property
    def ranges(self) -> list[str]:
        """Each image's range in words: its true robust radius lies in it."""
        return ranges_told(self.certified, self.attacked, self.cap)


def ranges_told(certified: np.ndarray, attacked: np.ndarray | None, cap: float) -> list[str]:
    """[certified, attacked] of each image, a ? where no attack up to the cap succeeded; what is certified alone."""
    words = eps_words(cap)
    if attacked is None:
        return [words(radius) for radius in certified]
    ends = ["?" if np.isinf(end) else words(end) for end in attacked]
    return [f"[{words(radius)}, {end}]" for radius, end in zip(certified, ends, strict=True)]


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
    best, worst = best_and_worst(run.radii["radius"].to_numpy())
    rows = run.radii.iloc[[*best, *worst]]
    index, label, radius = (rows[name].to_numpy() for name in ("index", "label", "radius"))
    index, label = torch.as_tensor(index.astype(np.int64)), torch.as_tensor(label.astype(np.int64))
    images, attacked, note, names = None, None, "", label.tolist()
    try:
        if not len(index):
            raise ValueError("none has a certified radius above 0")
        if (come := _shipped(run, index)) is None:
            data = _dataset(str(run.result["dataset"]), data_root)
            check_tested_on(run, data)
            come = to_float(data.test_x[index]), data.classes
        images, names = come[0], [come[1][y] for y in names]
    except (FileNotFoundError, ValueError) as error:
        note = f"No images are shown: {error}"
    if images is not None:
        try:
            model, domain = run.load_model(), run.config.get("domain")
            attacked = attacked_radius(model, images, label, cap, domain=domain).radius.double().numpy()
        except (FileNotFoundError, ValueError) as error:
            packed = "the weights of these runs do not come with them; the command trains the network again"
            note = f"No attacks: {packed if packed_folder(run.path) else error}."
    titles = tuple(f"{name}, no. {i}" for name, i in zip(names, index.tolist(), strict=True))
    shown = None if images is None else images.numpy()
    return Gallery(len(best), shown, titles, radius.astype(float), attacked, cap, note)


def best_and_worst(radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the largest of some radii (n,), falling, and of the smallest above 0, rising; none twice."""
    ordered = np.argsort(radii, kind="stable")
    ordered = ordered[radii[ordered] > 0]
    return ordered[::-1][:EACH], ordered[: max(min(EACH, len(ordered) - EACH), 0)]


def _shipped(run: Run, index: torch.Tensor) -> tuple[torch.Tensor, Sequence[str]] | None:
    """A shipped run's images that come with it, and the classes' names: no dataset is needed; None: they do not.

    Made by data/results/extracts.py.
    """
    folder, dataset = SHIPPED / "images", run.result["dataset"]
    if not run.path.is_relative_to(SHIPPED) or not folder.is_dir():
        return None
    told = read_json(folder / "images.json").get(dataset, {"index": []})
    if not set(index.tolist()) <= set(told["index"]):
        return None
    strip = np.array(Image.open(folder / told["file"]))  # images below each other
    x = torch.from_numpy(strip.reshape(len(told["index"]), strip.shape[1], strip.shape[1], -1)).permute(0, 3, 1, 2)
    return to_float(x[[told["index"].index(i) for i in index.tolist()]]), told["classes"]


@lru_cache(maxsize=1)
def _dataset(name: str, root: str | None) -> ImageData:
    return load_dataset(name, root=root, download=False)


def gallery_figure(gallery: Gallery) -> go.Figure:
    """The images in two rows, the best above the worst, each with its range; without images an empty figure."""
    if gallery.images is None:
        return image_grid(np.ones((1, 1, 1, 1)))
    what = "Certified radii" if gallery.attacked is None else "[certified, attacked]"
    title = f"{what}: the largest, and the smallest above 0"
    texts = [f"{title}<br>{ends}" for title, ends in zip(gallery.titles, gallery.ranges, strict=True)]
    figure = image_grid(gallery.images, texts, columns=EACH, title=title)
    return figure.update_layout(height=295, title_font_size=14, title_y=0.985, margin_t=30)


def gallery_text(gallery: Gallery) -> str:
    """What the ranges mean; or what is missing, and the radii."""
    if gallery.images is None:
        listed = "; ".join(f"{name}: {ends}" for name, ends in zip(gallery.titles, gallery.ranges, strict=True))
        return gallery.note + (f". Certified, by class and number: {listed}" if listed else "")
    if gallery.attacked is None:
        return gallery.note
    text = "Up to the first number no change of the pixels alters the class, which is proved; at the second a change "
    text += "was found that does."
    if np.isinf(gallery.attacked).any():
        text += f" A ? stands where no attack up to {eps_words(gallery.cap)(gallery.cap)} succeeded."
    return text
