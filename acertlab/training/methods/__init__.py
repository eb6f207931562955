"""What each training method minimises."""

from acertlab.training.methods.catalogue import METHODS as METHODS
