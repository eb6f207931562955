"""The training loop, resumable bit for bit."""

from acertlab.training.loop.train import train as train
