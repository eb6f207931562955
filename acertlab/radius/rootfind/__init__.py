"""Roots of many scalar functions at once; knows nothing of networks."""

from acertlab.radius.rootfind.bracketed import RootResult as RootResult, RootStatus as RootStatus
from acertlab.radius.rootfind.solvers import SOLVERS as SOLVERS
