"""The search for certified radii: its settings and results, where it begins, and the bracket that it ends with."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from acertlab._validation import Within, check
from acertlab.bounds.box import Domain, DomainLike, ball
from acertlab.bounds.ibp import Network
from acertlab.bounds.margin import Sound, check_bound, margin_at
from acertlab.radius.rootfind.bracketed import Status
from acertlab.radius.rootfind.iterate import Bracket, RootProblem, StoppingRule
from acertlab.radius.rootfind.log_secant import EXPONENT, rounding_guard
from acertlab.radius.rootfind.solvers import SOLVERS

POINTS = 7  # radii that are looked at, and 0: one call of 8 rows
RANGE = 3e-2  # the smallest of them, relative to eps_max
PERIOD = 14  # pixels from one blob to the next
STEEPEST = 20.0  # exponents between 1 / STEEPEST and this are believed
MOST = 100.0  # factors between 1 / MOST and this are believed
SUMMED = 16  # times a logit's rounding: its terms are larger than their sum; between two batches 30 roundings were seen
CLOSE = 0.7  # of eps_max: from there on a search begins at eps_max itself

# What is accepted of arguments that several functions have
EPS_MAX = Within(
    low=torch.finfo(torch.float32).smallest_normal,
    high=torch.finfo(torch.float32).max,
    says="a finite number > 0 that float32 holds (pixel units, such as 0.4 or 8 / 255)",
)
XTOL, RTOL = Within(0, 1, open_low=True, open_high=True), Within(0, 1, open_high=True)
AT_LEAST_ONE = Within(1, kind=int)
SECONDS = Within(0, open_low=True)


def checked_limit(eps_max: float | str, domain: DomainLike) -> float:
    """eps_max as a number, which "8/255" is, too; warns, once, where it hardly means what it says in the domain."""
    limit, width, said = check("eps_max", eps_max, EPS_MAX, parse=True), Domain.of(domain).width, ""
    if limit > width * (1 + 1e-6):
        hint = f"; for a domain of {width:g}, 8 mostly means 8/255" if limit > 1 else ""
        said = f"eps_max = {limit:g}: beyond {width:g} the box is the whole domain, and grows no more{hint}"
    elif isinstance(eps_max, str) and eps_max.endswith("/255") and 255 <= width < math.inf:
        grey = f"as many grey levels are eps_max={255 * limit:g}"
        said = f"eps_max = {eps_max}: in units of the inputs, which span {width:g} here; {grey}"
    if said:
        warnings.warn(said, stacklevel=1)  # told once: from here, whoever asks
    return limit


EXACT = "exact"  # the bound that is no pass through the network, but a program of its own


@dataclass(frozen=True)
class SearchSettings:
    """How certified radii are searched for: what `certified_radius`, `certify` and training share, and its defaults."""

    bound: str = "ibp"
    merged: bool = True
    domain: DomainLike = (0.0, 1.0)
    sound: Sound = False  # these four: what certifies, as in `acertlab.certified_margin`
    solver: str = "log-secant"  # a key of `SOLVERS`
    xtol: float = 1e-8  # of the brackets, pixel units
    rtol: float = 1e-5  # of the brackets
    maxiter: int = 100  # iterations of the solver at most
    time_limit: float = 60.0  # seconds a sample of bound="exact"

    def __post_init__(self) -> None:
        check_bound(self.bound, self.sound, (EXACT,))
        Domain.of(self.domain)
        accepted = {"solver": SOLVERS, "xtol": XTOL, "rtol": RTOL, "maxiter": AT_LEAST_ONE, "time_limit": SECONDS}
        for name, what in accepted.items():
            object.__setattr__(self, name, check(name, getattr(self, name), what))

    def plain(self) -> dict[str, Any]:
        """By name, as JSON has them."""
        return {**vars(self), "domain": Domain.of(self.domain).plain()}

    @property
    def stop(self) -> StoppingRule:
        """When the solver stops."""
        return StoppingRule(self.xtol, self.rtol, self.maxiter)


class MarginGrowth(NamedTuple):
    """How a network's margins grow with eps: a curve on double logarithmic axes; NaN where they do not grow."""

    eps: Tensor  # (POINTS,) log of the radii, rising; the last is that of eps_max
    rise: Tensor  # (POINTS,) log of the growth of the margins' mean there, relative to that at eps_max
    most: Tensor  # the growth at eps_max, a number; as a factor, so that logits twice as large change no bit

    @classmethod
    def of(cls, network: Network, like: Tensor, eps_max: float, merged: bool, domain: DomainLike) -> "MarginGrowth":
        """That of a network whose inputs are like ``like`` (B, ...), in one bound pass."""
        exponents = torch.linspace(math.log10(RANGE), 0, POINTS, dtype=like.dtype, device=like.device)
        eps = torch.cat([exponents.new_zeros(1), eps_max * 10**exponents])
        x = probe_image(like, domain).expand(len(eps), *like.shape[1:]).contiguous()
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

    def factor(self, log_eps: Tensor, log_growth: Tensor, clean: Tensor) -> Tensor:
        """(B,) this growth over that of a sample's margin, which is -clean exp(log_growth); 1 where there is none."""
        left, slope = self._piece(self.eps, log_eps)
        factor = self.most / -clean * (self.rise[left] + (log_eps - self.eps[left]) / slope - log_growth).exp()
        return torch.where(factor.isfinite(), factor, 1.0).clamp(1 / MOST, MOST)

    def _piece(self, axis: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Of the lines that (B,) values are on, or closest to: the index of the left end, and the slope."""
        right = torch.searchsorted(axis, value).clamp(1, POINTS - 1)
        left = right - 1
        return left, (self.eps[right] - self.eps[left]) / (self.rise[right] - self.rise[left])


def first_guess(
    growth: MarginGrowth | None, clean: Tensor, guess: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Where a search begins, (B,), and the slope there: at ``guess``, else where the growth says, else at the cap."""
    if growth is None:
        return guess, None
    guess = growth.guess(clean) if guess is None else guess
    return guess, growth.slope(guess)


def probe_image(like: Tensor, domain: DomainLike) -> Tensor:
    """A made-up image, (1, ...): round blobs of the largest value on the least one, about a fifth of the pixels."""
    low, high = Domain.of(domain).filled(like.new_empty(1, *like.shape[1:]), 0.0, 1.0)
    sizes = like.shape[2:] or like.shape[1:]
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in sizes]
    wave = torch.stack(torch.meshgrid(*(torch.cos(2 * math.pi * axis / PERIOD) for axis in axes), indexing="ij")).sum(0)
    blobs = (wave > 0.6 * len(sizes) ** 0.5).to(like).expand(1, *like.shape[1:])
    return low + (high - low) * blobs


class RadiusStatus(Status):
    """How a sample's radius came about; ``.sentence`` says it in words.

    Example:
        >>> found = al.certified_radius(model, x, 1 - y, eps_max=0.5)  # the wrong label
        >>> al.RadiusStatus(int(found.status)).sentence
        'Misclassified or tied without perturbation: the radius is 0.'
    """

    MISCLASSIFIED = 0, "Misclassified or tied without perturbation: the radius is 0."
    CONVERGED = 1, "The certificate breaks inside (0, eps_max); the bracket is within tolerance."
    AT_EPS_MAX = 2, "Certified at eps_max; the radius may be larger."
    MAXITER = 3, "maxiter was reached; the radius is certified, but may be far from the largest."
    NONFINITE = 4, "The clean logits are NaN or infinite: nothing can be certified."
    SOLVED = 5, "A mixed-integer program was solved: certified only as far as its tolerances allow."
    TIME_LIMIT = 6, "The solver's time ran out: certified as far as its tolerances allow, but not tight."


@dataclass(frozen=True)
class RadiusResult:
    """Certified radii, (B,) each.

    Attributes:
        radius: in pixel units; a radius > 0 is one at which the margin was evaluated and found negative.
        margin: R_cert evaluated at ``radius``; for a radius of 0 the clean margin; NaN where a solver tells the radius.
        upper: smallest eps seen NOT certified; inf where certified at eps_max.
        status: int8, a `RadiusStatus` each.
        evaluations: int64, how often the margin of the sample was evaluated, the clean pass included (and not the one
            pass of eight rows that tells where a search should begin, see `MarginGrowth`); or programs were solved.
        monotone: whether the bound is known to grow with eps. If not (the CROWN family), the radius is certified like
            any other, but ``upper`` is *an* eps that is not certified, next to the radius; smaller ones may exist.

    Example:
        >>> found = al.certified_radius(model, x, y, eps_max=0.5)
        >>> (found.margin < 0) & (found.radius < found.upper)
        tensor([True])
    """

    radius: Tensor
    margin: Tensor
    upper: Tensor
    status: Tensor
    evaluations: Tensor
    monotone: bool = True

    def raise_if_failed(self) -> "RadiusResult":
        """Raises RuntimeError, with counts, where a status is MAXITER, NONFINITE or TIME_LIMIT; else returns itself."""
        failures = (RadiusStatus.MAXITER, RadiusStatus.NONFINITE, RadiusStatus.TIME_LIMIT)
        if failed := [s for s in failures if (self.status == s).any()]:
            said = " ".join(f"{int((self.status == s).sum())} x {s.name}: {s.sentence}" for s in failed)
            raise RuntimeError(f"{len(self.radius)} radii, of which failed: {said}")
        return self


def search_radius(
    network: Network,
    x: Tensor,
    y: Tensor,
    clean: Tensor,
    eps_max: float,
    settings: SearchSettings = SearchSettings(),
    *,
    warm_start: Tensor | None = None,
    start: RadiusResult | None = None,
    logits: Tensor | None = None,
) -> RadiusResult:
    """`certified_radius` of one batch on a prepared network, without checks.

    ``clean`` (B,) is its clean margin; ``start`` the result of a cheaper bound of the same samples, to begin from;
    ``logits`` (B, classes) tell how coarsely margins are rounded. The network decides the bound and its soundness, not
    the settings.
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
        correct = ((clean < 0) & finite & (result.status != RadiusStatus.AT_EPS_MAX)).nonzero().squeeze(1)
        if not len(correct):
            return result
        solver, merged, domain = SOLVERS[settings.solver], settings.merged, settings.domain
        lower, at_lower = result.radius[correct], result.margin[correct]
        guess = None if warm_start is None else warm_start[correct].to(clean)
        grown = None if start or not solver.extrapolates else MarginGrowth.of(network, x, eps_max, merged, domain)
        margin = margin_function(network, merged, domain)
        first = first_guess(grown, clean[correct], guess)
        rounding = 0.0 if logits is None else SUMMED * torch.finfo(clean.dtype).eps * logits[correct].abs().amax(1)
        problem = RootProblem(margin, (x[correct], y[correct]), clean[correct], eps_max, *first, rounding)
        found = solver.narrow(problem, Bracket.above(lower, at_lower), settings.stop)
        found = polish_bracket(problem, found, settings.stop)
        status = torch.where(found.converged, int(RadiusStatus.CONVERGED), int(RadiusStatus.MAXITER))
        status = status.masked_fill(found.upper.isinf(), int(RadiusStatus.AT_EPS_MAX)).to(torch.int8)
        kept = found.lower >= lower  # the guard must not take what a cheaper bound gave
        result.radius[correct] = torch.where(kept, found.lower, lower)
        result.margin[correct] = torch.where(kept, found.f_lower, at_lower)
        result.upper[correct], result.status[correct] = found.upper, status
        result.evaluations[correct] += found.calls
        return result


def margin_function(network: Network, merged: bool, domain: DomainLike) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
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


def polish_bracket(problem: RootProblem, found: Bracket, stop: StoppingRule) -> Bracket:
    """Moves both ends of a narrow bracket to a few roundings' distance from the root, and evaluates them there.

    The bounds of a ReLU network are piecewise linear in eps, so the line through the ends of the final bracket meets
    zero at the root, mostly to the last digit. A small guard below that is the radius, if it proves certified; else the
    bracket's certified end is. Without the guard rounding would decide on which side of the root the radius lies. Ends
    that are there already are not evaluated again.
    """
    for _ in range(3):  # once, but where f has a kink in the bracket
        root, away, tolerance = _crossing(problem, found, stop)
        below = root - away
        far = root - found.lower > torch.maximum(2 * away, tolerance / 256)
        close = found.lower > root - away / 2
        ask = found.converged & (far | close) & (below > 0)
        if not ask.any():
            break
        value = problem.evaluate(below, ask)
        found = found.moved(below, value, value < 0, (value > 0) & (below > found.lower), ask)
    root, away, _ = _crossing(problem, found, stop)
    above = root + away
    ask = found.converged & (found.upper < above)
    broken = problem.evaluate(above, ask) > 0
    return found._replace(upper=torch.where(broken, above, found.upper), calls=found.calls + ask)


def _crossing(problem: RootProblem, found: Bracket, stop: StoppingRule) -> tuple[Tensor, Tensor, Tensor]:
    """Where the line through the ends of each bracket meets zero, the guard there and the tolerance."""
    root = found.lower + (found.upper - found.lower) * (found.f_lower / (found.f_lower - found.f_upper))
    tolerance = stop.xtol + max(stop.rtol, 8 * torch.finfo(root.dtype).eps) * root
    unit = problem.rounding * root / -problem.at_zero  # margins rise at least about so fast on the way to their root
    return root, rounding_guard(root, tolerance, unit), tolerance
