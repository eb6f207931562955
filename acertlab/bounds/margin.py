"""The certified margin R_cert: negative where no input in the box can be classified otherwise (Eq. 3-4)."""

from collections.abc import Callable, Sequence
from typing import Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn

from acertlab.bounds.box import Box, Domain, DomainLike, ball, check_eps
from acertlab.bounds.checks import allowed_gap, check_samples, full_precision, weight_of
from acertlab.bounds.crown.auto_lirpa import AutoLirpaNetwork
from acertlab.bounds.graph.comparison import ROWS, check_chunk, check_operators, points
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.graph.structure import Graph
from acertlab.bounds.ibp import IntervalNetwork, Network
from acertlab.bounds.rules.batch_invariance import TILE, BatchInvariantProducts, pad
from acertlab.bounds.sound.network import prepare_sound

Sound = bool | Literal["float32"]


BOUNDS: dict[str, Callable[[nn.Module, Graph], Network]] = {  # how a network is prepared; from the cheapest bound on
    "ibp": lambda model, graph: IntervalNetwork(model, graph=graph),
    "crown-ibp": lambda model, graph: AutoLirpaNetwork(model, "crown-ibp", graph),
    "crown": lambda model, graph: AutoLirpaNetwork(model, "crown", graph),
    "alpha-crown": lambda model, graph: AutoLirpaNetwork(model, "alpha-crown", graph),
}
SAMPLES = 2  # on which each prepared network is tried; the graph itself is compared on points of every chunk
_compared: WeakSet[Graph] = WeakSet()  # operator by operator; a changed model has another graph


def captured(model: nn.Module, x: Tensor, domain: DomainLike, eps: float) -> Graph:
    """The graph of what ``model`` computes, a new one compared with it operator by operator on points of some boxes.

    The boxes are those of samples x (B, ...). What the graph then computes is compared by `check_chunk`, for every
    chunk of samples. TypeError or ValueError where the model cannot be captured, or computes something else.
    """
    graph = graph_of(model, x)
    if len(x) and graph not in _compared:
        check_operators(model, graph, points(x, domain, eps, ROWS))
        _compared.add(graph)
    return graph


def prepare_all(
    model: nn.Module, graph: Graph, bounds: Sequence[str], sound: Sound, x: Tensor, y: Tensor
) -> list[Network]:
    """The network under each bound, tried on points; of bounds that lack a rule, all but the last are left out.

    The tighter bounds take the least of their own and our IBP; but auto_LiRPA bounds some operators for which we have
    no rule. TypeError where the last one lacks it, ValueError where bounds of a point are not the model's own logits.
    """
    networks: list[Network] = []
    for bound in bounds:
        try:
            network = prepare_sound(model, sound, graph) if sound else BOUNDS[bound](model, graph)
            # margins that hold roundings are of the same graph as the plain ones
            _check_at_points(model, BOUNDS[bound](model, graph) if sound else network, x[:SAMPLES], y[:SAMPLES])
        except TypeError:
            if bound == bounds[-1]:
                raise
        else:
            networks.append(network)
    return networks


def _check_at_points(model: nn.Module, network: Network, x: Tensor, y: Tensor) -> None:
    if not len(x):
        return
    with torch.no_grad():
        logits = model(x.clone())
        try:
            ours = network.margins(Box(x, x), y)
        except RuntimeError as error:
            raise ValueError(f"model: it runs, but bounds of its graph cannot be computed: {error}") from error
    gap = (logits - logits.gather(1, y.unsqueeze(1)) - ours).max()  # above, roundings of a deep network may add up
    if gap > allowed_gap(logits):
        raise ValueError(f"model: the bounds of a single point miss its logits by {gap:.3g}")


def clean_logits(model: nn.Module, x: Tensor) -> Tensor:
    """The model's own logits, (B, ...) -> (B, classes); a sample's are the same whichever batch it is in."""
    with BatchInvariantProducts():
        return model(pad(x, TILE).clone())[: len(x)]  # a clone: the model may work in place


def clean_margin(logits: Tensor, y: Tensor) -> Tensor:
    """R(x, 0) = max_{i != y} z_i - z_y of clean logits: (B, classes), (B,) -> (B,). NaN logits give NaN.

    Example:
        >>> al.clean_margin(model(x), y)  # 0.2 - 0.7
        tensor([-0.5000])
    """
    return worst_margin(logits - logits.gather(1, y.unsqueeze(1)), y)


def worst_margin(margins: Tensor, y: Tensor) -> Tensor:
    """max over i != y of a table of margins: (B, classes), (B,) -> (B,). NaN anywhere else gives NaN."""
    return margins.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)


def margin_at(
    network: Network, x: Tensor, y: Tensor, eps: float | Tensor, *, merged: bool = True, domain: DomainLike = (0.0, 1.0)
) -> Tensor:
    """`certified_margin` on a prepared network, without checks: what the search evaluates."""
    n = len(x)
    x, y = pad(x, network.tile), pad(y, network.tile)
    eps = pad(eps, network.tile) if isinstance(eps, Tensor) else eps
    return worst_margin(network.margins(ball(x, eps, domain), y, merged=merged), y)[:n]


def certified_margin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    *,
    bound: str = "ibp",
    merged: bool = True,
    domain: DomainLike = (0.0, 1.0),
    sound: Sound = False,
) -> Tensor:
    r"""Eq. (3): an upper bound of max_{i != y} f_i(x') - f_y(x') over the l_inf ball of radius eps.

    $$R_{cert}(x, \varepsilon) = \max_{i \ne y} \overline{f}(x, \varepsilon)_i - \underline{f}(x, \varepsilon)_y$$

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes); any module.
        x: (B, ...) inputs in pixel units, inside ``domain``, of the model's dtype.
        y: (B,) integer labels.
        eps: radius in pixel units, >= 0: a float, or (B,).
        bound: "ibp"; or "crown-ibp", "crown", "alpha-crown" through auto_LiRPA: slower and mostly tighter. Each is the
            least of its own and all cheaper bounds, so it is never looser than they are.
        merged: fold the difference of logits into the last linear layer (never looser); False: Eq. (3) as written.
        domain: (low, high) of valid pixels, to which the ball is cut; None: not cut (Theorem A.2); an `acertlab.Domain`
            has ends and an eps for each number.
        sound: also bound every rounding error (bound="ibp" only). True: the margin, in float64, holds for the network
            evaluated in exact arithmetic; "float32": for its evaluation in float32 in any order of summation. See
            `acertlab.sound`.

    Returns:
        (B,) margins; < 0: certified. With bound="ibp" and sound=False differentiable in x, eps and the parameters.

    Example:
        >>> al.certified_margin(model, x, y, eps=0.1)  # at worst (0.2 + 0.1) - (0.7 - 0.1)
        tensor([-0.3000])
    """
    check_bound(bound, sound)
    model, x, y = check_samples(model, x, y, domain)
    if sound:
        x, domain = x.double(), Domain.of(domain).holding(x)
    eps = check_eps(eps, x)
    with full_precision(x.device):
        inputs, reach = x.to(weight_of(model, x).dtype), float(torch.as_tensor(eps).detach().max()) if len(x) else 0.0
        graph = captured(model, inputs, domain, reach)
        check_chunk(model, graph, inputs, domain, reach)
        network = prepare_all(model, graph, tuple(dict.fromkeys(("ibp", bound))), sound, inputs, y.long())[-1]
        return margin_at(network, x, y.long(), eps, merged=merged, domain=domain)


def check_bound(bound: str, sound: Sound, others: tuple[str, ...] = ()) -> None:
    """Refuses unknown names, and a pair that nothing proves; ``others`` are known where radii are searched."""
    if bound not in (known := (*BOUNDS, *others)):  # of whatever type it is
        raise ValueError(f"bound: {bound!r} is unknown; choose from {', '.join(map(repr, known))}")
    if not (isinstance(sound, bool) or sound == "float32"):
        raise ValueError(f"sound: {sound!r} is unknown; choose False, True or 'float32'")
    if sound and bound != "ibp":
        raise ValueError(f"sound: rounding errors are bounded for bound='ibp' only, not for {bound!r}; choose one")
