"""A run that takes a moment, and what becomes of it."""

import torch
from safetensors.torch import load_file

from acertlab.training.config import TrainConfig
from acertlab.training.loop import train as loop

SMALL = TrainConfig(
    eps_max=0.1, model="mlp", width=32, epochs=4, clean_epochs=1, ramp_epochs=2, batch_size=32, lr=1e-2, device="cpu"
)


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class Interrupted(Exception):
    pass


def stop_after(epochs, monkeypatch):
    original = loop.train_epoch

    def epoch_or_stop(state, *args):
        if len(state.history) == epochs:
            raise Interrupted
        return original(state, *args)

    monkeypatch.setattr(loop, "train_epoch", epoch_or_stop)
