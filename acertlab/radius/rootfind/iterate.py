"""The loop of every root finder: finished elements are dropped, or the host never waits for the device."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Rows = tuple[Tensor, ...]  # what is known of B elements
Sizes = Callable[[int], int] | None  # with how many elements each round may go on, no more than the one before


class StoppingRule(NamedTuple):
    """Absolute and relative tolerance, and the most iterations."""

    xtol: float
    rtol: float
    maxiter: int


class RootProblem(NamedTuple):
    """Functions that rise from f(0) < 0, whose roots matter up to a cap."""

    f: Callable[..., Tensor]  # f(eps, *args), (B,) -> (B,); never 0 or NaN. Not rising: some sign change is found
    args: Rows  # of leading dimension B, cut down together with eps
    at_zero: Tensor  # (B,) f(0)
    cap: float
    guess: Tensor | None = None  # (B,) where roots are expected, and where a search may begin
    slope: Tensor | None = None  # (B,) d log eps / d log(f(eps) - f(0)) there
    rounding: Tensor | float = 0.0  # (B,) a rounding of f near its root

    def evaluate(self, eps: Tensor, where: Tensor) -> Tensor:
        """(B,) f at ``eps`` (B,) of the elements ``where`` (B,) asks; NaN for the others."""
        at = where.nonzero().squeeze(1)
        values = torch.full_like(eps, torch.nan)
        return values.index_put((at,), self.f(eps[at], *(arg[at] for arg in self.args))) if len(at) else values


class Bracket(NamedTuple):
    """The brackets of a problem's roots, (B,) each."""

    lower: Tensor  # f < 0 there
    f_lower: Tensor
    upper: Tensor  # f > 0 there; inf: none is known
    f_upper: Tensor
    converged: Tensor  # bool: narrow enough
    calls: Tensor  # int64, evaluations

    @classmethod
    def above(cls, lower: Tensor, f_lower: Tensor) -> "Bracket":
        """Without an upper end, before any evaluation."""
        inf = torch.full_like(lower, torch.inf)
        none = torch.zeros_like(lower, dtype=torch.int64)
        return cls(lower, f_lower, inf, inf, none.bool(), none)

    def moved(self, point: Tensor, value: Tensor, low: Tensor, high: Tensor, asked: Tensor) -> "Bracket":
        """Its ``low`` and ``high`` (B,) ends moved to a point, with f there, which some elements were asked for."""
        return self._replace(
            lower=torch.where(low, point, self.lower),
            f_lower=torch.where(low, value, self.f_lower),
            upper=torch.where(high, point, self.upper),
            f_upper=torch.where(high, value, self.f_upper),
            calls=self.calls + asked,
        )


class RootEstimate(NamedTuple):
    """Roots from few evaluations, (B,) each; the cap where f < 0 there."""

    root: Tensor
    log_eps: Tensor  # of the newest point
    log_growth: Tensor  # log((f - f(0)) / -f(0)) there: 0 at a root
    calls: Tensor  # int64, evaluations


def unfinished(rows: Rows, todo: Tensor, n: int) -> Tensor:
    """The indices of the elements to go on with: all ``todo``. The one host synchronisation of a round."""
    return todo.nonzero().squeeze(1)


def iterate(
    rows: Rows,
    args: Rows,
    rounds: int,
    going_on: Callable[[Rows], Tensor],
    step: Callable[[Rows, Tensor, Rows, int], Rows],
    select: Callable[[Rows, Tensor, int], Tensor | None] = unfinished,
) -> tuple[Rows, Tensor]:
    """Rounds of evaluations, at most so many, of the elements that have not finished.

    ``rows`` (..., B) each are carried from round to round; ``args``, of leading dimension B, are cut down together with
    them. ``going_on`` tells of the rows which elements have not finished, (B,) bool; ``step`` makes the rows after one
    more evaluation, of the rows, which of them go on, their args, and the round. ``select`` gives the indices of the
    elements that stay in the batch, of the first two and the round, or None for all; the others keep the rows that
    they have, and where none stay the loop ends.

    Returns:
        The last rows of all elements, and (B,) int64 how often each was evaluated.
    """
    carried: Rows = (torch.zeros(rows[0].shape[-1:], dtype=torch.int64, device=rows[0].device), *rows)
    everybody, active = None, None  # once elements were dropped: all last rows; who is still in the batch
    for n in range(rounds):
        todo = going_on(carried[1:])
        keep = select(carried[1:], todo, n)
        if keep is not None and not len(keep):
            break
        if keep is not None and len(keep) < len(todo):
            everybody = _write_back(everybody, active, carried)
            active = keep if active is None else active[keep]
            todo, *now = (t.index_select(-1, keep) for t in (todo, *carried))
            carried = tuple(now)
            args = tuple(arg.index_select(0, keep) for arg in args)
        carried = (carried[0] + todo, *step(carried[1:], todo, args, n))
    calls, *last = _write_back(everybody, active, carried)
    return tuple(last), calls


def _write_back(everybody: Rows | None, active: Tensor | None, carried: Rows) -> Rows:
    """Puts the rows of those still in the batch into those of all."""
    if everybody is None or active is None:
        return tuple(carried)
    return tuple(whole.index_copy(-1, active, part) for whole, part in zip(everybody, carried, strict=True))
