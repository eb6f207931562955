"""The least eps at which one class reaches the true one, as a mixed-integer program for HiGHS.

Variables: eps, the change of each input, and of each ReLU that may be on or off within the box its output and whether
it is on. The big-M of a ReLU are bounds of what enters it, the tighter of interval arithmetic and CROWN. Both are
written here anew: as the judge of the other bounds, this one takes nothing from them.

Source: Tjeng, Xiao, Tedrake 2019 (MIPVerify); Zhang et al. 2018 (CROWN).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from acertlab.radius.exact.relu_network import AffineMap, ReluNetwork

TOLERANCE = 1e-6  # of the solver: feasibility, integrality and the absolute gap at which it calls itself done
DONE, INFEASIBLE = 0, 2  # statuses of scipy.optimize.milp


@dataclass(frozen=True)
class Ball:
    """The box |x' - x| <= reach = eps * scale, cut to the domain; flat, in double precision."""

    x: np.ndarray
    eps: float
    reach: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def around(cls, x: np.ndarray, eps: float, low: np.ndarray, high: np.ndarray, scale: np.ndarray) -> "Ball":
        reach = eps * scale
        return cls(x, eps, reach, np.maximum(x - reach, low), np.minimum(x + reach, high))

    def relative(self, end: np.ndarray) -> np.ndarray:
        """How far an end is from x, relative to the reach; 0 where that is."""
        return np.divide(end - self.x, self.reach, out=np.zeros_like(end), where=self.reach > 0)


@dataclass(frozen=True)
class Solution:
    """What a program said: no eps below ``lower`` lets the class reach the true one; at ``point`` it nearly does."""

    lower: float
    point: np.ndarray | None
    finished: bool


class BoxProgram:
    """The programs of all classes over one ball: its relaxation, made once."""

    def __init__(self, network: ReluNetwork, ball: Ball, y: int) -> None:
        self.network, self.ball = network, ball
        head = network.head
        classes = len(head.offset)
        against = sparse.eye_array(classes, format="csr") - sparse.csr_array(
            (np.ones(classes), (np.arange(classes), np.full(classes, y))), shape=(classes, classes)
        )
        self.difference = head.then(sparse.csr_array(against))
        self.ranges: list[tuple[np.ndarray, np.ndarray]] = []
        for layer in network.layers:  # its lower bounds are those of -layer, from above
            self.ranges.append((-self._upper(layer.scaled(-1.0)), self._upper(layer)))
        self.margins = self._upper(self.difference)  # of logit_i - logit_y over the ball
        self.margins[y] = -np.inf
        low, high = (np.concatenate([r[i] for r in self.ranges] or [np.zeros(0)]) for i in (0, 1))
        self.open = (low < 0) & (high > 0)
        self.binaries = int(self.open.sum())  # ReLUs that may be on or off within it
        self._write(low, high)

    def _upper(self, value: AffineMap) -> np.ndarray:
        """Of an affine map of the ReLUs so far: the tighter of the interval and of CROWN's backward pass, by row."""
        ball, known = self.ball, self.ranges
        low = np.concatenate([ball.low, *(np.maximum(r[0], 0) for r in known)])
        high = np.concatenate([ball.high, *(np.maximum(r[1], 0) for r in known)])
        coefficients = value.columns(len(low)).toarray()
        upper = np.maximum(coefficients, 0) @ high + np.minimum(coefficients, 0) @ low + value.offset
        constant = value.offset.copy()
        for (least, most), layer in zip(reversed(known), reversed(self.network.layers[: len(known)]), strict=True):
            rest = coefficients.shape[1] - len(least)
            own, coefficients = coefficients[:, rest:], coefficients[:, :rest]
            crossing = (least < 0) & (most > 0)
            slope = np.where(crossing, most / np.where(crossing, most - least, 1), least >= 0)
            below = np.where(crossing, most > -least, least >= 0)
            raising, lowering = np.maximum(own, 0), np.minimum(own, 0)
            constant += raising @ np.where(crossing, -slope * least, 0)
            through = raising * slope + lowering * below
            constant += through @ layer.offset
            coefficients = coefficients + through @ layer.columns(rest)
            reached = np.maximum(coefficients, 0) @ high[:rest] + np.minimum(coefficients, 0) @ low[:rest]
            upper = np.minimum(upper, reached + constant)
        return upper

    def _write(self, low: np.ndarray, high: np.ndarray) -> None:
        """Constraints that all classes share.

        Columns: eps and the changes, relative to the ball's eps and its reach; outputs of ReLUs, relative to the width
        of what may enter them; on or off.
        """
        n, k = self.network.inputs, self.binaries
        self.columns = 1 + n + 2 * k
        eye, blank = sparse.eye_array(n), sparse.csr_array((n, 2 * k))
        t = sparse.csr_array(np.ones((n, 1)))
        rows = [sparse.hstack([-t, eye, blank]), sparse.hstack([-t, -eye, blank])]
        most = [np.zeros(2 * n)]
        matrix: Any = sparse.hstack([0 * t, sparse.diags_array(self.ball.reach), blank], format="csr")
        written = AffineMap(matrix, self.ball.x, ())  # the inputs and all ReLUs so far, from the columns
        first = used = 0
        for layer in self.network.layers:
            entering = _after(layer, written)
            here = slice(first, first + len(layer.offset))
            at = np.flatnonzero(self.open[here])
            m, least, greatest = len(at), low[here][at], high[here][at]
            width, column = greatest - least, 1 + n + used + np.arange(m)
            own = sparse.csr_array((np.ones(m), (np.arange(m), column)), shape=(m, self.columns))
            on = sparse.csr_array((np.ones(m), (np.arange(m), column + k)), shape=(m, self.columns))
            a = entering.then(sparse.csr_array((1 / width, (np.arange(m), at)), shape=(m, len(low[here]))))
            off_low, on_high = (on.multiply((end / width)[:, None]) for end in (least, greatest))
            rows += [a.matrix - own, own - a.matrix - off_low, own - on_high]
            most += [-a.offset, a.offset - least / width, np.zeros(m)]
            active = entering.scaled((low[here] >= 0).astype(float))
            outputs = active.matrix + sparse.csr_array((width, (at, np.arange(m))), shape=(len(low[here]), m)) @ own
            matrix = sparse.vstack([written.matrix, outputs], format="csr")
            written = AffineMap(matrix, np.concatenate([written.offset, active.offset]), ())
            first, used = here.stop, used + m
        self.margin = _after(self.difference, written)
        self.matrix, self.most = sparse.vstack(rows, format="csr"), np.concatenate(most)

    def promising(self) -> list[int]:
        """The classes that may reach the true one within the ball, those whose bound is largest first."""
        size = np.abs(self.margin.offset)
        return [int(i) for i in np.argsort(-self.margins) if self.margins[i] >= -TOLERANCE * size[i]]

    def solve(self, target: int, seconds: float, gap: float) -> Solution:
        """The least eps at which the class ``target`` reaches the true one, if it is at most the ball's.

        The solver may stop after so many ``seconds``, or at a ``gap`` relative to eps.
        """
        ball, n = self.ball, self.network.inputs
        row, clean = self.margin.matrix[[target]], self.margin.offset[target]
        size = max(abs(clean), 1e-3 * abs(row).sum(), np.finfo(float).tiny)  # what the tolerances are relative to
        least, greatest = np.zeros(self.columns), np.ones(self.columns)
        least[1 : 1 + n], greatest[1 : 1 + n] = ball.relative(ball.low), ball.relative(ball.high)
        cost = np.zeros(self.columns)
        cost[0] = 1.0
        whole = np.zeros(self.columns)
        whole[1 + n + self.binaries :] = 1
        matrix = sparse.csr_array(sparse.vstack([self.matrix, -row / size]))
        most = np.append(self.most, clean / size + TOLERANCE)
        found = milp(
            cost,
            integrality=whole,
            bounds=Bounds(least, greatest),  # pyright: ignore[reportArgumentType]  scipy's stubs know numbers only
            constraints=LinearConstraint(matrix, -np.inf, most),  # pyright: ignore[reportArgumentType]
            options={"time_limit": max(seconds, 1e-3), "mip_rel_gap": gap},
        )
        point = None if found.x is None else ball.x + ball.reach * found.x[1 : 1 + n]
        if found.status == INFEASIBLE:
            return Solution(ball.eps * (1 - 2 * TOLERANCE), None, True)
        bound = found.mip_dual_bound if self.binaries else found.fun  # without any it is a linear program
        bound = 0.0 if bound is None or not np.isfinite(bound) else float(bound)
        return Solution(ball.eps * max(0.0, bound - 2 * TOLERANCE), point, found.status == DONE)


def _after(value: AffineMap, before: AffineMap) -> AffineMap:
    """``value`` of what ``before`` gives."""
    matrix = value.columns(len(before.offset))
    return AffineMap(matrix @ before.matrix, matrix @ before.offset + value.offset, value.shape)
