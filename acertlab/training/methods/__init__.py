"""Training methods: the loss that each minimises."""

from acertlab.training.methods.catalogue import METHODS as METHODS
