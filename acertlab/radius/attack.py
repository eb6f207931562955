"""The robust radius from above: PGD, and the smallest distance at which it succeeded.

A witness is an input that the model was *seen* to classify otherwise (or to tie), with its exact distance: whoever
doubts it needs one forward pass.

Source: Madry et al. 2018 (PGD); Gowal et al. 2019, "An Alternative Surrogate Loss" (other classes as targets).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from acertlab._memory import in_chunks
from acertlab._validation import Within, check
from acertlab.bounds.box import Domain, DomainLike, check_eps, distance, inner_ball, per_sample
from acertlab.bounds.checks import check_samples, full_precision
from acertlab.bounds.margin import clean_logits, clean_margin
from acertlab.radius.rootfind.brent import brentq
from acertlab.radius.search import AT_LEAST_ONE, checked_limit

ANY_CLASS = -1  # a target that stands for whichever class is closest
LAST_STEP = 0.05  # the last step of an ascent, relative to its first


@dataclass(frozen=True)
class AttackResult:
    """The smallest perturbations found, (B,) each; upper bounds of the robust radius, not certificates.

    Attributes:
        radius: l_inf distance of ``x_adv`` from x in pixel units, rounded up to x's dtype; 0 where x itself is
            misclassified or tied; inf where no attack succeeded up to eps_max (NaN logits are no success).
        x_adv: (B, ...) the witness; x where there is none.
        margin: max_{i != y} z_i - z_y as evaluated at ``x_adv``: >= 0, or the clean margin where there is no witness.
        evaluations: int64, forward passes spent on the sample; nearly all of them with a backward pass.

    Example:
        >>> model(al.attacked_radius(model, x, y, eps_max=0.5).x_adv).argmax(1) == y
        tensor([False])
    """

    radius: Tensor
    x_adv: Tensor
    margin: Tensor
    evaluations: Tensor

    def with_witnesses(
        self,
        x: Tensor,
        index: Tensor,
        point: Tensor,
        margin: Tensor,
        spent: int,
        domain: DomainLike,
        *,
        closer_only: bool = True,
    ) -> "AttackResult":
        """Also with points for the samples ``index`` of x, where they are closer; each took ``spent`` passes."""
        away = distance(point, x[index].detach(), domain)
        take = (margin >= 0) & ((away < self.radius[index]) | (not closer_only))
        at = (index[take],)
        return AttackResult(
            radius=self.radius.index_put(at, away[take]),
            x_adv=self.x_adv.index_put(at, point[take]),
            margin=self.margin.index_put(at, margin[take]),
            evaluations=self.evaluations.index_add(0, index, torch.full_like(index, spent)),
        )


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    *,
    steps: int = 40,
    restarts: int = 3,
    step_size: float = 1.0,
    domain: DomainLike = (0.0, 1.0),
    seed: int = 0,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Ascent of the margin max_{i != y} z_i - z_y in the l_inf ball by its gradient's sign (PGD, Madry et al. 2018).

    The first ascent starts at x and climbs the margin. Restart k starts at a random point and pushes the class of rank
    k + 1, by its clean logit: at equal cost that finds more than climbing the same margin again.

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes); left exactly as it was, gradients included.
        x: (B, ...) inputs in pixel units, inside ``domain``, of the model's dtype.
        y: (B,) integer labels.
        eps: radius in pixel units, >= 0: a float, or (B,).
        steps: gradients an ascent takes, >= 1.
        restarts: ascents, >= 1, the one from x included.
        step_size: first step relative to eps, > 0; the steps shrink geometrically to a twentieth of it. With 1.0
            six steps or more can cross the ball.
        domain: (low, high) of valid pixels, None, or an `acertlab.Domain`, whose eps_scale steps and distances know.
        seed: of the random starts; the global generators are neither read nor changed.
        start: (B, ...) one more point to start from (cut to the ball), such as an earlier witness; climbs the margin.

    Returns:
        x_adv (B, ...), the best point evaluated, inside the domain and no further from x than eps, exactly; and its
        margin (B,): >= 0 is a success; NaN where no logits but NaN were seen.

    Example:
        >>> al.pgd(model, x, y, eps=0.3)
        (tensor([[0.5000, 0.4000]]), tensor([0.1000]))
    """
    check_budget(steps=steps, restarts=restarts, step_size=step_size, seed=seed)
    model, x, y = check_samples(model, x, y, domain)
    eps = torch.as_tensor(check_eps(eps, x), dtype=x.dtype, device=x.device).expand(len(x))
    if start is not None and (not isinstance(start, Tensor) or start.shape != x.shape or start.dtype != x.dtype):
        raise ValueError(f"start: must be a tensor like x, of shape {tuple(x.shape)} and {x.dtype}")
    with _attacking(x, y) as (x, y):
        ascent = _Ascent(model, domain, steps, step_size)
        logits = clean_logits(model, x)
        best, margin = x.clone(), clean_margin(logits, y)
        generator = torch.Generator().manual_seed(seed)
        reach = _reach(x, eps, domain)
        starts = [x + reach * _noise(x, generator, restart) for restart in range(restarts)]
        runs = list(zip(starts, _targets(logits, y, restarts), strict=True))
        runs += [] if start is None else [(start.detach().clone(), torch.full_like(y, ANY_CLASS))]
        for begin, target in runs:
            point, value = ascent(x, y, eps, begin, target)
            better = (value > margin) | (margin.isnan() & ~value.isnan())
            best[better], margin[better] = point[better], value[better]
    return best, margin


def adversarial_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    steps: int = 40,
    restarts: int = 3,
    step_size: float = 1.0,
    domain: DomainLike = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> float:
    """Share of samples still classified correctly under `pgd` at eps; pooled. An upper bound of the robust accuracy.

    Args:
        model, x, y, eps: as in `pgd`; at least one sample. A tie or NaN is a mistake, as in `acertlab.accuracy`.
        steps, restarts, step_size, domain, seed: as in `pgd`.
        batch_size: samples attacked at once.
        progress: show a progress bar over the samples.

    Example:
        >>> al.adversarial_accuracy(model, x, y, eps=0.2), al.adversarial_accuracy(model, x, y, eps=0.3)
        (1.0, 0.0)
    """
    check_budget(batch_size=batch_size)
    model, x, y = check_samples(model, x, y, domain)
    radius = torch.as_tensor(check_eps(eps, x), dtype=x.dtype, device=x.device).expand(len(x))
    if not len(x):
        raise ValueError("x: holds no samples, of which a share could be taken")
    attack = partial(pgd, model, steps=steps, restarts=restarts, step_size=step_size, domain=domain, seed=seed)

    def survivors(part: slice) -> int:
        return int((attack(x[part], y[part], radius[part])[1] < 0).sum())

    return sum(in_chunks(survivors, len(x), batch_size, desc="attacks", progress=progress)) / len(x)


def attacked_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps_max: float | str,
    *,
    steps: int = 6,
    restarts: int = 4,
    step_size: float = 1.0,
    domain: DomainLike = (0.0, 1.0),
    xtol: float = 1e-6,
    rtol: float = 1e-3,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> AttackResult:
    """The smallest l_inf distance, up to eps_max, at which an attack succeeded: an upper bound of the robust radius.

    Brent's method on the best margin that PGD finds at eps, for all samples at once, each ascent starting in the
    direction of the last success. Restart k pushes another class (see `pgd`), first almost a tolerance below the
    smallest distance so far; only where that succeeds the search goes on there. Knows nothing of any certificate.

    Args:
        model, x, y, domain: as in `pgd`; any B, worked through in chunks.
        eps_max: largest distance of interest in pixel units, > 0.
        steps, step_size, seed: of every ascent, as in `pgd`.
        restarts: searches, >= 1.
        xtol, rtol: absolute (pixel units) and relative tolerance of the search; a stronger attack may find less still.
        batch_size: samples searched at once.
        progress: show a progress bar over the samples.

    Example:
        >>> round(al.attacked_radius(model, x, y, eps_max=0.5).radius.item(), 2)
        0.25
    """
    check_budget(steps=steps, restarts=restarts, step_size=step_size, seed=seed, batch_size=batch_size)
    eps_max = checked_limit(eps_max, domain)
    for name, value in (("xtol", xtol), ("rtol", rtol)):
        check(name, value, Within(0, open_low=True))
    model, x, y = check_samples(model, x, y, domain)
    generator = torch.Generator().manual_seed(seed)
    ascent = _Ascent(model, domain, steps, step_size)

    def attack(part: slice) -> AttackResult:
        with _attacking(x[part], y[part]) as (xs, ys):
            search = _Search(ascent, xs, ys, eps_max, xtol, rtol)
            search.run(restarts, generator)
            return search.found

    parts = in_chunks(attack, len(x), batch_size, desc="attacked radii", progress=progress)
    return AttackResult(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})


@dataclass(frozen=True)
class _Ascent:
    """Sign-gradient ascent with shrinking steps."""

    model: nn.Module
    domain: DomainLike
    steps: int
    step_size: float

    def __call__(self, x: Tensor, y: Tensor, eps: Tensor, start: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The best of steps + 1 points, and its margin: (B, ...), (B,); ``eps`` and ``target`` are (B,)."""
        lower, upper = inner_ball(x, eps, self.domain)
        size = _reach(x, eps * self.step_size, self.domain)
        shrink = LAST_STEP ** (1 / max(1, self.steps - 1))
        point = best = start.clamp(lower, upper)
        margin, gradient = self._margin_and_gradient(point, y, target)
        for step in range(1, self.steps + 1):
            point = (point + size * shrink ** (step - 1) * gradient.sign()).clamp(lower, upper)
            if step < self.steps:
                value, gradient = self._margin_and_gradient(point, y, target)
            else:
                value = clean_margin(clean_logits(self.model, point), y)
            better = (value > margin) | (margin.isnan() & ~value.isnan())
            margin = torch.where(better, value, margin)
            best = torch.where(per_sample(better, x), point, best)
        return best, margin

    def _margin_and_gradient(self, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The margin at x, (B,), and the gradient there of the target's own margin, (B, ...)."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = clean_logits(self.model, leaf)
            margin = clean_margin(logits, y)
            margins = logits - logits.gather(1, y.unsqueeze(1))
            pushed = margins.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
            goal = torch.where(target == ANY_CLASS, margin, pushed).sum()
            gradient = torch.autograd.grad(goal, leaf, allow_unused=True)[0] if goal.requires_grad else None
        if gradient is None:
            raise ValueError("model: its logits carry no gradient of x, so PGD cannot climb (torch.no_grad, detach?)")
        return margin.detach(), gradient.nan_to_num(0.0)


class _Search:
    """The search for the closest witness of every sample of one chunk, and what it has found so far."""

    def __init__(self, ascent: _Ascent, x: Tensor, y: Tensor, eps_max: float, xtol: float, rtol: float) -> None:
        self.ascent, self.x, self.y, self.xtol, self.rtol = ascent, x, y, xtol, rtol
        self.eps_max = torch.tensor(eps_max, dtype=x.dtype, device=x.device)
        self.logits = clean_logits(ascent.model, x)
        self.clean = clean_margin(self.logits, y)
        radius = torch.where(self.clean >= 0, 0.0, torch.inf).to(x.dtype)
        self.found = AttackResult(radius, x, self.clean, torch.ones_like(y))
        self.direction = torch.zeros_like(x)  # of the last success, or where to begin

    def run(self, restarts: int, generator: torch.Generator) -> None:
        correct = (self.clean < 0).nonzero().squeeze(1)
        if not len(correct):
            return
        for restart, target in enumerate(_targets(self.logits, self.y, restarts)):
            self.direction = _noise(self.x, generator, restart)
            # 0.7: with what `settle` may add, the whole stays within one tolerance
            cap = torch.minimum(self.found.radius * (1 - 0.7 * self.rtol) - 0.7 * self.xtol, self.eps_max)
            index = correct[cap[correct] > 0]
            value = self.attack(cap[index], index, target[index])
            hit = value > 0
            index, b = index[hit], cap[index[hit]]
            zero, args, fa, fb = torch.zeros_like(b), (index, target[index]), self.clean[index], value[hit]
            brentq(self.attack, zero, b, args=args, fa=fa, fb=fb, xtol=self.xtol / 2, rtol=self.rtol / 2, maxiter=50)
        self.settle()

    def attack(self, eps: Tensor, index: Tensor, target: Tensor) -> Tensor:
        """The best margin that an ascent finds at ``eps``, as the solver sees it: finite, > 0 for a witness."""
        if not len(index):
            return eps
        x, direction = self.x[index], self.direction[index]
        info = torch.finfo(x.dtype)
        length = direction.flatten(1).abs().amax(1).clamp(min=info.tiny)
        start = x + direction / per_sample(length, x) * _reach(x, eps, self.ascent.domain)
        point, value = self.ascent(x, self.y[index], eps, start, target)
        hit = value >= 0
        moved, scale = point - x, Domain.of(self.ascent.domain).ends(x).scale
        moved = moved if scale is None else torch.where(scale > 0, moved / scale, 0.0)  # for each unit of eps
        self.direction[index[hit]] = moved[hit]  # else the last success is the better guide
        spent = self.ascent.steps + 1
        self.found = self.found.with_witnesses(self.x, index, point, value, spent, self.ascent.domain)
        value = torch.nan_to_num(value, nan=info.min / 4, posinf=info.max / 4, neginf=info.min / 4)
        return torch.where(value == 0, info.tiny, value)

    def settle(self) -> None:
        """Moves witnesses whose margin rounding could turn, in another batch, a quarter of the tolerance outwards."""
        scale, found, domain = self.logits.abs().amax(1), self.found, self.ascent.domain
        index = ((found.margin < 64 * torch.finfo(scale.dtype).eps * scale) & (found.radius > 0)).nonzero().squeeze(1)
        index = index[found.radius[index].isfinite()]
        if len(index):
            x, radius = self.x[index], found.radius[index]
            further = torch.minimum(radius * (1 + self.rtol / 4) + self.xtol / 4, self.eps_max)
            lower, upper = inner_ball(x, further, domain)
            stretch = per_sample(further / radius, x)
            point = (x + (found.x_adv[index] - x) * stretch).clamp(lower, upper)
            value = clean_margin(clean_logits(self.ascent.model, point), self.y[index])
            value = torch.where(value > found.margin[index], value, -torch.inf)
            self.found = found.with_witnesses(self.x, index, point, value, 1, domain, closer_only=False)


@contextmanager
def _attacking(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """x and int64 y of their own, in full precision, without graph; gradients can be taken even in inference mode."""
    with torch.inference_mode(False), torch.no_grad(), full_precision(x.device):
        yield x.detach().clone(), y.long().clone()


def _noise(x: Tensor, generator: torch.Generator, restart: int) -> Tensor:
    """Uniform in [-1, 1], like x; zeros for restart 0, which begins at x. Drawn on the CPU: the same on any device."""
    if restart == 0:
        return torch.zeros_like(x)
    return (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1).to(x.device)


def _targets(logits: Tensor, y: Tensor, restarts: int) -> list[Tensor]:
    """The class to push in each restart, (B,): any, then the second by its clean logit, the third, ..., and again."""
    ranked = logits.scatter(1, y.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranked = ranked[ranked != y.unsqueeze(1)].view(len(y), logits.shape[1] - 1)  # NaN and -inf may rank anywhere
    pushed = [ranked[:, restart % ranked.shape[1]] for restart in range(1, restarts)]
    return [torch.full_like(y, ANY_CLASS), *pushed]


def _reach(x: Tensor, eps: Tensor, domain: DomainLike) -> Tensor:
    """How far each number of x may move at eps, (B,)."""
    scale, reach = Domain.of(domain).ends(x).scale, per_sample(eps, x)
    return reach if scale is None else reach * scale


def check_budget(**numbers: float) -> None:
    """Refuses steps, restarts, batch_size, seed and step_size that are none."""
    accepted = {"seed": Within(0, kind=int), "step_size": Within(0, open_low=True)}
    for name, value in numbers.items():
        check(name, value, accepted.get(name, AT_LEAST_ONE))
