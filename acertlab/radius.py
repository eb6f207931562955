"""The certified radius of every sample: the root of its certified margin (Def. 3.1, Eq. 7, Theorem A.1)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from acertlab.box import Domain
from acertlab.chunks import in_chunks, largest_growth
from acertlab.interval import freeze
from acertlab.margin import (
    BOUNDS,
    Network,
    Sound,
    check_bound,
    check_dense,
    check_samples,
    clean_margin,
    full_precision,
    margin_at,
    pad,
    prepare_checked,
)
from acertlab.rootfind import RootResult, RootStatus, bisect, brentq, chandrupatla

SOLVERS: dict[str, Callable[..., RootResult]] = {"brentq": brentq, "bisect": bisect, "chandrupatla": chandrupatla}


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
        evaluations: int64, how often the margin of the sample was evaluated, the clean pass included.
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
    solver: str = "brentq",
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
        solver: "brentq", "bisect" or "chandrupatla".
        xtol, rtol: absolute (pixel units) and relative tolerance of the bracket.
        maxiter: iterations of the solver at most, >= 1.
        warm_start: (B,) earlier radii to start from; a bad guess costs two evaluations, never the guarantee.
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
            clean = clean_margin(model(pad(xs.clone(), networks[0].tile))[: len(xs)], ys)  # in place, perhaps
        result = None
        for network in networks:
            guess = warm_start[part] if warm_start is not None and network is networks[-1] else None
            result = search_radius(network, xs, ys, clean, eps_max, warm_start=guess, start=result, **settings)
        return result

    with torch.no_grad(), full_precision(x.device):
        few, labels = x[:32].double() if sound else x[:32], y[:32].long()
        networks = prepare_checked(model, BOUNDS[: BOUNDS.index(bound) + 1], sound, few, labels)
        size = batch_size or _chunk_size(model, networks[-1], x[:1], labels[:1], eps_max, domain, sound, memory)
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
    solver: str = "brentq",
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
        margin = _margin_function(network, merged, domain)
        correct = ((clean < 0) & finite & (result.status != RadiusStatus.AT_EPS_MAX)).nonzero().squeeze(1)
        if not len(correct):
            return result
        inside, bracket = _initial_bracket(margin, x, y, clean, eps_max, correct, warm_start, result)
        if not len(inside):
            return result
        args = (x[inside], y[inside])
        a, b, fa, fb = bracket
        # an eighth of the tolerance for the solver, hardly dearer at its speed; the rest is for `_settle`
        found = SOLVERS[solver](margin, a, b, args=args, fa=fa, fb=fb, xtol=xtol / 8, rtol=rtol / 8, maxiter=maxiter)
        radius, at_radius, upper, extra = _settle(margin, args, found, xtol, rtol)
        earlier = result.radius[inside], result.margin[inside]  # the guard must not take what a cheaper bound gave
        at_radius = torch.where(radius < earlier[0], earlier[1], at_radius)
        radius = torch.maximum(radius, earlier[0])
        converged = found.status == RootStatus.CONVERGED
        result.radius[inside], result.margin[inside], result.upper[inside] = radius, at_radius, upper
        result.status[inside] = torch.where(converged, int(RadiusStatus.CONVERGED), int(RadiusStatus.MAXITER)).to(
            torch.int8
        )
        result.evaluations[inside] += found.function_calls + extra
        return result


def approximate_radius(
    network: Network,
    x: Tensor,
    y: Tensor,
    clean: Tensor,
    eps_max: float,
    *,
    merged: bool = True,
    domain: Domain = (0.0, 1.0),
    solver: str = "brentq",
    xtol: float = 1e-6,
    rtol: float = 1e-4,
    maxiter: int = 10,
    compact: bool = True,
) -> Tensor:
    """The radii that training uses (Eq. 9): the solver's last iterate, which need NOT be certified.

    Args:
        network, x, y, clean, eps_max, merged, domain, solver: as in `search_radius`.
        xtol, rtol: the paper's tolerances.
        maxiter: iterations of the solver; 0: eps_max for every correctly classified sample (ACERT-fast).
        compact: drop samples that are done; False: full batches, a fixed number of passes, and no host-device
            synchronisation (for a GPU).

    Returns:
        (B,) radii in [0, eps_max], without gradient; 0 where misclassified, tied or not finite.
    """
    with torch.no_grad():
        clean = clean.detach()
        cap = torch.full_like(clean, eps_max)
        radius = torch.where(clean < 0, cap, 0.0)
        if maxiter == 0:
            return radius
        margin = _margin_function(network, merged, domain)
        tolerances = {"xtol": xtol, "rtol": rtol, "maxiter": maxiter}
        if not compact:
            at_cap = margin(cap, x, y)
            found = SOLVERS[solver](
                margin, torch.zeros_like(cap), cap, args=(x, y), fa=clean, fb=at_cap, compact=False, **tolerances
            )
            return torch.where((clean < 0) & (at_cap > 0), found.root, radius)
        correct = (clean < 0).nonzero().squeeze(1)
        at_cap = margin(cap[correct], x[correct], y[correct])
        inside, at_cap = correct[at_cap > 0], at_cap[at_cap > 0]
        if len(inside):
            a, b, args = torch.zeros_like(at_cap), cap[inside], (x[inside], y[inside])
            found = SOLVERS[solver](margin, a, b, args=args, fa=clean[inside], fb=at_cap, **tolerances)
            radius[inside] = found.root
        return radius


def _margin_function(network: Network, merged: bool, domain: Domain) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """R_cert as the solvers see it: finite, and strictly positive wherever not certified.

    Theorem A.1 asks for the leftmost root. A solver stops at any exact zero, also inside a plateau of zeros, so a zero
    counts as positive; so do NaN and infinity, which certify nothing.
    """

    def margin(eps: Tensor, x: Tensor, y: Tensor) -> Tensor:
        info = torch.finfo(x.dtype)
        value = margin_at(network, x, y, eps, merged=merged, domain=domain)
        value = torch.nan_to_num(value, nan=info.max / 4, posinf=info.max / 4, neginf=info.min / 4)
        return torch.where(value == 0, info.tiny, value)

    return margin


def _initial_bracket(
    margin: Callable,
    x: Tensor,
    y: Tensor,
    clean: Tensor,
    eps_max: float,
    correct: Tensor,
    warm_start: Tensor | None,
    result: RadiusResult,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Brackets of the samples whose root lies inside; those certified at eps_max are entered into ``result``."""
    a, fa = result.radius.clone(), result.margin.clone()
    b, fb = torch.full_like(clean, eps_max), torch.full_like(clean, -torch.inf)  # -inf: not evaluated yet
    if warm_start is not None:
        guess = torch.nan_to_num(warm_start.to(a), nan=0.0).clamp(0.0, eps_max)
        for factor in (1.01, 0.99):
            known = fb[correct] > 0
            point = (guess[correct] * factor).clamp(max=eps_max)
            value = margin(point, x[correct], y[correct])
            result.evaluations[correct] += 1
            certified = value < 0
            lower, upper = certified & (point > a[correct]), ~certified & (~known | (point < b[correct]))
            a[correct[lower]], fa[correct[lower]] = point[lower], value[lower]
            b[correct[upper]], fb[correct[upper]] = point[upper], value[upper]
    open_end = correct[fb[correct] < 0]
    if len(open_end):
        fb[open_end] = margin(b[open_end], x[open_end], y[open_end])
        result.evaluations[open_end] += 1
        capped = open_end[fb[open_end] < 0]
        result.radius[capped], result.margin[capped], result.upper[capped] = eps_max, fb[capped], torch.inf
        result.status[capped] = int(RadiusStatus.AT_EPS_MAX)
    inside = correct[fb[correct] > 0]
    return inside, (a[inside], b[inside], fa[inside], fb[inside])


def _settle(
    margin: Callable, args: tuple[Tensor, Tensor], found: RootResult, xtol: float, rtol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moves both ends of the final bracket to a few roundings' distance from the root, and evaluates them there.

    The bounds of a ReLU network are piecewise linear in eps, so the line through the ends of the final bracket meets
    zero at the root, mostly to the last digit. A small guard below that is the radius, if it proves certified; else the
    bracket's certified end is. Without the guard rounding would decide on which side of the root the radius lies.

    Returns:
        radius, R_cert at it, upper, and the number of evaluations spent, (B,) each.
    """
    info = torch.finfo(found.root.dtype)
    root = found.lower + (found.upper - found.lower) * (found.f_lower / (found.f_lower - found.f_upper))
    guard = torch.minimum(32 * info.eps * root, 0.4 * (xtol + max(rtol, 8 * info.eps) * root))
    below, above = (root - guard).clamp(min=0.0), root + guard
    at_below = margin(below, *args)
    converged = found.status == RootStatus.CONVERGED
    take = (at_below < 0) & (below > 0) & converged
    radius, at_radius = torch.where(take, below, found.lower), torch.where(take, at_below, found.f_lower)
    upper = found.upper.clone()
    close = ((upper < above) & converged).nonzero().squeeze(1)
    extra = torch.ones_like(found.function_calls)
    if len(close):
        uncertified = margin(above[close], *(arg[close] for arg in args)) > 0
        upper[close] = torch.where(uncertified, above[close], upper[close])
        extra[close] += 1
    return radius, at_radius, upper, extra


def _attach_gradient(
    model: nn.Module, x: Tensor, y: Tensor, result: RadiusResult, merged: bool, domain: Domain
) -> Tensor:
    """Theorem 3.4: d radius / d w = -(dR/dw) / (dR/deps) at the root, for w the inputs and the parameters."""
    inside = (result.status == RadiusStatus.CONVERGED).nonzero().squeeze(1)
    if not len(inside):
        return result.radius
    with torch.enable_grad(), full_precision(x.device):
        eps = result.radius[inside].requires_grad_()
        value = margin_at(freeze(model), x[inside], y[inside], eps, merged=merged, domain=domain)
        (slope,) = torch.autograd.grad(value.sum(), eps, retain_graph=True)
        step = torch.where(slope > 0, (value.detach() - value) / slope, 0.0)  # zero in value, Theorem 3.4 in gradient
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
    if solver not in tuple(SOLVERS):
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
