"""What CTRAIN is given; its training itself runs where it is installed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import acertlab as al
from acertlab.data.datasets import to_float
from acertlab.training.config import preset
from acertlab.training.methods import catalogue
from tests.benchmarks import ctrain as bench_ctrain


def test_without_it_the_command_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bench_ctrain, "version", lambda name: (_ for _ in ()).throw(ImportError(f"no {name}")))
    assert bench_ctrain.main([str(tmp_path)]) == 1
    assert "no CTRAIN; CTRAIN and what it needs are installed as its README says" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("normalised", [False, True])
def test_its_loader_gives_every_image_once_and_normalised_as_it_says(normalised: bool) -> None:
    data = al.load_dataset("digits").first(150)
    data = replace(data, mean=(0.3,), std=(0.4,)) if normalised else data
    config = replace(preset("digits", "sabr", budget="fast"), batch_size=64)
    loader = bench_ctrain._Loader(config, data)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    x = torch.cat([images for images, _ in batches]) * loader.std.view(-1, 1, 1) + loader.mean.view(-1, 1, 1)
    ours, theirs = to_float(data.train_x).flatten(1), x.flatten(1)
    distance = torch.cdist(theirs, ours, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(1).values.max() < 1e-3
    assert torch.equal(torch.cat([labels for _, labels in batches]).bincount(), data.train_y.bincount())
    low, high = (torch.zeros(1, 1, 1) - loader.mean.view(-1, 1, 1)) / loader.std.view(-1, 1, 1), loader.max
    assert torch.allclose(loader.min, low) and (torch.cat([images for images, _ in batches]) <= high + 1e-6).all()


@pytest.mark.parametrize("method", bench_ctrain.METHODS)
def test_a_network_trained_by_it_is_certified_as_ours_are(method: str, tmp_path: Path) -> None:
    pytest.importorskip("CTRAIN.train.certified", reason="CTRAIN is not installed", exc_type=ImportError)
    data = al.load_dataset("digits").first(100)
    config = preset("digits", method, budget="fast")
    config = replace(config, epochs=3, clean_epochs=1, ramp_epochs=1, width=4, batch_size=16)
    bench_ctrain.train_by_ctrain(config, data, tmp_path / "theirs")
    run = al.load_run(tmp_path / "theirs")
    assert run.result["method"] == f"{catalogue.name_of(method)} by CTRAIN" and run.result["seconds"] > 0
    assert run.result["n"] == len(data.test_x) and run.result["epochs"] == 3
