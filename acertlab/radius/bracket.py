"""The robust radius from both sides: [certified, attacked] of every sample, which must not cross."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acertlab._memory import in_chunks
from acertlab.bounds.box import DomainLike, rounded
from acertlab.bounds.checks import check_samples
from acertlab.bounds.margin import Sound
from acertlab.radius.attack import AttackResult, attacked_radius, check_budget, pgd
from acertlab.radius.certified import Chunks, find_radii
from acertlab.radius.search import EXACT, RadiusResult, SearchSettings


@dataclass(frozen=True)
class RadiusBracket:
    """The robust radius of every sample from both sides.

    Attributes:
        certificate: what is proved, from below.
        attack: what was found, from above.

    Example:
        >>> bracket = al.radius_bracket(model, x, y, eps_max=0.5)
        >>> bracket.certified <= bracket.attacked
        tensor([True])
    """

    certificate: RadiusResult
    attack: AttackResult

    @property
    def certified(self) -> Tensor:
        """(B,) radii within which no input is classified otherwise."""
        return self.certificate.radius

    @property
    def attacked(self) -> Tensor:
        """(B,) distances at which one is; inf where none was found."""
        return self.attack.radius

    @property
    def gap(self) -> Tensor:
        """(B,) attacked - certified, in the wider of their dtypes; the robust radius lies in between."""
        return self.attacked - self.certified

    @property
    def crossed(self) -> Tensor:
        """(B,) bool: a witness inside a certified ball, which a correct certificate excludes."""
        return (self.certified > 0) & (self.attacked.double() <= self.certified.double())

    def raise_if_crossed(self) -> "RadiusBracket":
        """Raises RuntimeError, naming samples and both radii, where an attack succeeded inside a certified ball."""
        if crossed := self.crossed.nonzero().squeeze(1).tolist():
            told = ", ".join(
                f"{i} (attacked {self.attacked[i].item():.9g} <= certified {self.certified[i].item():.9g})"
                for i in crossed[:10]
            )
            more = f" and {len(crossed) - 10} more" if len(crossed) > 10 else ""
            raise RuntimeError(
                f"{len(crossed)} of {len(self.crossed)} samples are misclassified inside their certified ball: sample "
                f"{told}{more}. Certificate or attack is wrong, unless they differ by rounding alone: sound='float32' "
                "certifies the float32 evaluation, rounding errors included"
            )
        return self


def radius_bracket(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps_max: float | str,
    *,
    bound: str = "ibp",
    merged: bool = True,
    sound: Sound = False,
    domain: DomainLike = (0.0, 1.0),
    time_limit: float = 60.0,
    steps: int = 6,
    restarts: int = 4,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> RadiusBracket:
    """The robust radius between what `acertlab.certified_radius` proves and what `attacked_radius` finds.

    Both searches go their own way over [0, eps_max] (bound="exact" begins from the attack, see `exact_radius`); then
    every sample is attacked once more *at* its certified radius. A success there crosses the bracket: one of the two is
    wrong. Where the bound is (nearly) exact, as for a linear model, rounding alone may do it, since a certificate with
    sound=False neglects the rounding errors of the margin and of the forward pass; ``sound="float32"`` certifies the
    float32 evaluation that the attack sees.

    Args:
        model, x, y, eps_max, bound, merged, sound, domain, time_limit: as in `acertlab.certified_radius`.
        steps, restarts, seed, batch_size: as in `attacked_radius`.
        progress: show progress bars over the samples.

    Returns:
        A `RadiusBracket`; ``.raise_if_crossed()`` tells what must not be.

    Example:
        >>> bracket = al.radius_bracket(model, x, y, eps_max=0.5)
        >>> bracket.attacked - bracket.certified < 1e-3  # a linear network's bounds are exact
        tensor([True])
    """
    check_budget(steps=steps, restarts=restarts, seed=seed, batch_size=batch_size)
    settings = SearchSettings(bound, merged, domain, sound, time_limit=time_limit)
    model, x, y = check_samples(model, x, y, domain)
    effort = {"steps": steps, "restarts": restarts, "seed": seed, "domain": domain}
    if bound == EXACT:
        from acertlab.radius.exact.radii import ExactSettings, exact_radii  # scipy's solver, when it is asked for

        exactly = ExactSettings(domain, time_limit, steps=steps, restarts=restarts, seed=seed, progress=progress)
        certificate, attack = exact_radii(model, x, y, eps_max, exactly)
    else:
        certificate = find_radii(model, x, y, eps_max, settings, chunks=Chunks(progress=progress))
        attack = attacked_radius(model, x, y, eps_max, batch_size=batch_size, progress=progress, **effort)
    rows = (certificate.radius > 0).nonzero().squeeze(1)

    def attack_there(part: slice) -> tuple[Tensor, Tensor]:
        index = rows[part]
        eps = rounded(certificate.radius[index], x.dtype, -torch.inf)
        return pgd(model, x[index], y[index], eps, start=attack.x_adv[index], **effort)

    found = in_chunks(attack_there, len(rows), batch_size, desc="attacks at the certified radii", progress=progress)
    point, margin = (torch.cat(column) for column in zip(*found, strict=True))
    spent = 1 + (restarts + 1) * (steps + 1)
    return RadiusBracket(certificate, attack.with_witnesses(x, rows, point, margin, spent, domain))


def exact_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps_max: float | str,
    *,
    domain: DomainLike = (0.0, 1.0),
    time_limit: float = 60.0,
    gap: float = 1e-4,
    steps: int = 6,
    restarts: int = 4,
    seed: int = 0,
    progress: bool = False,
) -> RadiusBracket:
    """The robust radius of small piecewise linear networks: the least eps at which some class reaches the true one.

    A mixed-integer program for each class that may reach it below the best witness so far, the attack's to begin with,
    solved by HiGHS. Networks of affine operators, ReLU, LeakyReLU, max, max and average pooling, residual sums and
    BatchNorm; some tens of ReLUs that may be on or off within the box take a second, hundreds do not end.

    Args:
        model, x, y, eps_max, domain: as in `acertlab.certified_radius`.
        time_limit: seconds of the solver for each sample.
        gap: relative width of the bracket at which the solver may stop.
        steps, restarts, seed: of the attack, as in `attacked_radius`.
        progress: show progress bars over the samples.

    Returns:
        A `RadiusBracket`. ``certified`` is the solver's own bound: certified only as far as its tolerances (1e-6)
        allow, which status SOLVED says. ``attacked`` is the distance of an input that the model itself was seen to
        classify otherwise. Where the time ran out (TIME_LIMIT) the truth is somewhere in between.

    Raises:
        TypeError: an operator that is not piecewise linear; the message names it and what is accepted.
        ValueError: too many ReLUs.

    Source: Tjeng, Xiao, Tedrake 2019 (MIPVerify).

    Example:
        >>> al.exact_radius(model, x, y, eps_max=0.5).certified
        tensor([0.2500])
    """
    check_budget(steps=steps, restarts=restarts, seed=seed)
    from acertlab.radius.exact.radii import ExactSettings, exact_radii

    settings = ExactSettings(domain, time_limit, gap, steps, restarts, seed, progress)
    return RadiusBracket(*exact_radii(model, x, y, eps_max, settings))
