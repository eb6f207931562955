"""The second day: something is there already, there are two of it, it has been moved, or it is not ours."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acertlab.data.datasets import ImageData
from acertlab.data.run import load_run
from acertlab.training.config import TrainConfig
from acertlab.training.loop import checkpoint
from acertlab.training.loop import train as loop
from acertlab.training.loop.train import train

CONFIG = TrainConfig(
    dataset="folder:made", eps_max=0.1, model="mlp", width=8, epochs=3, clean_epochs=1, ramp_epochs=1, batch_size=16
)


def made(seed: int = 0, n: int = 48) -> ImageData:
    """Images of two classes, one bright and one dark."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for count in (n, 16, 16):
        y = torch.randint(0, 2, (count,), generator=draw)
        x = torch.randint(0, 128, (count, 1, 6, 6), generator=draw) + 120 * y[:, None, None, None]
        parts += [x.to(torch.uint8), y]
    return ImageData("folder:made", *parts, classes=("dark", "bright"))


def quickly(data: ImageData, run_dir: Path, **settings: object) -> object:
    return train(replace(CONFIG, **settings), data, run_dir, progress=False)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Has something happen while an epoch is trained."""
    real = loop._train_epoch

    def arrange(when: int, what: Callable[[], object]) -> None:
        def epoch_of(state, config, data, x, y, epoch, bar):
            row = real(state, config, data, x, y, epoch, bar)
            if epoch == when:
                what()
            return row

        monkeypatch.setattr(loop, "_train_epoch", epoch_of)

    return arrange


class TestFoldersUnderOurFeet:
    def test_a_deleted_folder_stops_the_training(self, tmp_path, meanwhile):
        meanwhile(1, lambda: shutil.rmtree(tmp_path / "run"))
        with pytest.raises(FileNotFoundError, match=r"run_dir: .*run was deleted, moved or replaced while"):
            quickly(made(), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_moved_folder_goes_on_where_it_is_now(self, tmp_path, meanwhile):
        meanwhile(1, lambda: (tmp_path / "run").rename(tmp_path / "moved"))
        with pytest.raises(FileNotFoundError, match="the same call with its new path goes on"):
            quickly(made(), tmp_path / "run")
        assert not (tmp_path / "run").exists() and (tmp_path / "moved/checkpoint/epoch-0001").is_dir()
        meanwhile(-1, lambda: None)
        moved, whole = quickly(made(), tmp_path / "moved"), quickly(made(), tmp_path / "whole")
        assert moved.radii.equals(whole.radii)

    def test_two_trainings_after_a_deletion_are_one(self, tmp_path, meanwhile):
        def second() -> None:
            shutil.rmtree(tmp_path / "run")
            meanwhile(-1, lambda: None)
            quickly(made(), tmp_path / "run", seed=1)

        meanwhile(1, second)
        with pytest.raises(FileNotFoundError, match="replaced"):
            quickly(made(), tmp_path / "run")
        assert load_run(tmp_path / "run").config["seed"] == 1  # untouched by the first

    def test_what_was_taken_out_is_written_again(self, tmp_path, meanwhile):
        def rob() -> None:
            (tmp_path / "run/config.json").unlink()
            (tmp_path / "run/history.parquet").unlink(missing_ok=True)
            shutil.rmtree(tmp_path / "run/checkpoint", ignore_errors=True)

        meanwhile(2, rob)
        run = quickly(made(), tmp_path / "run")
        assert run.config["dataset"] == "folder:made" and len(run.history) == 3

    def test_a_checkpoint_folder_is_shared_with_others(self, tmp_path, meanwhile):
        there = tmp_path / "run" / "checkpoint"
        (there / "mine").mkdir(parents=True)
        (there / "epoch-best").mkdir()
        for name in (".DS_Store", ".nfs0001", "mine/notes"):
            (there / name).touch()
        quickly(made(), tmp_path / "run")
        names = {path.name for path in there.iterdir()}
        assert names == {"mine", "epoch-best", ".DS_Store", ".nfs0001", "epoch-0002", "epoch-0003"}
        assert (there / "mine/notes").is_file()

    def test_epochs_are_numbers(self, tmp_path, meanwhile):
        there = tmp_path / "run" / "checkpoint"
        for epochs in (9998, 9999, 10_000, 10_001):
            (there / f"epoch-{epochs}").mkdir(parents=True)
        assert list(checkpoint._checkpoints(there).values()) == [9998, 9999, 10_000, 10_001]
        quickly(made(), tmp_path / "run")  # none of them is of this run
        assert list(checkpoint._checkpoints(there).values()) == [2, 3]


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"model": "small_cnn", "batch_size": 1}, "batch_size = 1: .*a batch of one"),
        (
            {"n": 47},
            {"model": "small_cnn", "batch_size": 2},
            "batch_size = 2: 47 training images come to a batch of one",
        ),
    ],
)
def test_batches_of_one_are_refused_before_the_first_step(tmp_path, changes, settings, message):
    with pytest.raises(ValueError, match=message):
        quickly(made(**changes), tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused_before_the_first_step(tmp_path):
    data = made()
    zeros = {name: torch.zeros_like(getattr(data, name)) for name in ("train_y", "val_y", "test_y")}
    with pytest.raises(ValueError, match=r"'folder:made' has one class \(dark\)"):
        quickly(replace(data, classes=("dark",), **zeros), tmp_path / "run")
