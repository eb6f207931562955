"""What comes with the fronts so that they can be looked at: networks without any robustness, and a few test images.

    python data/results/extracts.py   # with MNIST and CIFAR-10 in the folder that ACERTLAB_DATA names

writes `standard/`, the Standard networks of `../trials`, and `images/`: of each dataset the images with the largest
radii and those with the smallest above 0, of every method and kappa, in one picture; CIFAR-10's as a JPEG, for the eye.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import acertlab as al
from acertlab.data.files import read_json, read_parquet, write_json, write_parquet
from acertlab.data.pack import write_packed, write_samples
from acertlab.data.run import PACKED, check_tested_on, read_packed, read_samples
from acertlab.data.run_table import load_radii
from acertlab.visualization.widgets.gallery import best_and_worst

RESULTS = Path(__file__).parent


def standard(out: Path = RESULTS / "standard") -> None:
    """The Standard networks of the trials as packed runs of their own."""
    folders = [RESULTS.parent / "trials" / name for name in ("methods", "methods-mnist")]
    held = {name: run for folder in folders for name, run in read_packed(folder).items()}
    runs = {name: (result, config) for name, (result, config) in held.items() if result["method"] == "standard"}
    radii, history = (
        pd.concat([read(folder / file, filters=[("run", "in", list(runs))]) for folder in folders])
        for read, file in ((read_samples, "radii.parquet"), (read_parquet, "history.parquet"))
    )
    write_samples(out / "radii.parquet", radii, list(runs))
    write_parquet(out / "history.parquet", history)
    told = read_json(folders[0] / PACKED)
    write_packed(out / PACKED, runs, {name: told[name] for name in ("version", "dtype")})


def images(out: Path = RESULTS / "images") -> None:
    """The images that the explorer shows of the first seed of every method and kappa."""
    runs = al.load_runs(RESULTS)
    radii, told = load_radii(runs), {}
    for dataset, table in runs[runs.seed == 0].groupby("dataset"):
        chosen = [np.concatenate(best_and_worst(radii[path])) for path in table.path]
        index, data = np.unique(np.concatenate(chosen)), al.load_dataset(str(dataset), download=False)
        check_tested_on(al.load_run(table.path.iloc[0]), data)
        strip = np.concatenate(list(data.test_x[index].permute(0, 2, 3, 1).numpy()))  # one below the other
        name = f"{dataset}.png" if strip.shape[-1] == 1 else f"{dataset}.jpg"
        Image.fromarray(strip.squeeze()).save(out / name, quality=85, subsampling=0, optimize=True)
        told[dataset] = {"file": name, "index": index.tolist(), "classes": list(data.classes)}
    write_json(out / "images.json", told)


if __name__ == "__main__":
    standard()
    images()
