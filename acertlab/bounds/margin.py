"""The certified margin R_cert: negative where no input in the box can be classified otherwise (Eq. 3-4)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from acertlab.bounds.box import Domain, ball, check_eps
from acertlab.bounds.checks import _weight, check_faithful, check_samples, full_precision
from acertlab.bounds.crown.auto_lirpa import AutoLirpaNetwork
from acertlab.bounds.ibp import Network, freeze
from acertlab.bounds.rules.batch_invariance import TILE, BatchInvariantProducts, pad
from acertlab.bounds.sound.network import prepare_sound

Sound = bool | Literal["float32"]

BOUNDS: dict[str, Callable[[nn.Module], Network]] = {  # how a network is prepared, from the cheapest bound on
    "ibp": freeze,
    **{name: partial(AutoLirpaNetwork, bound=name) for name in ("crown-ibp", "crown", "alpha-crown")},
}


def prepare(model: nn.Module, bound: str = "ibp", sound: Sound = False) -> Network:
    """The network under a named bound, ready for `margin_at`; without checks."""
    return prepare_sound(model, sound) if sound else BOUNDS[bound](model)


def prepare_checked(model: nn.Module, bounds: Sequence[str], sound: Sound, x: Tensor, y: Tensor) -> list[Network]:
    """The network under each bound, after `check_faithful`; of bounds that lack a rule, all but the last are left out.

    The tighter bounds take the least of their own and our IBP, so that IBP has to be faithful as well; but auto_LiRPA
    bounds some layers for which we have no rule.
    """
    networks = []
    for bound in bounds:
        try:
            network = prepare(model, bound, sound)
            if sound:  # its margins hold roundings as well; they are of the same graph as the plain ones
                check_faithful(model, prepare(model, bound), x.to(_weight(model, x).dtype), y)
            else:
                check_faithful(model, network, x, y)
        except TypeError:
            if bound == bounds[-1]:
                raise
        else:
            networks.append(network)
    return networks


def clean_logits(model: nn.Module, x: Tensor) -> Tensor:
    """The model's own logits, (B, ...) -> (B, classes); a sample's are the same whichever batch it is in."""
    with BatchInvariantProducts():
        return model(pad(x, TILE).clone())[: len(x)]  # a clone: the model may work in place


def clean_margin(logits: Tensor, y: Tensor) -> Tensor:
    """R(x, 0) = max_{i != y} z_i - z_y of clean logits: (B, classes), (B,) -> (B,). NaN logits give NaN."""
    return worst_margin(logits - logits.gather(1, y.unsqueeze(1)), y)


def worst_margin(margins: Tensor, y: Tensor) -> Tensor:
    """max over i != y of a table of margins: (B, classes), (B,) -> (B,). NaN anywhere else gives NaN."""
    return margins.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)


def margin_at(
    network: Network, x: Tensor, y: Tensor, eps: float | Tensor, *, merged: bool = True, domain: Domain = (0.0, 1.0)
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
    domain: Domain = (0.0, 1.0),
    sound: Sound = False,
) -> Tensor:
    """Eq. (3): an upper bound of max_{i != y} f_i(x') - f_y(x') over the l_inf ball of radius eps.

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes); any module that ``torch.fx`` traces.
        x: (B, ...) inputs in pixel units, inside ``domain``, of the model's dtype.
        y: (B,) integer labels.
        eps: radius in pixel units, >= 0: a float, or (B,).
        bound: "ibp"; or "crown-ibp", "crown", "alpha-crown" through auto_LiRPA: dearer and mostly tighter. Each is the
            least of its own and all cheaper bounds, so it is never looser than they are.
        merged: fold the difference of logits into the last linear layer (never looser); False: Eq. (3) as written.
        domain: (low, high) of valid pixels, to which the ball is cut; None: not cut (Theorem A.2).
        sound: also bound every rounding error (bound="ibp" only). True: the margin, in float64, holds for the network
            evaluated in exact arithmetic; "float32": for its evaluation in float32 in any order of summation. See
            `acertlab.sound`.

    Returns:
        (B,) margins; < 0: certified. With bound="ibp" and sound=False differentiable in x, eps and the parameters.

    Raises:
        TypeError, ValueError: naming the argument, what was wrong and what is accepted.
    """
    check_bound(bound, sound)
    check_samples(model, x, y, domain)
    x = x.double() if sound else x
    eps = check_eps(eps, x)
    with full_precision(x.device):
        network = prepare_checked(model, tuple(dict.fromkeys(("ibp", bound))), sound, x, y.long())[-1]
        return margin_at(network, x, y.long(), eps, merged=merged, domain=domain)


def check_bound(bound: str, sound: Sound) -> None:
    """Refuses unknown names, and a pair that nothing proves."""
    if bound not in list(BOUNDS):  # a list: of what cannot be hashed, too, the error names the choices
        raise ValueError(f"bound: {bound!r} is unknown; choose from {', '.join(map(repr, BOUNDS))}")
    if not (isinstance(sound, bool) or sound == "float32"):
        raise ValueError(f"sound: {sound!r} is unknown; choose False, True or 'float32'")
    if sound and bound != "ibp":
        raise ValueError(f"sound: rounding errors are bounded for bound='ibp' only, not for {bound!r}; choose one")
