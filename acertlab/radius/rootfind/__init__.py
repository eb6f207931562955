"""Roots of many scalar functions at once; knows nothing of networks."""

from acertlab.radius.rootfind.bisection import bisect as bisect
from acertlab.radius.rootfind.bracketed import RootResult as RootResult
from acertlab.radius.rootfind.bracketed import RootStatus as RootStatus
from acertlab.radius.rootfind.brent import brentq as brentq
from acertlab.radius.rootfind.chandrupatla import chandrupatla as chandrupatla
from acertlab.radius.rootfind.solvers import SOLVERS as SOLVERS
