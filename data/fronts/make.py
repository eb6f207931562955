"""Trains a front that comes with acertlab, and packs it: python data/fronts/make.py DATASET [METHOD].

The digits, whose networks are small, with their weights; complete MNIST and the 10,000 CIFAR-10 images without. Minutes
on two cores; a killed run goes on.
"""

import sys
from dataclasses import replace
from pathlib import Path

import acertlab as al
from acertlab.data.pack import pack_runs
from acertlab.data.run import runs_folder

SETTINGS = {  # of the first network (those of data/results/fronts, CIFAR-10's twice as long), and epochs of the others
    "digits": ({}, 4),
    "mnist": ({"width": 4}, 2),
    "cifar10": ({"width": 8, "epochs": 40, "ramp_epochs": 20}, 4),
}


def main(dataset: str, method: str = "acert") -> None:
    changes, epochs = SETTINGS[dataset]
    config = replace(al.preset(dataset, method, budget="fast"), **changes)
    front = al.train_front(config, al.load_dataset(dataset), runs_folder() / f"front-{dataset}-{method}", epochs=epochs)
    pack_runs(front.path, Path(__file__).parent / f"{dataset}-{method}", weights=dataset == "digits")


if __name__ == "__main__":
    main(*sys.argv[1:])
