"""Settings of a training run: what is accepted, and that presets are the tables of those who found them."""

import json
from dataclasses import asdict, replace

import pytest

from acertlab.data.datasets import DATASETS
from acertlab.training.config import TrainConfig, preset
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.presets import BUDGETS


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("method", "acrt", "standard, ibp, fast-ibp, crown-ibp, sabr"),
        ("dataset", "minst", "mnist"),
        ("dataset", "folder", "folder:PATH"),
        ("dataset", None, "mnist"),
        ("model", "resnet", "small_cnn"),
        ("kappa", 1.5, "<= 1"),
        ("kappa", float("nan"), ">= 0"),
        ("kappa", "0.5", "a finite number"),
        ("eps_max", 0.0, "> 0"),
        ("eps_max", float("inf"), "a finite number > 0"),
        ("epochs", 0, ">= 1"),
        ("epochs", 2.5, "a whole number"),
        ("batch_size", True, "a whole number"),
        ("seed", -1, ">= 0"),
        ("ramp_epochs", 15, "at most epochs - clean_epochs, here 14"),
        ("ramp", "cubic", "smooth, linear"),
        ("scheduler", "cosine", "onecycle, step"),
        ("milestones", (60, 50), "rising epochs"),
        ("solver", "newton", "brentq"),
        ("domain", (1.0, 0.0), "low < high"),
        ("radius_cap", 0.3, ">= 0.4"),
        ("merged", "yes", "True or False"),
        ("device", "tpu", "auto, cpu, cuda, mps"),
        ("lr", -1e-3, "> 0"),
        ("clip", 0.0, "> 0, or None"),
        ("l1_reach", "all", "weights, parameters"),
        ("attack", "pgd", "authors, last"),
        ("attack_eps_factor", 0.0, "> 0"),
        ("small_box_at_border", "moved", "inside, cut"),
        ("batch_statistics", "adversarial", "attacked, clean"),
        ("l1", -1.0, ">= 0"),
        ("small_box", 1.5, "<= 1"),
        ("alpha", -0.1, ">= 0"),
        ("attack_steps", 0, ">= 1"),
        ("attack_step_size", 0.0, "> 0"),
        ("beta_end", 2.0, "<= 1"),
        ("classifier_relus", 0, ">= 1"),
        ("taps_weight", -1.0, ">= 0"),
        ("latent_steps", 2.5, "a whole number"),
        ("link_share", 0.0, "> 0"),
        ("relu_shrinkage", 1.0, "< 1"),
        ("root_iterations", -1, ">= 0"),
        ("patience", -1, ">= 0"),
        ("protocol", "paper", "held-out, published"),
        ("amp", 1, "True or False"),
        ("train_precision", "bf16", "full, tf32"),
    ],
)
def test_bad_settings_are_named_with_what_is_accepted(name, value, accepted):
    with pytest.raises(ValueError) as caught:
        TrainConfig(**{name: value})
    assert str(caught.value).startswith(f"{name} = {value!r}")
    assert accepted in str(caught.value)


def test_settings_survive_json_and_standard_is_kappa_one():
    config = preset("mnist", "fast-ibp")
    assert TrainConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert TrainConfig(method="standard", kappa=0.0).kappa == 1.0
    assert replace(TrainConfig(), eps_max=0.2).cap == pytest.approx(0.25)
    assert TrainConfig(eps_max=0.9).cap == 1.0
    assert TrainConfig(radius_cap=0.4).cap == 0.4


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("method", METHODS)
def test_there_is_a_preset_of_every_kind(method, budget):
    for dataset in (*DATASETS, "folder:somewhere"):
        config = preset(dataset, method, budget=budget)
        assert (config.dataset, config.method) == (dataset, method)


def test_presets_are_table_4():
    acert = preset("cifar10", "acert")
    assert (acert.model, acert.eps_max, acert.batch_size, acert.epochs) == ("cnn7", 8.8 / 255, 128, 200)
    assert (acert.clean_epochs, acert.ramp_epochs, acert.lr, acert.scheduler) == (1, 80, 2e-3, "onecycle")
    tiny = preset("tinyimagenet", "acert")
    assert (tiny.batch_size, tiny.lambda0, tiny.l1, tiny.clip, tiny.eps_max) == (256, 0.2, 1e-4, 10.0, 1 / 255)
    fast_ibp = preset("mnist", "fast-ibp")
    assert (fast_ibp.batch_size, fast_ibp.epochs, fast_ibp.milestones) == (256, 70, (50, 60))
    assert (fast_ibp.scheduler, fast_ibp.lr, fast_ibp.decay) == ("step", 5e-4, 0.2)
    fair = preset("mnist", "fast-ibp", budget="fast")
    assert replace(fair, method="acert") == preset("mnist", "acert", budget="fast")
    with pytest.raises(ValueError, match="budget = 'huge': accepted is smoke, fast, paper"):
        preset("mnist", "acert", budget="huge")


def test_presets_take_nothing_from_another_source():
    """TinyImageNet has l1 1e-4 and lambda0 0.2 in Table 4, which are neither Shi et al.'s nor Mueller et al.'s."""
    tiny = {method: preset("tinyimagenet", method) for method in ("fast-ibp", "sabr", "mtl-ibp", "acert")}
    assert [tiny[method].l1 for method in tiny] == [0.0, 1e-6, 5e-5, 1e-4]
    assert [tiny[method].lambda0 for method in tiny] == [0.2, 0.5, 0.2, 0.2]
    assert [tiny[method].batch_size for method in tiny] == [128, 128, 128, 256]
    assert [preset("mnist", method).clean_epochs for method in tiny] == [0, 1, 0, 1]
    assert [preset("cifar10", method).clean_epochs for method in tiny] == [1, 1, 1, 1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dataset", "setting", "eps"), [("cifar10", "2/255", 2 / 255), ("mnist", "0.1", 0.1)])
def test_every_method_has_the_smaller_radii(dataset, setting, eps, method):
    config, larger = preset(dataset, method, setting=setting), preset(dataset, method)
    assert (config.eps_max, config.model, config.width) == (eps, "cnn7", 64)
    assert replace(config, eps_max=larger.eps_max) != larger or method in (
        *("standard", "acert", "acert-fast", "acert-sabr", "acert-mtl-ibp", "ibp", "fast-ibp", "crown-ibp", "taps"),
    )
    assert preset(dataset, method, budget="fast", setting=setting).eps_max == eps
    with pytest.raises(ValueError, match=f"^setting = '4/255': accepted is of {method} on {dataset}: \"\", {setting}"):
        preset(dataset, method, setting="4/255")


def test_the_smaller_radii_are_the_authors_commands():
    taps, sabr = (preset("mnist", name, setting="0.1") for name in ("taps", "sabr"))
    assert (taps.train_eps, sabr.train_eps) == (0.2, 0.1)
    assert preset("cifar10", "taps", setting="2/255").classifier_relus == 5
    mtl, exp = (preset("cifar10", name, setting="2/255") for name in ("mtl-ibp", "exp-ibp"))
    assert (mtl.alpha, mtl.l1, mtl.attack_steps, mtl.attack_step_size) == (4e-3, 3e-6, 8, 0.25)
    assert mtl.attack_eps_factor == 2.1
    assert (exp.alpha, exp.l1, exp.epochs) == (0.095, 4e-6, 160)
    assert preset("mnist", "cc-ibp", setting="0.1").alpha == 0.1


def test_the_papers_own_fast_ibp_has_a_name():
    mnist, tiny = (preset(name, "fast-ibp", setting="prototype") for name in ("mnist", "tinyimagenet"))
    assert (mnist.batch_size, mnist.epochs, mnist.milestones, mnist.clean_epochs) == (128, 100, (60, 70), 1)
    assert (tiny.batch_size, tiny.epochs, tiny.milestones, tiny.ramp_epochs) == (256, 200, (120, 140), 80)
    assert (tiny.l1, tiny.lambda0, tiny.clean_epochs, tiny.patience, tiny.min_epochs) == (1e-4, 0.2, 0, 70, 160)
    early = {"epochs": 200, "patience": 150, "min_epochs": 160}
    assert preset("cifar10", "fast-ibp", setting="prototype") == replace(preset("cifar10", "fast-ibp"), **early)
    with pytest.raises(ValueError, match='accepted is of sabr on mnist: "", 0.1$'):
        preset("mnist", "sabr", setting="prototype")


def test_presets_are_the_methods_authors():
    sabr, mtl, exp = (preset("cifar10", method) for method in ("sabr", "mtl-ibp", "exp-ibp"))
    assert (sabr.epochs, sabr.milestones, sabr.small_box, sabr.attack_steps, sabr.attack_step_size) == (
        180,
        (139, 159),  # their scheduler has taken a step when an epoch, counted from 1, starts
        0.7,
        8,
        0.5,
    )
    assert (mtl.epochs, mtl.milestones, mtl.alpha, mtl.l1, mtl.attack_steps, mtl.attack_step_size) == (
        260,
        (180, 220),
        0.5,
        1e-7,
        1,
        10.0,
    )
    assert (exp.l1, exp.alpha, preset("tinyimagenet", "exp-ibp").alpha) == (0.0, 0.5, 0.04)
    assert [preset("mnist", method).alpha for method in ("mtl-ibp", "cc-ibp")] == [0.08, 0.3]
    assert preset("mnist", "sabr").small_box == 0.6
    assert preset("tinyimagenet", "mtl-ibp").l1 == 5e-5
    assert preset("tinyimagenet", "crown-ibp").epochs == 80
    assert (sabr.clip, sabr.l1_reach, mtl.clip, mtl.l1_reach) == (None, "parameters", 10.0, "weights")
    staps = preset("cifar10", "staps", setting="2/255")
    assert (staps.small_box, staps.taps_weight, staps.latent_steps, staps.link_share) == (0.1, 2.0, 20, 0.5)
    assert staps.relu_shrinkage == preset("cifar10", "sabr", setting="2/255").relu_shrinkage == 0.2
    assert (staps.epochs, staps.milestones, staps.classifier_relus, staps.l1) == (161, (121, 141), 1, 2e-6 / 7)
    assert preset("tinyimagenet", "taps").lambda0 == 0.1 and preset("tinyimagenet", "staps").latent_steps == 10
    ours = preset("cifar10", "acert-sabr")
    assert ours == replace(preset("cifar10", "acert"), method="acert-sabr", small_box=0.7)
    for method in ("sabr", "mtl-ibp", "acert-mtl-ibp"):  # equal schedules where two cores must do
        own = {
            name: getattr(preset("mnist", method), name)
            for name in ("small_box", "alpha", "attack_steps", "attack_step_size")
        }
        fair = preset("mnist", "acert", budget="fast")
        assert preset("mnist", method, budget="fast") == replace(fair, method=method, **own)
