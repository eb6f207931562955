"""TAPS and STAPS against plain tensors: the search, the gradient connector, the loss, and what lies between what."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.box import Box, ball
from acertlab.bounds.ibp import freeze
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.loop.train import train
from acertlab.training.methods.adversarial import SABR, STAPS, TAPS
from acertlab.training.methods.base import Step
from acertlab.training.methods.ibp import FastIBP
from acertlab.training.methods.pgd import gradient_link, latent_attack, margins_at, wrong_classes
from tests.helpers.training import SMALL, Interrupted, assert_same_weights, stop_after, weights
from tests.training.test_methods import STD, assert_same, both, cnn, gradients, pgd, reference, setup

EPS = 0.1


def step_of(model: nn.Sequential, x: Tensor, y: Tensor, eps: float = EPS) -> Step:
    logits, statistics = clean_pass(model, x)
    return Step(x, y, logits, freeze(model, statistics), eps, STD, model=model, statistics=statistics)


def classifier_of(model: nn.Sequential, x: Tensor):
    """The layers after the last ReLU but one, at points (n, ...), BatchNorm by the statistics of x."""
    last = [i for i, layer in enumerate(model) if isinstance(layer, nn.ReLU)][-2] + 1
    statistics = clean_pass(model, x)[1]

    def classifier(h: Tensor) -> Tensor:
        for i, layer in enumerate(model[last:], last):
            if isinstance(layer, nn.BatchNorm1d):
                mean, var = statistics[str(i)]
                h = (h - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias
            else:
                h = layer(h)
        return h

    return classifier


@both
@pytest.mark.parametrize("c", [0.5, 0.3, 0.9])
def test_the_loss_is_the_product_and_its_gradient_goes_to_both_ends_of_the_box(build, c) -> None:
    model, x, y = setup(build)
    objective = TAPS(kappa=0.2, eps_max=EPS, taps_weight=3.0, link_share=c, latent_steps=3)
    torch.manual_seed(1)
    loss, logged = objective(step_of(model, x, y))
    margins, relus, _ = reference(model, x, y, torch.full_like(x[:, 0, 0, 0], EPS), True)
    lower, upper = (end.clamp(min=0) for end in relus[-2])
    torch.manual_seed(1)
    points = _points(model, x, y, Box(lower, upper), 3)
    low, high = lower[:, None].detach(), upper[:, None].detach()
    reach = c * (high - low)
    towards_upper = (1 - (high - points) / reach).nan_to_num(0.5).clamp(min=0)
    towards_lower = (1 - (points - low) / reach).nan_to_num(0.5).clamp(min=0)
    assert ((towards_upper > 0) & (towards_upper < 1)).any() and (towards_upper == 0).any()
    moved = points + towards_upper * (upper[:, None] - high) + towards_lower * (lower[:, None] - low)
    estimates = torch.zeros(len(y), 4, dtype=x.dtype)
    classifier = classifier_of(model, x)
    for row in range(len(y)):
        for place, i in enumerate([i for i in range(4) if i != y[row]]):
            f = classifier(moved[row, place].flatten()[None] if build is cnn else moved[row, place][None])[0]
            estimates[row, i] = f[i] - f[y[row]]
    taps, ibp = F.cross_entropy(estimates, y), F.cross_entropy(margins, y)
    robust = (3 * taps - 2 * taps.detach()) * ibp
    assert_same(model, loss, 0.2 * F.cross_entropy(model(x), y) + 0.8 * robust)
    assert torch.allclose(logged.robust, taps * ibp) and (logged.radii.radius == EPS).all()


def _points(model: nn.Sequential, x: Tensor, y: Tensor, box: Box, steps: int) -> Tensor:
    """PGD, one point after the other, from the start that the global generator gives to all at once."""
    classifier = classifier_of(model, x)
    start = torch.rand(len(y), 3, *box.lower.shape[1:], dtype=x.dtype)
    found = torch.empty_like(start)
    for row in range(len(y)):
        low, high = box.lower[row].detach(), box.upper[row].detach()
        for place, i in enumerate([i for i in range(4) if i != y[row]]):
            point, best = low + (high - low) * start[row, place], -torch.inf
            for step in range(steps + 1):
                point = point.detach().requires_grad_()
                f = classifier(point.flatten()[None])[0]
                margin = f[i] - f[y[row]]
                if margin > best:
                    best, found[row, place] = margin, point.detach()
                move = max(0.2, 2 / steps) * (0.1 if 20 <= steps <= 50 and step >= int(0.7 * steps) else 1.0)
                slope = torch.autograd.grad(margin, point)[0].sign()
                point = torch.maximum(torch.minimum(point + move * (high - low) * slope, high), low)
    return found


@pytest.mark.parametrize("steps", [1, 8, 20])
def test_the_search_is_pgd_for_each_wrong_class_and_keeps_the_best(steps: int, monkeypatch) -> None:
    model, x, y = setup(cnn)
    step = step_of(model, x, y)
    _, relus, _ = reference(model, x, y, torch.full_like(x[:, 0, 0, 0], EPS), True)
    box = Box(*(end.detach().clamp(min=0) for end in relus[-2]))
    classifier = freeze(model[4:], {n: s for n, s in step.statistics.items() if int(n) >= 4})
    torch.manual_seed(2)
    found = latent_attack(classifier, box, y, 4, steps)
    torch.manual_seed(2)
    assert torch.allclose(found, _points(model, x, y, box, steps), atol=1e-12)
    assert not found.requires_grad and all(p.grad is None for p in model.parameters())
    monkeypatch.setattr("acertlab.training.methods.pgd.LARGEST", 3 * box.lower[0].numel() * 5)
    torch.manual_seed(2)
    parts = latent_attack(classifier, box, y, 4, steps)  # five samples at once: others' starts, the first five's alike
    assert torch.allclose(parts[:5], found[:5], atol=1e-12) and parts.shape == found.shape


def test_a_narrow_interval_gives_each_end_half_of_the_gradient() -> None:
    lower = torch.tensor([[0.0, 0.0, 0.0]]).requires_grad_()
    upper = torch.tensor([[0.0, 1.0, 1.0]]).requires_grad_()
    points = torch.tensor([[[0.0, 1.0, 0.75], [0.0, 0.0, 0.5]]])
    linked = gradient_link(Box(lower, upper), points, 0.5)
    assert torch.equal(linked, points)
    gradient = torch.tensor([[[2.0, 3.0, 4.0], [1.0, 5.0, 0.0]]])
    down, up = torch.autograd.grad(linked, [lower, upper], gradient)
    assert torch.allclose(down, torch.tensor([[1.5, 5.0, 0.0]])) and torch.allclose(up, torch.tensor([[1.5, 3.0, 2.0]]))


def test_the_gradient_at_corners_is_that_of_numeric_differences() -> None:
    """Where the classifier is linear over the box PGD ends in a corner, and the connector's gradient is a true one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4)).double()
    nn.init.constant_(model[0].bias, 20.0)
    lower, y = torch.rand(3, 5, dtype=torch.float64), torch.tensor([0, 3, 2])
    upper = lower + 0.1 + torch.rand(3, 5, dtype=torch.float64)
    network = freeze(model)

    def largest(lower: Tensor, upper: Tensor) -> Tensor:
        torch.manual_seed(1)
        box = Box(lower, upper)
        points = latent_attack(network, box, y, 4, 40)
        return margins_at(network, gradient_link(box, points, 0.5), y)

    assert torch.autograd.gradcheck(largest, (lower.requires_grad_(), upper.requires_grad_()))
    exact = network.margins(Box(lower, upper), y).gather(1, wrong_classes(y, 4))
    found = largest(lower, upper)
    assert (found <= exact + 1e-9).all() and torch.allclose(found, exact, atol=0.5)  # IBP forgets what ReLUs share


@both
@pytest.mark.parametrize("seed", range(4))
def test_the_taps_loss_lies_between_the_adversarial_and_the_ibp_loss(build, seed: int) -> None:
    model, x, y = setup(build, seed)
    step, objective = step_of(model, x, y), TAPS(eps_max=EPS)
    bounds, estimates = objective.both_margins(step, ball(x, EPS))
    assert (estimates <= bounds + 1e-12).all() and (estimates < bounds - 1e-6).any()  # points lie in the box
    assert (estimates.gather(1, y[:, None]) == 0).all()
    attacked, _, _ = reference(model, x, y, torch.zeros_like(x[:, 0, 0, 0]), True, pgd(model, x, y, EPS, 20, 0.2))
    adversarial, taps, ibp = (F.cross_entropy(margins, y) for margins in (attacked, estimates, bounds))
    assert adversarial < taps < ibp


@pytest.mark.parametrize("eps", [0.0, 0.03, EPS - 1e-9])
@pytest.mark.parametrize(("kind", "before"), [(TAPS, FastIBP), (STAPS, SABR)])
def test_while_the_ramp_lasts_they_are_fast_ibp_and_sabr(kind, before, eps) -> None:
    losses, penalties, slopes = [], [], []
    same = {"kappa": 0.2, "eps_max": EPS} | ({"attack": "last", "small_box_at_border": "cut"} if kind is STAPS else {})
    for objective in (kind(**same), before(**same)):
        model, x, y = setup(cnn)
        torch.manual_seed(0)
        loss, logged = objective(step_of(model, x, y, eps))
        losses.append(loss), penalties.append(logged.regulariser), slopes.append(gradients(loss, model))
    assert torch.equal(*losses) and torch.equal(*penalties)
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


def test_staps_is_taps_over_the_small_box() -> None:
    model, x, y = setup(cnn)
    staps = STAPS(eps_max=EPS, small_box=0.3)
    step = step_of(model, x, y)
    torch.manual_seed(0)
    loss, logged = staps(step)
    torch.manual_seed(0)
    attacked = replace(step, x_adv=pgd(model, x, y, EPS, staps.attack_steps, staps.attack_step_size, "mao"))
    whole = ball(x, EPS)
    half = 0.3 * whole.radius
    centre = torch.maximum(torch.minimum(attacked.adversarial, whole.upper - half), whole.lower + half)
    small = Box(centre - half, centre + half)
    assert torch.allclose(loss, TAPS(eps_max=EPS).bounded(attacked, small, None), rtol=1e-9)
    assert small.radius.max() <= 0.3 * EPS + 1e-12 and loss < TAPS(eps_max=EPS)(step)[0]
    assert (logged.radii.radius == EPS).all()


@pytest.mark.parametrize("method", ["taps", "staps"])
def test_training_is_resumed_bit_for_bit(few, tmp_path, monkeypatch, method: str) -> None:
    config = replace(SMALL, method=method, ramp_epochs=1, latent_steps=4)
    whole = train(config, few, tmp_path / "whole", progress=False)
    stop_after(3, monkeypatch)
    with pytest.raises(Interrupted):
        train(config, few, tmp_path / "parts", progress=False)
    monkeypatch.undo()
    train(config, few, tmp_path / "parts", progress=False)
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert whole.history.eps_t.iloc[-1] == config.eps_max and whole.history.robust_loss.notna().all()


def test_a_network_that_cannot_be_split_is_refused_before_training(few, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"classifier_relus = 2: .* here 1$"):
        train(replace(SMALL, method="taps", classifier_relus=2), few, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.json").exists()
