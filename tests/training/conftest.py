"""Images to train on."""

from dataclasses import replace

import pytest

from acertlab.data.datasets import load_dataset


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def few(digits):
    """A hundred or so images, so that a run takes a moment."""
    cut = {"train": 200, "val": 50, "test": 60}
    return replace(
        digits, **{f"{part}_{k}": getattr(digits, f"{part}_{k}")[:n] for part, n in cut.items() for k in "xy"}
    )
