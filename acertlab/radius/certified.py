"""The certified radius of every sample: the root of its certified margin (Def. 3.1, Eq. 7, Theorem A.1)."""

from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from acertlab._memory import free_memory, in_chunks, memory_kept, peak_growth
from acertlab._validation import check
from acertlab.bounds.box import Domain, DomainLike
from acertlab.bounds.checks import check_dense, check_samples, full_precision
from acertlab.bounds.graph.comparison import check_chunk
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.graph.structure import Graph
from acertlab.bounds.ibp import Network, freeze
from acertlab.bounds.margin import BOUNDS, Sound, captured, clean_logits, clean_margin, margin_at, prepare_all
from acertlab.radius.search import (
    AT_LEAST_ONE,
    EXACT,
    RadiusResult,
    RadiusStatus,
    SearchSettings,
    checked_limit,
    search_radius,
)


class Chunks(NamedTuple):
    """How a call works through its samples."""

    size: int | None = None  # samples at once; None: as many as fit into the memory
    memory: int | None = None  # bytes; None: `free_memory`
    progress: bool = False  # show a progress bar


ALL_THAT_FIT = Chunks()
COPIES = 3  # of a sample, that a search holds beside a pass
BRACKETS = 128  # numbers a sample: two copies of what a search carries from round to round, and its results
_measured: WeakKeyDictionary[Graph, dict[tuple, int]] = WeakKeyDictionary()  # bytes a sample, by bound


def certified_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps_max: float | str,
    *,
    bound: str = "ibp",
    merged: bool = True,
    domain: DomainLike = (0.0, 1.0),
    solver: str = "log-secant",
    xtol: float = 1e-8,
    rtol: float = 1e-5,
    maxiter: int = 100,
    time_limit: float = 60.0,
    warm_start: Tensor | None = None,
    differentiable: bool = False,
    sound: Sound = False,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool = False,
) -> RadiusResult:
    r"""Def. 3.1: the largest l_inf radius, up to eps_max, at which each sample is certified.

    $$\mathcal E(x) = \sup \{\varepsilon \le \varepsilon_{\max} : R_{cert}(x, \varepsilon) < 0\}$$

    0 where misclassified or tied; eps_max where certified there; else the leftmost root of R_cert (Theorem A.1), from
    the certified side: the margin *was evaluated* at the returned radius and is negative. The bracket of a CONVERGED
    sample is narrow, ``upper - radius <= xtol + rtol * radius``, with rtol at least 8 units of the dtype's precision.
    Both its ends keep a few roundings' distance from the root where the tolerance allows, so that evaluating them again
    in another batch gives the same signs.

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes); left exactly as it was.
        x: (B, ...) inputs in pixel units, inside ``domain``; any B, worked through in chunks.
        y: (B,) integer labels.
        eps_max: the perceptual limit in pixel units, > 0; "8/255" will do.
        bound, merged, domain: as in `acertlab.certified_margin`. A bound of the CROWN family starts from the radii that
            the cheaper bounds certify. And "exact": the lower end of `acertlab.exact_radius` with gap=rtol, for small
            piecewise linear networks; certified only as far as the solver's tolerances allow, as the status says.
        solver: "log-secant", which knows how margins grow, "brentq", "bisect" or "chandrupatla".
        xtol, rtol: absolute (pixel units) and relative tolerance of the bracket.
        maxiter: iterations of the solver at most, >= 1.
        time_limit: seconds a sample of bound="exact"; a radius that took longer is certified, and below the largest.
        warm_start: (B,) earlier radii to start from; a bad guess costs a few evaluations, never the guarantee.
        differentiable: attach d radius / d x and d radius / d parameters (Theorem 3.4), zero where the radius is 0 or
            eps_max. With bound="ibp" only.
        sound: as in `acertlab.certified_margin`: radii that hold in exact arithmetic (True), or for the float32
            evaluation ("float32"), rounding errors included; in float64. Whether a sample is classified correctly is
            then decided by a proof as well.
        batch_size: samples a chunk at most; None: as many as fit into ``memory``.
        memory: bytes that the tensors of a chunk may take; None: 512 MiB on a CPU, half of what is free on a GPU. Where
            memory runs out all the same, the chunk is halved and the search goes on.
        progress: show a progress bar over the samples.

    Returns:
        A `RadiusResult`; numerical events are in its ``status``.

    Example:
        >>> al.certified_radius(model, x, y, eps_max=0.5).radius  # where 0.2 + eps meets 0.7 - eps
        tensor([0.2500])
    """
    settings = SearchSettings(bound, merged, domain, sound, solver, xtol, rtol, maxiter, time_limit)
    for name, value in (("batch_size", batch_size), ("memory", memory)):
        check(name, 1 if value is None else value, AT_LEAST_ONE)
    if differentiable and (bound != "ibp" or sound):
        raise ValueError("differentiable: the gradient is that of bound='ibp' with sound=False; choose these")
    if differentiable and torch.is_inference_mode_enabled():
        raise ValueError("differentiable: torch.inference_mode() admits no gradient; leave it, or use torch.no_grad()")
    result = find_radii(model, x, y, eps_max, settings, warm_start, Chunks(batch_size, memory, progress))
    if differentiable:
        model, x, y = check_samples(model, x, y, settings.domain)
        return replace(result, radius=_attach_gradient(model, x, y.long(), result, settings))
    return result


def find_radii(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps_max: float | str,
    settings: SearchSettings,
    warm_start: Tensor | None = None,
    chunks: Chunks = ALL_THAT_FIT,
) -> RadiusResult:
    """`certified_radius` by settings in one object, without its gradient."""
    if settings.bound == EXACT:
        from acertlab.radius.exact.radii import ExactSettings, exact_radii  # scipy's solver, when it is asked for

        exactly = ExactSettings(settings.domain, settings.time_limit, settings.rtol, progress=chunks.progress)
        return exact_radii(model, x, y, eps_max, exactly)[0]
    eps_max, sound = checked_limit(eps_max, settings.domain), settings.sound
    model, x, y = check_samples(model, x, y, settings.domain)
    settings = replace(settings, domain=Domain.of(settings.domain).holding(x)) if sound else settings
    if warm_start is not None:
        _check_warm_start(warm_start, y)

    def search(part: slice) -> RadiusResult:
        check_chunk(model, graph, x[part], settings.domain, eps_max)
        xs, ys = x[part].double() if sound else x[part], y[part].long()
        logits = None
        if sound:
            clean = margin_at(networks[0], xs, ys, 0.0, merged=settings.merged, domain=settings.domain)
        else:
            logits = clean_logits(model, xs)
            clean = clean_margin(logits, ys)
        result = None
        for network in networks[:-1]:
            result = search_radius(network, xs, ys, clean, eps_max, settings, start=result)
        guess = None if warm_start is None else warm_start[part]
        last = networks[-1]
        return search_radius(last, xs, ys, clean, eps_max, settings, warm_start=guess, start=result, logits=logits)

    with torch.no_grad(), memory_kept(), full_precision(x.device):
        names = list(BOUNDS)
        bounds = names[: names.index(settings.bound) + 1]
        graph = captured(model, x, settings.domain, eps_max)
        networks = prepare_all(model, graph, bounds, sound, x, y.long())
        if (size := chunks.size) is None:
            room = chunks.memory or free_memory(x.device)
            size = max(1, room // bytes_a_row(model, graph, networks[-1], x[:1], eps_max, settings))
        parts = in_chunks(search, len(x), size, desc="certified radii", progress=chunks.progress)
    names = ("radius", "margin", "upper", "status", "evaluations")
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return RadiusResult(**columns, monotone=networks[-1].monotone)


def _attach_gradient(model: nn.Module, x: Tensor, y: Tensor, result: RadiusResult, settings: SearchSettings) -> Tensor:
    """Theorem 3.4: d radius / d w = -(dR/dw) / (dR/deps) at the root, for w the inputs and the parameters."""
    inside = (result.status == RadiusStatus.CONVERGED).nonzero().squeeze(1)
    if not len(inside):
        with torch.enable_grad():  # zero everywhere, and still with a graph: whoever asked for one may call backward
            leaves = [t for t in (x, *model.parameters()) if t.requires_grad]
            return result.radius + sum(t.flatten()[:0].sum() for t in leaves)
    with torch.enable_grad(), full_precision(x.device):
        eps = result.radius[inside].requires_grad_()
        network = freeze(model, graph=graph_of(model, x))
        value = margin_at(network, x[inside], y[inside], eps, merged=settings.merged, domain=settings.domain)
        (slope,) = torch.autograd.grad(value.sum(), eps, retain_graph=True)
        slope = torch.where(slope > 0, slope, torch.inf)
        step = (value.detach() - value) / slope  # zero in value, Theorem 3.4 in gradient
        return result.radius.index_put((inside,), eps.detach() + step)


def bytes_a_row(
    model: nn.Module, graph: Graph, network: Network, x: Tensor, eps_max: float, settings: SearchSettings
) -> int:
    """Bytes by which a search's peak memory grows with every sample like ``x`` (1, ...); counted once a graph.

    Those of a bound pass, or of the clean one (a prepared network may take a batch in parts), and what the search holds
    beside: the samples it was given, those that are left of them, and their brackets.
    """

    def passes(rows: int) -> None:
        first = torch.zeros(rows, dtype=torch.long, device=x.device)
        model(x[first])
        inputs = x[first].double() if settings.sound else x[first]
        margin_at(network, inputs, first, eps_max, domain=settings.domain)

    if not len(x):
        return 1
    known, kind = _measured.setdefault(graph, {}), (settings.bound, settings.sound)
    if kind not in known:
        known[kind] = peak_growth(passes, network.tile) + COPIES * x.nbytes + BRACKETS * x.element_size()
    return known[kind]


def _check_warm_start(warm_start: Tensor, y: Tensor) -> None:
    check_dense("warm_start", warm_start)
    tensor = isinstance(warm_start, Tensor)
    if not tensor or warm_start.is_complex() or warm_start.shape != y.shape:
        given = f"{warm_start.dtype} {tuple(warm_start.shape)}" if tensor else type(warm_start).__name__
        raise ValueError(
            f"warm_start: must be a real tensor of shape {tuple(y.shape)}, one earlier radius a sample, not {given}"
        )
