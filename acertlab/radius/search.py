"""The search for certified radii: where it begins, its solvers, and the bracket that it ends with."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from acertlab.bounds.box import Domain, ball
from acertlab.bounds.ibp import Network
from acertlab.bounds.margin import margin_at
from acertlab.radius.rootfind.bisection import bisect
from acertlab.radius.rootfind.brent import brentq
from acertlab.radius.rootfind.chandrupatla import chandrupatla
from acertlab.radius.rootfind.iterate import RootResult, RootStatus
from acertlab.radius.rootfind.log_secant import EXPONENT, Trail, cross, guard

POINTS = 7  # radii that are looked at, and 0: one call of 8 rows
RANGE = 3e-2  # the smallest of them, relative to eps_max
PERIOD = 14  # pixels from one blob to the next
STEEPEST = 20.0  # exponents between 1 / STEEPEST and this are believed
MOST = 100.0  # factors between 1 / MOST and this are believed
CLOSE = 0.7  # of eps_max: from there on a search begins at eps_max itself


class Growth(NamedTuple):
    """A curve on double logarithmic axes, in (POINTS,) points; NaN where margins do not grow."""

    eps: Tensor  # log of the radii, rising; the last is that of eps_max
    rise: Tensor  # log of the growth of the margins' mean there, relative to that at eps_max
    most: Tensor  # the growth at eps_max, a number; as a factor, so that logits twice as large change no bit

    @classmethod
    def of(cls, network: Network, like: Tensor, eps_max: float, merged: bool, domain: Domain) -> "Growth":
        """That of a network whose inputs are like ``like`` (B, ...), in one bound pass."""
        exponents = torch.linspace(math.log10(RANGE), 0, POINTS, dtype=like.dtype, device=like.device)
        eps = torch.cat([exponents.new_zeros(1), eps_max * 10**exponents])
        x = made_up(like, domain).expand(len(eps), *like.shape[1:]).contiguous()
        y = torch.zeros(len(eps), dtype=torch.int64, device=like.device)
        margins = network.margins(ball(x, eps, domain), y, merged=merged)[:, 1:].mean(1)
        rise = (margins[1:] - margins[0]).cummax(0).values
        return cls(eps[1:].log(), (rise / rise[-1]).log(), rise[-1])

    def guess(self, clean: Tensor) -> Tensor:
        """(B,) radii of samples with clean margins ``clean`` < 0, as far as the curve tells; NaN where it does not.

        eps_max where a radius is to be expected beyond it, or close to it: most such samples are done there.
        """
        wanted = (-clean / self.most).log()
        left, slope = self._piece(self.rise, wanted)
        guess, cap = self.eps[left] + (wanted - self.rise[left]) * slope, self.eps[-1]
        return torch.where(guess > cap + math.log(CLOSE), cap, guess).exp()

    def slope(self, eps: Tensor) -> Tensor:
        """(B,) d log radius / d log margin at radii (B,): one by the exponent."""
        _, slope = self._piece(self.eps, eps.log())
        return torch.where(slope.isfinite() & (slope > 0), slope, 1 / EXPONENT).clamp(1 / STEEPEST, STEEPEST)

    def factor(self, u: Tensor, g: Tensor, clean: Tensor) -> Tensor:
        """(B,) this growth over that of a sample's margin, which at exp(u) is -clean exp(g); 1 where there is none."""
        left, slope = self._piece(self.eps, u)
        factor = self.most / -clean * (self.rise[left] + (u - self.eps[left]) / slope - g).exp()
        return torch.where(factor.isfinite(), factor, 1.0).clamp(1 / MOST, MOST)

    def _piece(self, axis: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Of the lines that (B,) values are on, or closest to: the index of the left end, and the slope."""
        right = torch.searchsorted(axis, value).clamp(1, POINTS - 1)
        left = right - 1
        return left, (self.eps[right] - self.eps[left]) / (self.rise[right] - self.rise[left])


def begin(growth: Growth | None, lower: Tensor, f_lower: Tensor, clean: Tensor, guess: Tensor | None = None) -> Trail:
    """A search before its first evaluation, which is at ``guess``, else where the growth says, else at the cap."""
    if growth is None:
        return Trail.start(lower, f_lower, guess)
    guess = growth.guess(clean) if guess is None else guess
    return Trail.start(lower, f_lower, guess, growth.slope(guess))


def made_up(like: Tensor, domain: Domain) -> Tensor:
    """(1, ...): round blobs of the largest value on the least one, about a fifth of the pixels."""
    low, high = domain or (0.0, 1.0)
    sizes = like.shape[2:] or like.shape[1:]
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in sizes]
    wave = torch.stack(torch.meshgrid(*(torch.cos(2 * math.pi * axis / PERIOD) for axis in axes), indexing="ij")).sum(0)
    blobs = low + (high - low) * (wave > 0.6 * len(sizes) ** 0.5).to(like)
    return blobs.expand(1, *like.shape[1:])


METHODS: dict[str, Callable[..., RootResult]] = {"brentq": brentq, "bisect": bisect, "chandrupatla": chandrupatla}
SOLVERS = (*METHODS, "log-secant")


class RadiusStatus(IntEnum):
    """How a sample's radius came about; ``.sentence`` says it in words."""

    MISCLASSIFIED = 0
    CONVERGED = 1
    AT_EPS_MAX = 2
    MAXITER = 3
    NONFINITE = 4

    @property
    def sentence(self) -> str:
        return {
            RadiusStatus.MISCLASSIFIED: "Misclassified or tied without perturbation: the radius is 0.",
            RadiusStatus.CONVERGED: "The certificate breaks inside (0, eps_max); the bracket is within tolerance.",
            RadiusStatus.AT_EPS_MAX: "Certified at eps_max; the radius may be larger.",
            RadiusStatus.MAXITER: "maxiter was reached; the radius is certified, but may be far from the largest.",
            RadiusStatus.NONFINITE: "The clean logits are NaN or infinite: nothing can be certified.",
        }[self]


@dataclass(frozen=True)
class RadiusResult:
    """Certified radii, (B,) each.

    Attributes:
        radius: in pixel units; a radius > 0 is one at which the margin was evaluated and found negative.
        margin: R_cert evaluated at ``radius``; for a radius of 0 the clean margin.
        upper: smallest eps seen NOT certified; inf where certified at eps_max.
        status: int8, a `RadiusStatus` each.
        evaluations: int64, how often the margin of the sample was evaluated, the clean pass included (and not the one
            pass of eight rows that tells where a search should begin, see `acertlab.growth`).
        monotone: whether the bound is known to grow with eps. If not (the CROWN family), the radius is certified like
            any other, but ``upper`` is *an* eps that is not certified, next to the radius; smaller ones may exist.
    """

    radius: Tensor
    margin: Tensor
    upper: Tensor
    status: Tensor
    evaluations: Tensor
    monotone: bool = True

    def raise_if_failed(self) -> "RadiusResult":
        """Raises RuntimeError, with counts, where a status is MAXITER or NONFINITE; else returns the result."""
        failed = [s for s in (RadiusStatus.MAXITER, RadiusStatus.NONFINITE) if (self.status == s).any()]
        if failed:
            said = " ".join(f"{int((self.status == s).sum())} x {s.name}: {s.sentence}" for s in failed)
            raise RuntimeError(f"{len(self.radius)} radii, of which failed: {said}")
        return self


def search_radius(
    network: Network,
    x: Tensor,
    y: Tensor,
    clean: Tensor,
    eps_max: float,
    *,
    merged: bool = True,
    domain: Domain = (0.0, 1.0),
    solver: str = "log-secant",
    xtol: float = 1e-8,
    rtol: float = 1e-5,
    maxiter: int = 100,
    warm_start: Tensor | None = None,
    start: RadiusResult | None = None,
) -> RadiusResult:
    """`certified_radius` of one batch on a prepared network, without checks.

    ``clean`` (B,) is its clean margin; ``start`` the result of a cheaper bound of the same samples, to begin from.
    """
    with torch.no_grad():
        clean = clean.detach()
        finite = clean.isfinite()
        result = start or RadiusResult(
            radius=torch.zeros_like(clean),
            margin=clean.clone(),
            upper=torch.zeros_like(clean),
            status=torch.where(finite, int(RadiusStatus.MISCLASSIFIED), int(RadiusStatus.NONFINITE)).to(torch.int8),
            evaluations=torch.ones_like(y),
        )
        margin = margin_function(network, merged, domain)
        correct = ((clean < 0) & finite & (result.status != RadiusStatus.AT_EPS_MAX)).nonzero().squeeze(1)
        if not len(correct):
            return result
        args = (x[correct], y[correct])
        lower, at_lower = result.radius[correct], result.margin[correct]
        guess = None if warm_start is None else warm_start[correct].to(clean)
        if solver == "log-secant":
            growth = None if start else Growth.of(network, x, eps_max, merged, domain)
            search = partial(_by_log_secant, growth)
        else:
            search = partial(_by_bracket, METHODS[solver])
        found = search(margin, args, lower, at_lower, clean[correct], eps_max, guess, xtol, rtol, maxiter)
        found = _settle(margin, args, found, xtol, rtol)
        kept = found.lower >= lower  # the guard must not take what a cheaper bound gave
        result.radius[correct] = torch.where(kept, found.lower, lower)
        result.margin[correct] = torch.where(kept, found.f_lower, at_lower)
        result.upper[correct], result.status[correct] = found.upper, found.status
        result.evaluations[correct] += found.calls
        return result


class _Found(NamedTuple):
    """Final brackets, (B,) each."""

    lower: Tensor  # certified
    f_lower: Tensor
    upper: Tensor  # not certified; inf: certified at eps_max
    f_upper: Tensor
    status: Tensor  # int8, a `RadiusStatus`
    calls: Tensor  # int64, evaluations


def _by_log_secant(
    growth: Growth | None, margin: Callable, args: tuple[Tensor, ...], lower: Tensor, at_lower: Tensor,
    clean: Tensor, eps_max: float, guess: Tensor | None, xtol: float, rtol: float, maxiter: int,
) -> _Found:  # fmt: skip
    """Without ``growth`` and ``guess`` its first evaluation is at the cap."""
    rtol = max(rtol, 8 * torch.finfo(lower.dtype).eps)
    eps_max = torch.tensor(eps_max, dtype=lower.dtype).item()  # as it is evaluated
    trail = begin(growth, lower, at_lower, clean, guess)
    trail, calls = cross(margin, trail, clean, eps_max, args, xtol=xtol, rtol=rtol, maxiter=maxiter)
    status = torch.full_like(calls, int(RadiusStatus.CONVERGED), dtype=torch.int8)
    status = status.masked_fill(~trail.done(eps_max, xtol, rtol), int(RadiusStatus.MAXITER))
    status = status.masked_fill(trail.upper.isinf(), int(RadiusStatus.AT_EPS_MAX))
    return _Found(trail.lower, trail.f_lower, trail.upper, trail.f_upper, status, calls)


def _by_bracket(
    method: Callable[..., RootResult], margin: Callable, args: tuple[Tensor, ...], lower: Tensor, at_lower: Tensor,
    clean: Tensor, eps_max: float, guess: Tensor | None, xtol: float, rtol: float, maxiter: int,
) -> _Found:  # fmt: skip
    """A method that wants both ends: the cap, and ends on both sides of the guess."""
    inf = torch.full_like(lower, torch.inf)
    cap = torch.full_like(lower, eps_max)
    found = _Found(lower, at_lower, inf, inf, torch.full_like(lower, 0, dtype=torch.int8), torch.zeros_like(args[1]))
    points = [] if guess is None else [(guess * factor).clamp(max=eps_max) for factor in (1.01, 0.99)]
    for point in (*points, cap):
        ask = (found.upper.isinf() if point is cap else point > found.lower).nonzero().squeeze(1)
        found = _ask(margin, args, found, point, ask)
    inside = found.upper.isfinite().nonzero().squeeze(1)
    status = found.status.masked_fill(found.upper.isinf(), int(RadiusStatus.AT_EPS_MAX))
    if not len(inside):
        return found._replace(status=status)
    a, fa, b, fb = (end[inside] for end in found[:4])
    rows = tuple(arg[inside] for arg in args)
    # an eighth of the tolerance for the solver, hardly dearer at its speed; the rest is for `_settle`
    root = method(margin, a, b, args=rows, fa=fa, fb=fb, xtol=xtol / 8, rtol=rtol / 8, maxiter=maxiter)
    done = torch.where(root.status == RootStatus.CONVERGED, int(RadiusStatus.CONVERGED), int(RadiusStatus.MAXITER))
    ends = (root.lower, root.f_lower, root.upper, root.f_upper, done.to(torch.int8))
    new = (old.index_put((inside,), end) for old, end in zip((*found[:4], status), ends, strict=True))
    return _Found(*new, found.calls.index_add(0, inside, root.function_calls))


def _ask(margin: Callable, args: tuple[Tensor, ...], found: _Found, point: Tensor, at: Tensor) -> _Found:
    """Evaluates ``point`` at the rows ``at`` and moves the ends of their brackets to it, where it lies between them."""
    if not len(at):
        return found
    value, eps = margin(point[at], *(arg[at] for arg in args)), point[at]
    lower, f_lower, upper, f_upper = (end[at] for end in found[:4])
    rise, fall = (value < 0) & (eps > lower), (value > 0) & (eps < upper)
    ends = (
        torch.where(rise, eps, lower),
        torch.where(rise, value, f_lower),
        torch.where(fall, eps, upper),
        torch.where(fall, value, f_upper),
    )
    new = (old.index_put((at,), end) for old, end in zip(found[:4], ends, strict=True))
    return _Found(*new, found.status, found.calls.index_add(0, at, torch.ones_like(at)))


def margin_function(network: Network, merged: bool, domain: Domain) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """R_cert as the solvers see it: finite, and strictly positive wherever not certified.

    Theorem A.1 asks for the leftmost root. A solver stops at any exact zero, also inside a plateau of zeros, so a zero
    counts as positive; so do NaN and infinity, which certify nothing.
    """

    def margin(eps: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return without_zero(margin_at(network, x, y, eps, merged=merged, domain=domain))

    return margin


def without_zero(margin: Tensor) -> Tensor:
    """(B,) margins as the solvers see them, see `margin_function`."""
    info = torch.finfo(margin.dtype)
    margin = torch.nan_to_num(margin, nan=info.max / 4, posinf=info.max / 4, neginf=info.min / 4)
    return torch.where(margin == 0, info.tiny, margin)


def _settle(margin: Callable, args: tuple[Tensor, ...], found: _Found, xtol: float, rtol: float) -> _Found:
    """Moves both ends of a narrow bracket to a few roundings' distance from the root, and evaluates them there.

    The bounds of a ReLU network are piecewise linear in eps, so the line through the ends of the final bracket meets
    zero at the root, mostly to the last digit. A small guard below that is the radius, if it proves certified; else the
    bracket's certified end is. Without the guard rounding would decide on which side of the root the radius lies. Ends
    that are there already are not evaluated again.
    """
    converged = found.status == RadiusStatus.CONVERGED
    for _ in range(3):  # once, but where f has a kink in the bracket
        root, away, tolerance = _crossing(found, xtol, rtol)
        below = root - away
        far = root - found.lower > torch.maximum(2 * away, tolerance / 256)
        close = found.lower > root - away / 2
        at = (converged & (far | close) & (below > 0)).nonzero().squeeze(1)
        if not len(at):
            break
        value, eps = margin(below[at], *(arg[at] for arg in args)), below[at]
        low, high = at[value < 0], at[(value > 0) & (eps > found.lower[at])]
        found = found._replace(
            lower=found.lower.index_put((low,), below[low]),
            f_lower=found.f_lower.index_put((low,), value[value < 0]),
            upper=found.upper.index_put((high,), below[high]),
            f_upper=found.f_upper.index_put((high,), value[(value > 0) & (eps > found.lower[at])]),
            calls=found.calls.index_add(0, at, torch.ones_like(at)),
        )
    root, away, _ = _crossing(found, xtol, rtol)
    above = root + away
    at = (converged & (found.upper < above)).nonzero().squeeze(1)
    if len(at):
        broken = at[margin(above[at], *(arg[at] for arg in args)) > 0]
        found = found._replace(
            upper=found.upper.index_put((broken,), above[broken]),
            calls=found.calls.index_add(0, at, torch.ones_like(at)),
        )
    return found


def _crossing(found: _Found, xtol: float, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where the line through the ends of each bracket meets zero, the guard there and the tolerance."""
    root = found.lower + (found.upper - found.lower) * (found.f_lower / (found.f_lower - found.f_upper))
    tolerance = xtol + max(rtol, 8 * torch.finfo(root.dtype).eps) * root
    return root, guard(root, tolerance), tolerance
