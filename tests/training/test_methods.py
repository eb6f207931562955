"""Each objective against an independent computation: plain tensors, layer by layer, BatchNorm by the clean batch."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from acertlab.bounds.box import Box, ball
from acertlab.bounds.crown.auto_lirpa import AutoLirpaNetwork
from acertlab.bounds.crown.crown_ibp import crown_ibp_margins
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.ibp import freeze
from acertlab.models.architectures import MODELS
from acertlab.training.config import TrainConfig
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.methods.acert import ACERT, BRACKET, ACERTFast
from acertlab.training.methods.adversarial import ACERTMTLIBP, ACERTSABR, CCIBP, MTLIBP, SABR, ExpIBP
from acertlab.training.methods.base import Standard, Step
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.methods.ibp import CROWNIBP, IBP, FastIBP
from acertlab.training.methods.pgd import RULES, training_attack
from acertlab.training.methods.regularisers import box_sums, l1_norm, regulariser, relu_balance, tightness
from acertlab.training.schedules import linear_ramp, smooth_ramp

STD = 0.5


class Scaled(nn.Conv2d):
    """A fixed 1x1 convolution: division by STD, as a normalisation would do."""

    def __init__(self) -> None:
        super().__init__(1, 1, 1, bias=False)
        self.weight = nn.Parameter(torch.full((1, 1, 1, 1), 1 / STD), requires_grad=False)


def mlp() -> nn.Sequential:
    hidden = [nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU()]
    return nn.Sequential(Scaled(), nn.Flatten(), *hidden, nn.Linear(8, 4))


def cnn() -> nn.Sequential:
    body = [Scaled(), nn.Conv2d(1, 4, 3, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(36, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4))


def setup(build, seed=0, batch=12):
    """A network in training mode whose labels are mostly its own predictions, in float64."""
    torch.manual_seed(seed)
    model = build().double().train()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
    x = torch.rand(batch, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        statistics_safe = {k: v.clone() for k, v in model.state_dict().items()}
        y = model(x).argmax(1)
        model.load_state_dict(statistics_safe)
    y[:3] = (y[:3] + 1) % 4  # misclassified
    return model, x, y


def step_of(model, x, y, eps) -> Step:
    graph = graph_of(model, x)

    def own_pass(x):
        logits, statistics = clean_pass(model, x)
        return logits, freeze(model, statistics, graph)

    return Step(x, y, *own_pass(x), eps, STD, model=model, own_pass=own_pass)


def reference(model, x, y, radii, merged, centre=None, seen=None, shrinkage=0.0):
    """Worst-case margins (B, 4), the boxes at the ReLUs, and d0 at the normalised input: by the definition.

    The boxes are around ``centre``, BatchNorm has the statistics of ``seen``; both x where they are None.
    """
    eps, centre = radii.view(-1, 1, 1, 1), x if centre is None else centre
    lower, upper, clean = (centre - eps).clamp(min=0), (centre + eps).clamp(max=1), x if seen is None else seen
    relus, margins = [], None
    for layer in model:
        c, r = (lower + upper) / 2, (upper - lower) / 2
        if isinstance(layer, nn.Conv2d):
            c = F.conv2d(c, layer.weight, layer.bias, layer.stride, layer.padding)
            r = F.conv2d(r, layer.weight.abs(), None, layer.stride, layer.padding)
            lower, upper = c - r, c + r
        elif layer is model[-1]:
            if merged:
                w = layer.weight[None] - layer.weight[y][:, None]  # (B, 4, in)
                margins = torch.einsum("bki,bi->bk", w, c) + torch.einsum("bki,bi->bk", w.abs(), r)
                margins = margins + layer.bias[None] - layer.bias[y][:, None]
            else:
                c, r = F.linear(c, layer.weight, layer.bias), F.linear(r, layer.weight.abs())
                margins = (c + r) - (c - r).gather(1, y[:, None])
                margins = margins.scatter(1, y[:, None], 0.0)
        elif isinstance(layer, nn.Linear):
            c, r = F.linear(c, layer.weight, layer.bias), F.linear(r, layer.weight.abs())
            lower, upper = c - r, c + r
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            dims = (0, 2, 3) if clean.dim() == 4 else (0,)
            shape = (1, -1, 1, 1) if clean.dim() == 4 else (1, -1)
            mean, var = clean.mean(dims), clean.var(dims, unbiased=False)
            scale = (layer.weight / (var + layer.eps).sqrt()).view(shape)
            shift = layer.bias.view(shape) - scale * mean.view(shape)
            c, r = c * scale + shift, r * scale.abs()
            lower, upper = c - r, c + r
        elif isinstance(layer, nn.ReLU):
            relus.append((lower, upper))
            upper = torch.where((lower < 0) & (upper > 0), upper * (1 - shrinkage), upper)
            lower, upper = lower.clamp(min=0), upper.clamp(min=0)
        else:
            lower, upper = lower.flatten(1), upper.flatten(1)
        if layer is not model[-1]:
            clean = F.relu(clean) if isinstance(layer, nn.ReLU) else layer(clean)
    d0 = ((centre + eps).clamp(max=1) - (centre - eps).clamp(min=0)).mean() / 2 / STD
    return margins, relus, d0


def reference_regulariser(relus, d0, tau=0.5):
    """Shi et al. 2021, as NUMERICS writes it."""
    tight, balance = 0.0, 0.0
    for lower, upper in relus:
        c, d = (lower + upper) / 2, ((upper - lower) / 2).mean()
        tight = tight + F.relu(tau - d0 / d.clamp(min=1e-12)) / tau
        on, off = (lower > 0).double(), (upper < 0).double()
        r_mean = (c * on).mean() / -(c * off).mean()
        r_var = ((c - c.mean()) ** 2 * on).sum() / ((c - c.mean()) ** 2 * off).sum()
        term = sum(F.relu(tau - torch.minimum(r, 1 / r)) / tau for r in (r_mean, r_var))
        balance = balance + (term if torch.isfinite(term) else 0.0)
    return (tight + balance) / len(relus)


def gradients(loss, model):
    wanted = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, wanted, allow_unused=True)


def assert_same(model, loss, expected):
    assert torch.allclose(loss, expected, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(gradients(loss, model), gradients(expected, model), strict=True):
        ours, theirs = (0.0 if g is None else g for g in (ours, theirs))
        assert torch.allclose(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=1e-6, atol=1e-10)


solvers = pytest.mark.parametrize("solver", ["log-secant", "brentq", "chandrupatla"])
both = pytest.mark.parametrize("build", [mlp, cnn])


@both
def test_standard_is_cross_entropy(build):
    model, x, y = setup(build)
    loss, logged = Standard()(Step(x, y, model(x), None, 0.1))
    assert_same(model, loss, F.cross_entropy(model(x), y))
    assert not logged.radii.radius.any()
    assert not logged.clean.requires_grad


@both
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_ibp(build, merged, kappa):
    model, x, y = setup(build)
    loss, logged = IBP(kappa=kappa, merged=merged)(step_of(model, x, y, 0.03))
    margins, _, _ = reference(model, x, y, torch.full_like(x[:, 0, 0, 0], 0.03), merged)
    assert_same(model, loss, kappa * F.cross_entropy(model(x), y) + (1 - kappa) * F.cross_entropy(margins, y))
    assert (logged.radii.radius == 0.03).all()
    assert torch.allclose(logged.robust, F.cross_entropy(margins, y))


@both
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.1, 0.2])
def test_fast_ibp_regularises_until_the_ramp_ends(build, eps):
    model, x, y = setup(build)
    loss, logged = FastIBP(kappa=0.2, eps_max=0.2, lambda0=0.5)(step_of(model, x, y, eps))
    margins, relus, d0 = reference(model, x, y, torch.full_like(x[:, 0, 0, 0], max(eps, 1e-6)), True)
    clean = F.cross_entropy(model(x), y)
    robust = F.cross_entropy(margins, y) if eps > 0 else clean
    weight = 0.5 * (1 - eps / 0.2)
    regulariser = reference_regulariser(relus, d0) if weight > 0 else torch.zeros((), dtype=torch.float64)
    assert_same(model, loss, 0.2 * clean + 0.8 * robust + weight * regulariser)
    assert torch.allclose(logged.regulariser, weight * regulariser)
    if eps < 0.2:
        assert logged.regulariser > 0


@both
def test_acert_fast_gives_misclassified_samples_the_clean_loss(build):
    model, x, y = setup(build)
    loss, logged = ACERTFast(eps_max=0.05)(step_of(model, x, y, 0.05))
    radii = torch.where(model(x).argmax(1) == y, torch.full_like(x[:, 0, 0, 0], 0.05), 0.0)
    assert (radii[:3] == 0).all()
    assert torch.equal(logged.radii.radius, radii)
    margins, _, _ = reference(model, x, y, radii, True)
    assert_same(model, loss, F.cross_entropy(margins, y))
    at_zero = F.cross_entropy(margins, y, reduction="none")[:3]
    assert torch.allclose(at_zero, F.cross_entropy(model(x), y, reduction="none")[:3])


def tolerance(solver, radii, eps):
    """By how much the radii of a training step may be off."""
    return BRACKET * eps if solver == "log-secant" else 1e-3 * radii + 1e-5


@both
@pytest.mark.parametrize("kappa", [0.0, 0.25])
@pytest.mark.parametrize("merged", [True, False])
@solvers
def test_acert_bounds_each_sample_at_its_own_radius(build, kappa, merged, solver):
    model, x, y = setup(build)
    eps = 0.05
    objective = ACERT(kappa=kappa, merged=merged, eps_max=eps, solver=solver, root_iterations=60)
    loss, logged = objective(step_of(model, x, y, eps))
    radii = logged.radii.radius
    assert (radii[:3] == 0).all()
    assert ((radii[3:] > 0) & (radii[3:] <= eps)).all()
    inside = (radii > 0) & (radii < eps)
    assert inside.any()

    def worst(at):
        margins, _, _ = reference(model, x, y, at, merged)
        return margins.scatter(1, y[:, None], -math.inf).amax(1)

    away = tolerance(solver, radii, eps)
    assert (worst((radii - away).clamp(min=0))[inside] < 0).all()  # the root, to the training tolerance
    assert (worst(radii + away)[inside] > 0).all()
    assert (worst(radii)[radii == eps] < 0).all()
    margins, _, _ = reference(model, x, y, radii, merged)
    clean = F.cross_entropy(model(x), y)
    assert_same(model, loss, kappa * clean + (1 - kappa) * F.cross_entropy(margins, y))  # no gradient through radii


def test_acert_regularises_at_its_own_radii():
    model, x, y = setup(cnn)
    loss, logged = ACERT(eps_max=0.4, lambda0=0.5)(step_of(model, x, y, 0.05))
    margins, relus, d0 = reference(model, x, y, logged.radii.radius.clamp(min=1e-6), True)
    assert_same(model, loss, F.cross_entropy(margins, y) + 0.5 * (1 - 0.05 / 0.4) * reference_regulariser(relus, d0))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "standard"])
def test_at_eps_zero_the_robust_term_is_the_clean_loss(method):
    model, x, y = setup(cnn)
    objective = TrainConfig(method=method, kappa=0.3, lambda0=0.0).objective()
    loss, logged = objective(step_of(model, x, y, 0.0))
    assert_same(model, loss, F.cross_entropy(model(x), y))
    assert not logged.radii.radius.any()


# ---- successors


def pgd(model, x, y, eps, steps, size, rule="last"):
    """PGD in plain loops, with the global generator's noise; the model in evaluation mode."""
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    width = upper - lower
    middle = x if rule in ("mueller", "mao") else lower + width / 2
    points, losses, wrong = [middle + (torch.rand_like(x) - 0.5) * width], [], []
    model.eval()
    for step in range(steps + 1):
        point = points[-1].clone().requires_grad_()
        logits = model(point)
        losses.append(F.cross_entropy(logits, y, reduction="none"))
        wrong.append(logits.argmax(1) != y)
        falls = (step / steps >= 0.5) + (step / steps >= 0.8) + (step / steps >= 0.9)
        falling = {"last": eps * 0.1**falls, "mueller": width.max() / 2 * 0.1**falls}
        scale = (falling | {"mao": width.max() / 2, "de-palma": width / 2})[rule]
        move = scale * size * torch.autograd.grad(losses[-1].sum(), point)[0].sign()
        points.append(torch.maximum(torch.minimum(point.detach() + move, upper), lower))
    model.train()
    if rule == "last" or (rule == "de-palma" and steps == 1):
        return points[steps]
    so_far = torch.stack(wrong).cumsum(0) > 0
    ended = next((i for i in range(steps) if so_far[i].all()), steps)
    chosen = []
    for i in range(len(x)):
        own = [loss[i].item() for loss in losses]
        if rule == "de-palma":
            k = max(range(steps + 1), key=lambda j, own=own: (own[j], j))
        else:
            k = ended if so_far[ended, i] else max(range(steps), key=own.__getitem__)
        chosen.append(points[k][i])
    return torch.stack(chosen)


@both
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("steps", "size"), [(1, 10.0), (8, 0.5), (10, 0.25)])
def test_the_attack_is_pgd_and_leaves_the_model_alone(build, steps, size, rule):
    model, x, y = setup(build)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    found = training_attack(model, x, y, 0.1, rule=rule, steps=steps, step_size=size)
    torch.manual_seed(3)
    assert torch.allclose(found, pgd(model, x, y, 0.1, steps, size, rule), rtol=0, atol=1e-15)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters()) and not found.requires_grad
    assert ((found - x).abs() <= 0.1 + 1e-12).all()
    assert rule in ("mueller", "mao") or (found.min() >= 0 and found.max() <= 1)  # whose start may leave the domain
    model.eval()
    assert F.cross_entropy(model(found), y) > F.cross_entropy(model(x), y)


@pytest.mark.parametrize("rule", ["mueller", "de-palma"])
def test_the_attack_keeps_what_misclassifies_or_the_largest_loss(rule):
    """Steps so large that they jump to and fro: the last point is not the best."""
    model, x, y = setup(cnn)
    torch.manual_seed(3)
    kept = training_attack(model, x, y, 0.1, rule=rule, steps=7, step_size=1.7)
    torch.manual_seed(3)
    last = pgd(model, x, y, 0.1, 7, 1.7, "last")
    model.eval()
    kept, last = (F.cross_entropy(model(at), y, reduction="none") for at in (kept, last))
    assert (kept > last + 1e-3).any()


def test_the_attack_ends_where_the_whole_batch_is_misclassified():
    model, x, _ = setup(mlp)
    y = (model(x).argmax(1) + 1) % 4
    torch.manual_seed(3)
    start = x + (torch.rand_like(x) - 0.5) * ((x + 0.01).clamp(max=1) - (x - 0.01).clamp(min=0))
    assert (model(start).argmax(1) != y).all()
    torch.manual_seed(3)
    assert torch.equal(training_attack(model, x, y, 0.01, rule="mueller"), start)


def loss_and_attack(objective, model, x, y, eps):
    """The loss of one step, and the x_adv that its attack must have found."""
    step = step_of(model, x, y, eps)
    rule = objective.authors_attack if objective.attack == "authors" else "last"
    attack = objective.attack_eps_factor * eps, objective.attack_steps, objective.attack_step_size, rule
    as_attacked = copy.deepcopy(model)  # a pass over x_adv changes the running statistics
    torch.manual_seed(5)
    loss, logged = objective(step)
    torch.manual_seed(5)
    return loss, logged, pgd(as_attacked, x, y, *attack)


@both
@pytest.mark.parametrize("eps", [0.02, 0.1])
@pytest.mark.parametrize("attack", ["authors", "last"])
@pytest.mark.parametrize(
    ("border", "factor", "shrinkage"),
    [("inside", 1.0, 0.0), ("cut", 1.0, 0.0), ("inside", 2.0, 0.0), ("inside", 1.0, 0.2)],
)
def test_sabr_bounds_a_small_box_around_the_attack(build, eps, border, factor, shrinkage, attack):
    model, x, y = setup(build)
    settings = {"small_box_at_border": border, "attack_eps_factor": factor, "attack": attack}
    settings |= {"relu_shrinkage": shrinkage}
    objective = SABR(kappa=0.2, eps_max=0.1, small_box=0.3 / factor, lambda0=0.5, **settings)
    loss, logged, x_adv = loss_and_attack(objective, model, x, y, eps)
    whole, small = factor * eps, 0.3 * eps
    low, high = x - whole, x + whole
    if border == "inside":
        low, high = low.clamp(min=0), high.clamp(max=1)
    centre = torch.minimum(torch.maximum(x_adv, low + small), high - small)
    radii = torch.full_like(x[:, 0, 0, 0], 0.3 * eps)
    margins, relus, d0 = reference(model, x, y, radii, True, centre, shrinkage=shrinkage)
    weight = 0.5 * (1 - eps / 0.1)
    expected = 0.2 * F.cross_entropy(model(x), y) + 0.8 * F.cross_entropy(margins, y)
    assert_same(model, loss, expected + weight * reference_regulariser(relus, d0))
    assert (logged.radii.radius == eps).all()


def test_sabrs_box_at_the_border_of_the_image():
    """A black and a white pixel, lambda 0.6, eps 0.3, as the authors' code has them, and cut."""
    x, radii = torch.tensor([0.0, 1.0]).double().view(2, 1), torch.full((2,), 0.3).double()
    for border, black, white in (("inside", (0.0, 0.3), (0.64, 1.0)), ("cut", (0.0, 0.18), (0.82, 1.0))):
        box = SABR(small_box=0.6, small_box_at_border=border)._small(radii, x, x)
        assert box.lower.flatten().tolist() == pytest.approx([black[0], white[0]])
        assert box.upper.flatten().tolist() == pytest.approx([black[1], white[1]])


@both
@pytest.mark.parametrize("statistics", ["attacked", "clean"])
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("kind", [MTLIBP, CCIBP, ExpIBP])
def test_expressive_losses_mix_bounds_and_attack(build, kind, merged, statistics):
    model, x, y = setup(build)
    eps, a, kappa = 0.05, 0.3, 0.25
    attack = {"attack_steps": 1, "attack_step_size": 10.0, "batch_statistics": statistics}
    objective = kind(kappa=kappa, eps_max=eps, alpha=a, merged=merged, **attack)
    loss, logged, x_adv = loss_and_attack(objective, model, x, y, eps)
    seen = x_adv if statistics == "attacked" else x
    bounds, _, _ = reference(model, x, y, torch.full_like(x[:, 0, 0, 0], eps), merged, seen=seen)
    attacked, _, _ = reference(model, x, y, torch.zeros_like(x[:, 0, 0, 0]), merged, x_adv, seen)
    if statistics == "attacked":
        logits = model(x_adv)
        assert torch.allclose(attacked, logits - logits.gather(1, y[:, None]))
    ibp, adversarial = F.cross_entropy(bounds, y), F.cross_entropy(attacked, y)
    robust = {
        MTLIBP: a * ibp + (1 - a) * adversarial,
        CCIBP: F.cross_entropy(a * bounds + (1 - a) * attacked, y),
        ExpIBP: torch.exp(a * ibp.log() + (1 - a) * adversarial.log()),
    }[kind]
    assert_same(model, loss, kappa * F.cross_entropy(model(x), y) + (1 - kappa) * robust)
    assert torch.allclose(logged.robust, robust)


def test_the_ends_of_the_expressive_losses():
    model, x, y = setup(mlp)  # no running statistics, which the attack would see
    losses = {}
    for alpha in (0.0, 1.0):
        for kind in (MTLIBP, CCIBP, ExpIBP):
            losses[kind, alpha], _, _ = loss_and_attack(kind(eps_max=0.05, alpha=alpha), model, x, y, 0.05)
    ibp, _ = FastIBP(eps_max=0.05)(step_of(model, x, y, 0.05))
    assert all(torch.allclose(losses[kind, 1.0], ibp) for kind in (MTLIBP, CCIBP, ExpIBP))
    assert torch.allclose(losses[CCIBP, 0.0], losses[MTLIBP, 0.0])
    assert torch.allclose(losses[ExpIBP, 0.0], losses[MTLIBP, 0.0])
    assert losses[MTLIBP, 0.0] < ibp


@solvers
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize(("border", "shrinkage"), [("inside", 0.0), ("cut", 0.0), ("inside", 0.2)])
def test_acert_sabr_finds_the_root_of_the_small_box(merged, solver, border, shrinkage):
    model, x, y = setup(cnn)
    eps, share = 0.1, 0.4
    search = {"merged": merged, "solver": solver, "root_iterations": 60, "relu_shrinkage": shrinkage}
    objective = ACERTSABR(eps_max=eps, small_box=share, small_box_at_border=border, **search)
    loss, logged, x_adv = loss_and_attack(objective, model, x, y, eps)
    radii = logged.radii.radius

    def margins_at(radii):
        whole = radii.view(-1, 1, 1, 1)
        low, high = x - whole, x + whole
        if border == "inside":
            low, high = low.clamp(min=0), high.clamp(max=1)
        centre = torch.minimum(torch.maximum(x_adv, low + share * whole), high - share * whole)
        return reference(model, x, y, share * radii, merged, centre, shrinkage=shrinkage)[0]

    def worst(radii):
        return margins_at(radii).scatter(1, y[:, None], -math.inf).amax(1)

    inside = (radii > 0) & (radii < eps)
    assert (radii[:3] == 0).all() and inside.any()
    away = tolerance(solver, radii, eps)
    assert (worst((radii - away).clamp(min=0))[inside] < 0).all()
    assert (worst(radii + away)[inside] > 0).all()
    assert (worst(radii)[radii == eps] < 0).all()
    _, whole = ACERT(eps_max=eps, merged=merged, solver=solver, root_iterations=60)(step_of(model, x, y, eps))
    spread = 2 * BRACKET * eps if solver == "log-secant" else 1e-5
    assert (radii >= whole.radii.radius - spread).all()  # a small box lies in the whole ball
    assert_same(model, loss, F.cross_entropy(margins_at(radii), y))


def test_acert_mtl_ibp_is_acert_and_the_attack():
    model, x, y = setup(cnn)
    objective = ACERTMTLIBP(eps_max=0.05, alpha=0.6, root_iterations=60)
    loss, logged, x_adv = loss_and_attack(objective, model, x, y, 0.05)
    acert, searched = ACERT(eps_max=0.05, root_iterations=60)(step_of(model, x, y, 0.05))
    assert torch.allclose(logged.radii.radius, searched.radii.radius)
    attacked, _, _ = reference(model, x, y, torch.zeros_like(x[:, 0, 0, 0]), True, x_adv)
    assert_same(model, loss, 0.6 * acert + 0.4 * F.cross_entropy(attacked, y))


# ---- CROWN-IBP


def dense_crown(layers, lower, upper, boxes, row, offset):
    """The upper bound of row . features + offset, of one sample, with numpy and plain loops; layers: (W, b) each."""
    a, constant = row.copy(), offset
    for (weight, bias), box in zip(reversed(layers), reversed(boxes), strict=True):
        for j in range(len(a)):  # back through the ReLU
            low, high = box[0][j], box[1][j]
            if high <= 0:
                a[j] = 0.0
            elif low < 0:
                chord = high / (high - low)
                if a[j] > 0:
                    constant += a[j] * -chord * low
                    a[j] *= chord
                else:
                    a[j] *= 1.0 if high > -low else 0.0
        constant, a = constant + a @ bias, a @ weight
    return constant + np.sum(np.where(a > 0, a * upper, a * lower))


@pytest.mark.parametrize("beta_end", [0.0, 0.4])
@pytest.mark.parametrize("eps", [0.01, 0.05, 0.1])
def test_crown_ibp_mixes_the_linear_bound_with_ibp(eps, beta_end):
    model, x, y = setup(mlp)
    objective = CROWNIBP(kappa=0.1, eps_max=0.1, beta_end=beta_end)
    loss, _ = objective(step_of(model, x, y, eps))
    ibp, relus, _ = reference(model, x, y, torch.full_like(x[:, 0, 0, 0], eps), True)
    hidden = [
        (m.weight.detach().numpy(), m.bias.detach().numpy()) for m in list(model)[2:-1] if isinstance(m, nn.Linear)
    ]
    hidden[0] = (hidden[0][0] / STD, hidden[0][1])
    head, crown = model[-1], np.zeros((len(x), 4))
    for i in range(len(x)):
        low, high = (end.numpy().ravel() for end in ((x[i] - eps).clamp(min=0), (x[i] + eps).clamp(max=1)))
        boxes = [tuple(end[i].detach().numpy() for end in box) for box in relus]
        for k in set(range(4)) - {int(y[i])}:
            row = (head.weight[k] - head.weight[y[i]]).detach().numpy()
            crown[i, k] = dense_crown(hidden, low, high, boxes, row, (head.bias[k] - head.bias[y[i]]).item())
    beta = 1 - (1 - beta_end) * eps / 0.1
    robust = F.cross_entropy(beta * torch.tensor(crown) + (1 - beta) * ibp, y)
    assert torch.allclose(loss, 0.1 * F.cross_entropy(model(x), y) + 0.9 * robust, rtol=1e-9)
    assert (loss < FastIBP(kappa=0.1, eps_max=0.1)(step_of(model, x, y, eps))[0]) or beta == 0


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_crown_ibp_is_auto_lirpas(name, merged):
    torch.manual_seed(0)
    shape, sizes = ((3, 16, 16), {"width": 3, "linear": 8}) if name == "cnn7" else ((3, 8, 8), {"width": 4})
    model = MODELS[name](shape, 5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), **sizes)
    for _ in range(3):
        model(torch.rand(16, *shape))  # running statistics
    model.eval()
    x, y = torch.rand(6, *shape), torch.randint(0, 5, (6,))
    for eps in (0.003, 0.1):
        frozen, box, relus = freeze(model), ball(x, eps), []
        ibp = frozen.margins(box, y, merged=merged, relu_inputs=relus)
        ours = torch.minimum(ibp, crown_ibp_margins(frozen, box, y, relus, merged=merged))
        theirs = AutoLirpaNetwork(model, "crown-ibp").margins(box, y, merged=merged)
        assert (ours - theirs).abs().max() < 2e-6 * theirs.abs().max()
        assert (ours < ibp - 1e-3).any()


def test_crown_ibps_gradient_is_that_of_its_value():
    model, x, y = setup(cnn)
    weight = model[1].weight

    def value(shift):
        with torch.no_grad():
            weight.view(-1)[7] += shift
        loss, _ = CROWNIBP(eps_max=0.1, beta_end=1.0)(step_of(model, x, y, 0.03))
        with torch.no_grad():
            weight.view(-1)[7] -= shift
        return loss

    loss, _ = CROWNIBP(eps_max=0.1, beta_end=1.0)(step_of(model, x, y, 0.03))
    slope = torch.autograd.grad(loss, weight)[0].view(-1)[7]
    assert slope.item() == pytest.approx((value(1e-6) - value(-1e-6)).item() / 2e-6, rel=1e-4)


def test_crown_ibp_names_a_layer_it_cannot_go_back_through():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x, y = torch.rand(4, 1, 6, 6, dtype=torch.float64), torch.arange(4)
    with pytest.raises(TypeError, match="'tanh' in '2' of type Tanh"):
        CROWNIBP(eps_max=0.1)(step_of(model, x, y, 0.03))


def test_search_and_bounds_update_running_statistics_once():
    model, x, y = setup(cnn)
    twin = cnn().double().train()
    twin.load_state_dict(model.state_dict())
    twin(x)
    ACERT(eps_max=0.1)(step_of(model, x, y, 0.05))
    for (name, ours), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("eps", [0.0, 0.05])
@pytest.mark.parametrize("method", ["mtl-ibp", "cc-ibp", "exp-ibp", "sabr", "acert-mtl-ibp"])
@pytest.mark.parametrize("statistics", ["attacked", "clean"])
def test_attacked_statistics_are_counted_beside_the_clean_ones(method, statistics, eps):
    model, x, y = setup(cnn)
    twin = cnn().double().train()
    twin.load_state_dict(model.state_dict())
    objective = TrainConfig(method=method, batch_statistics=statistics, eps_max=0.1).objective()
    found = []
    step = step_of(model, x, y, eps)
    objective(replace(step, own_pass=lambda x: (found.append(x), step.own_pass(x))[1]))
    assert len(found) == (statistics == "attacked" and method in ("mtl-ibp", "cc-ibp", "exp-ibp"))
    for batch in (x, *found):
        twin(batch)
    for (name, ours), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(0 < (batch - x).abs().max() <= max(eps, 1e-6) + 1e-12 for batch in found)


def test_a_config_s_objective_has_every_field():
    config = TrainConfig(kappa=0.3, eps_max=0.1, lambda0=0.2, merged=False, domain=None, root_iterations=3, rtol=1e-3)
    assert config.objective() == ACERT(0.3, False, None, 0.1, 0.2, "log-secant", 1e-6, 1e-3, 3)
    assert {name for name, method in METHODS.items() if not method.objective.ibp_init} == {
        "standard",
        "ibp",
        "crown-ibp",
    }
    assert {name for name, method in METHODS.items() if method.objective.searches} == {
        "acert",
        "acert-sabr",
        "acert-mtl-ibp",
    }
    config = TrainConfig(small_box=0.7, alpha=0.2, attack_steps=3, attack_step_size=2.0, amp=True, eps_max=0.1)
    sabr = replace(config, method="acert-sabr").objective()
    assert (sabr.small_box, sabr.attack_steps, sabr.attack_step_size, sabr.amp, sabr.eps_max) == (
        0.7,
        3,
        2.0,
        True,
        0.1,
    )
    assert replace(config, method="mtl-ibp").objective().alpha == 0.2


# ---- regularisers


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.floats(0.01, 3.0), shift=st.floats(-1.0, 1.0), layers=st.integers(1, 3))
def test_regularisers_follow_their_formulas(seed, width, shift, layers):
    rng = np.random.default_rng(seed)
    sums, tight, balance, d0 = [], 0.0, 0.0, 0.1
    for _ in range(layers):
        c, r = rng.normal(shift, 1.0, (5, 7)), width * rng.uniform(0, 1, (5, 7))
        lower, upper = c - r, c + r
        sums.append(box_sums(torch.tensor(lower), torch.tensor(upper)))
        tight += max(0.0, 0.5 - d0 / max(r.mean(), 1e-12)) / 0.5
        with np.errstate(divide="ignore", invalid="ignore"):
            r_mean = np.mean(c * (lower > 0)) / -np.mean(np.where(upper < 0, c, 0.0))  # x / -0.0 where none is inactive
            r_var = np.sum((c - c.mean()) ** 2 * (lower > 0)) / np.sum((c - c.mean()) ** 2 * (upper < 0))
            ratios = [np.minimum(r, 1 / np.float64(r)) for r in (r_mean, r_var)]
        term = sum(np.maximum(0.0, 0.5 - r) / 0.5 for r in ratios)
        balance += term if np.isfinite(term) else 0.0
    assert tightness(sums, torch.tensor(d0, dtype=torch.float64)).item() == pytest.approx(tight / layers, rel=1e-9)
    assert relu_balance(sums).item() == pytest.approx(balance / layers, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.5, 1.0), (-1.0, -0.5)])  # unstable, all active, all inactive
def test_regularisers_have_finite_gradients_where_ratios_are_undefined(ends):
    lower = torch.full((4, 3), ends[0], requires_grad=True)
    upper = torch.full((4, 3), ends[1], requires_grad=True)
    total = regulariser([Box(lower, upper)], torch.tensor(0.01))
    total.backward()
    assert total.isfinite()
    assert lower.grad.isfinite().all()
    assert upper.grad.isfinite().all()


def test_an_undefined_layer_counts_zero_in_the_mean_over_all():
    even = box_sums(torch.tensor([[1.0, -1.2, 3.0, -9.0]]), torch.tensor([[1.2, -1.0, 3.2, -8.8]]))
    unstable = box_sums(-torch.ones(1, 4), torch.ones(1, 4))
    assert relu_balance([even, unstable]) == pytest.approx(relu_balance([even]).item() / 2)
    assert relu_balance([even]) > 0


def test_networks_without_relu_have_no_penalty():
    assert tightness([], torch.tensor(0.1)) == 0
    assert relu_balance([]) == 0


def test_l1_norm_counts_weights_only_or_all_that_is_trained():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    nn.init.constant_(model[0].weight, -0.5)
    nn.init.constant_(model[0].bias, 3.0)
    assert l1_norm(model).item() == 2.0
    assert l1_norm(model, "parameters").item() == 2.0 + 6.0 + 2.0  # the last are BatchNorm's weights of 1


# ---- ramps


@given(first=st.integers(0, 50), length=st.integers(1, 300), eps=st.floats(1e-3, 1.0))
@settings(deadline=None)
@pytest.mark.parametrize("ramp", [smooth_ramp, linear_ramp])
def test_ramps_rise_from_zero_to_eps(ramp, first, length, eps):
    last = first + length
    values = [ramp(t, first, last, eps) for t in range(last + 5)]
    assert not any(values[: first + 1])
    assert values[last:] == [eps] * 5
    assert all(a <= b + 1e-15 for a, b in pairwise(values))
    assert max(values) <= eps


def test_smooth_ramp_is_the_formula():
    first, last, eps, beta = 10, 110, 0.4, 4
    m = 35
    a = eps / ((last - m) * beta * (m - first) ** 3 + (m - first) ** 4)
    assert smooth_ramp(20, first, last, eps) == pytest.approx(a * 10**4)
    assert smooth_ramp(m, first, last, eps) == pytest.approx(a * 25**4)
    slope = smooth_ramp(61, first, last, eps) - smooth_ramp(60, first, last, eps)
    assert slope == pytest.approx(4 * a * 25**3)  # the linear part goes on with the slope of the power
    assert smooth_ramp(109, first, last, eps) == pytest.approx(eps - slope)


def test_no_ramp_is_a_step():
    for ramp in (smooth_ramp, linear_ramp):
        assert [ramp(t, 3, 3, 0.4) for t in (0, 2, 3, 4)] == [0.0, 0.0, 0.4, 0.4]
