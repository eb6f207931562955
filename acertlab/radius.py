"""The certified radius of every sample: the root of its certified margin (Def. 3.1, Eq. 7, Theorem A.1)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from acertlab.box import Domain
from acertlab.chunks import in_chunks, largest_growth
from acertlab.growth import Growth, begin
from acertlab.interval import freeze
from acertlab.logsecant import cross, guard
from acertlab.margin import (
    BOUNDS,
    Network,
    Sound,
    check_bound,
    check_dense,
    check_samples,
    clean_logits,
    clean_margin,
    full_precision,
    margin_at,
    prepare_checked,
)
from acertlab.rootfind import RootResult, RootStatus, bisect, brentq, chandrupatla

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


def certified_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps_max: float,
    *,
    bound: str = "ibp",
    merged: bool = True,
    domain: Domain = (0.0, 1.0),
    solver: str = "log-secant",
    xtol: float = 1e-8,
    rtol: float = 1e-5,
    maxiter: int = 100,
    warm_start: Tensor | None = None,
    differentiable: bool = False,
    sound: Sound = False,
    batch_size: int | None = None,
    memory: int = 2**29,
    progress: bool = False,
) -> RadiusResult:
    """Def. 3.1: the largest l_inf radius, up to eps_max, at which each sample is certified.

    0 where misclassified or tied; eps_max where certified there; else the leftmost root of R_cert (Theorem A.1), from
    the certified side: the margin *was evaluated* at the returned radius and is negative. The bracket of a CONVERGED
    sample is narrow, ``upper - radius <= xtol + rtol * radius``, with rtol at least 8 units of the dtype's precision.
    Both its ends keep a few roundings' distance from the root where the tolerance allows, so that evaluating them again
    in another batch gives the same signs.

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes); left exactly as it was.
        x: (B, ...) inputs in pixel units, inside ``domain``; any B, worked through in chunks.
        y: (B,) integer labels.
        eps_max: the perceptual limit in pixel units, > 0.
        bound, merged, domain: as in `acertlab.certified_margin`. A bound of the CROWN family starts from the radii that
            the cheaper bounds certify.
        solver: "log-secant", which knows how margins grow (`acertlab.logsecant`), "brentq", "bisect" or "chandrupatla".
        xtol, rtol: absolute (pixel units) and relative tolerance of the bracket.
        maxiter: iterations of the solver at most, >= 1.
        warm_start: (B,) earlier radii to start from; a bad guess costs a few evaluations, never the guarantee.
        differentiable: attach d radius / d x and d radius / d parameters (Theorem 3.4), zero where the radius is 0 or
            eps_max. With bound="ibp" only.
        sound: as in `acertlab.certified_margin`: radii that hold in exact arithmetic (True), or for the float32
            evaluation ("float32"), rounding errors included; in float64. Whether a sample is classified correctly is
            then decided by a proof as well.
        batch_size: samples a chunk at most; None: as many as fit into ``memory``.
        memory: bytes of activations that a chunk may take, roughly. Where memory runs out all the same, the chunk is
            halved and the search goes on.
        progress: show a progress bar over the samples.

    Returns:
        A `RadiusResult`; numerical events are in its ``status``.

    Raises:
        TypeError, ValueError: naming the argument, what was wrong and what is accepted.
    """
    check_bound(bound, sound)
    _check_search(eps_max, solver, xtol, rtol, maxiter, batch_size, memory)
    if differentiable and (bound != "ibp" or sound):
        raise ValueError("differentiable: the gradient is that of bound='ibp' with sound=False; choose these")
    if differentiable and torch.is_inference_mode_enabled():
        raise ValueError("differentiable: torch.inference_mode() admits no gradient; leave it, or use torch.no_grad()")
    check_samples(model, x, y, domain)
    if warm_start is not None:
        _check_warm_start(warm_start, y)
    eps_max = float(eps_max)
    settings = {"merged": merged, "domain": domain, "solver": solver, "xtol": xtol, "rtol": rtol, "maxiter": maxiter}

    def search(part: slice) -> RadiusResult:
        xs, ys = x[part].double() if sound else x[part], y[part].long()
        if sound:
            clean = margin_at(networks[0], xs, ys, 0.0, merged=merged, domain=domain)
        else:
            clean = clean_margin(clean_logits(model, xs), ys)
        result = None
        for network in networks:
            guess = warm_start[part] if warm_start is not None and network is networks[-1] else None
            result = search_radius(network, xs, ys, clean, eps_max, warm_start=guess, start=result, **settings)
        return result

    with torch.no_grad(), full_precision(x.device):
        networks = prepare_checked(model, BOUNDS[: BOUNDS.index(bound) + 1], sound, x, y.long())
        size = batch_size or _chunk_size(model, networks[-1], x[:1], y[:1].long(), eps_max, domain, sound, memory)
        parts = in_chunks(search, len(x), size, desc="certified radii", progress=progress)
    columns = ("radius", "margin", "upper", "status", "evaluations")
    result = RadiusResult(*(torch.cat([getattr(p, name) for p in parts]) for name in columns), networks[-1].monotone)
    if differentiable:
        return replace(result, radius=_attach_gradient(model, x, y.long(), result, merged, domain))
    return result


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


def _attach_gradient(
    model: nn.Module, x: Tensor, y: Tensor, result: RadiusResult, merged: bool, domain: Domain
) -> Tensor:
    """Theorem 3.4: d radius / d w = -(dR/dw) / (dR/deps) at the root, for w the inputs and the parameters."""
    inside = (result.status == RadiusStatus.CONVERGED).nonzero().squeeze(1)
    if not len(inside):
        with torch.enable_grad():  # zero everywhere, and still with a graph: whoever asked for one may call backward
            leaves = [t for t in (x, *model.parameters()) if t.requires_grad]
            return result.radius + sum(t.flatten()[:0].sum() for t in leaves)
    with torch.enable_grad(), full_precision(x.device):
        eps = result.radius[inside].requires_grad_()
        value = margin_at(freeze(model), x[inside], y[inside], eps, merged=merged, domain=domain)
        (slope,) = torch.autograd.grad(value.sum(), eps, retain_graph=True)
        slope = torch.where(slope > 0, slope, torch.inf)
        step = (value.detach() - value) / slope  # zero in value, Theorem 3.4 in gradient
        return result.radius.index_put((inside,), eps.detach() + step)


def _chunk_size(
    model: nn.Module, network: Network, x: Tensor, y: Tensor, eps_max: float, domain: Domain, sound: Sound, memory: int
) -> int:
    """How many samples keep activations, about eight tensors of the largest size, in ``memory``.

    Those of the clean pass count as well: `acertlab.interval.Frozen` may take a batch in parts.
    """

    def passes(rows: int) -> None:
        first = torch.zeros(rows, dtype=torch.long, device=x.device)
        model(x[first])
        margin_at(network, x[first].double() if sound else x[first], y[first], eps_max, domain=domain)

    return max(1, memory // (8 * max(1, largest_growth(passes, network.tile)))) if len(x) else 1


def _check_search(
    eps_max: float, solver: str, xtol: float, rtol: float, maxiter: int, batch_size: int | None, memory: int
) -> None:
    check_eps_max(eps_max)
    if solver not in SOLVERS:
        raise ValueError(f"solver: {solver!r} is unknown; choose from {', '.join(map(repr, SOLVERS))}")
    for name, value in (("xtol", xtol), ("rtol", rtol)):
        if not _is_a(Real, value) or not 0 <= value < 1 or (name == "xtol" and value == 0):
            raise ValueError(f"{name}: {value!r} is not a tolerance; 0 {'<' if name == 'xtol' else '<='} {name} < 1")
    whole = {"maxiter": maxiter, "batch_size": 1 if batch_size is None else batch_size, "memory": memory}
    for name, value in whole.items():
        if not _is_a(Integral, value) or value < 1:
            raise ValueError(f"{name}: {value!r} is not a whole number >= 1")


def check_eps_max(eps_max: float) -> None:
    """Refuses what cannot be the end of a search."""
    held = torch.finfo(torch.float32)
    if not _is_a(Real, eps_max) or not held.smallest_normal <= eps_max <= held.max:
        raise ValueError(
            f"eps_max: {eps_max!r} is not a finite number > 0 that float32 holds (pixel units, such as 0.4 or 8 / 255)"
        )


def _is_a(kind: type, value: object) -> bool:
    """Whether it is a number of this kind, of Python's or numpy's; truth values are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_warm_start(warm_start: Tensor, y: Tensor) -> None:
    check_dense("warm_start", warm_start)
    if not isinstance(warm_start, Tensor) or warm_start.is_complex() or warm_start.shape != y.shape:
        given = (
            f"{warm_start.dtype} {tuple(warm_start.shape)}"
            if isinstance(warm_start, Tensor)
            else type(warm_start).__name__
        )
        raise ValueError(
            f"warm_start: must be a real tensor of shape {tuple(y.shape)}, one earlier radius a sample, not {given}"
        )
