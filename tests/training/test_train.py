"""Training: one run from end to end, and what happens when it is repeated, or its configuration changes."""

import json
import logging
import re
from dataclasses import replace

import pytest
import torch
from tqdm import tqdm

from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import margin_at
from acertlab.data.datasets import load_dataset, to_float
from acertlab.data.run import HISTORY_COLUMNS, RESULT_KEYS, defaults_before
from acertlab.data.run_table import load_runs
from acertlab.models.architectures import MODELS
from acertlab.radius.certified import certified_radius
from acertlab.radius.search import RadiusStatus
from acertlab.training.config import preset
from acertlab.training.loop import train as loop
from acertlab.training.loop.train import evaluate, train
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.parameters import config_of
from tests.helpers.training import SMALL, Interrupted, assert_same_weights, stop_after, weights

# ---- what decides a run


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_an_error_before_anything_is_written(few, tmp_path):
    with pytest.raises(ValueError, match="device = 'cuda': accepted is what this machine has"):
        train(replace(SMALL, device="cuda"), few, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["acert", "fast-ibp", "crown-ibp"])
def test_training_at_another_eps_is_that_training_judged_at_eps_max(method, tmp_path):
    data = load_dataset("digits").first(150)
    config = replace(preset("digits", method, budget="fast"), epochs=3, ramp_epochs=1, width=4, eps_max=0.1)
    half = train(replace(config, train_eps_factor=0.5), data, tmp_path / "half", progress=False)
    there = train(replace(config, eps_max=0.05, radius_cap=0.125), data, tmp_path / "there", progress=False)
    assert half.history.eps_t.iloc[-1] == 0.05 and half.result["eps_max"] == 0.1 == 2 * there.result["eps_max"]
    for a, b in zip(half.load_model().parameters(), there.load_model().parameters(), strict=True):
        assert torch.equal(a, b)
    assert (half.radii.radius == there.radii.radius).all()
    assert half.result["acr"] == pytest.approx(there.radii.radius.clip(upper=0.1).mean() / 0.1)
    with pytest.raises(ValueError, match="train_eps_factor = 0"):
        replace(config, train_eps_factor=0)


@pytest.mark.parametrize(
    ("method", "then"),
    [
        ("acert", {}),
        ("sabr", {"attack": "last", "small_box_at_border": "cut"}),
        ("cc-ibp", {"attack": "last", "batch_statistics": "clean"}),
    ],
)
def test_a_run_of_before_a_setting_goes_on(method, then, tmp_path, monkeypatch):
    """A checkpoint and a config.json that do not name a setting are those of the run by what was done then."""
    data = load_dataset("digits").first(150)
    today = replace(preset("digits", method, budget="fast"), epochs=4, ramp_epochs=1, width=4)
    config = replace(today, **then)
    whole = train(config, data, tmp_path / "whole", progress=False)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_finish", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, data, tmp_path / "old", progress=False)
    monkeypatch.undo()
    path = tmp_path / "old" / "config.json"
    written = json.loads(path.read_text())
    for name in defaults_before(written):
        del written[name]
    path.write_text(json.dumps(written))
    assert config_of(written) == config
    if then:
        with pytest.raises(ValueError, match="attack = 'last' there, 'authors' here"):
            train(today, data, tmp_path / "old", progress=False)
    with pytest.raises(ValueError, match="train_eps_factor = .* there, 0.5 here"):
        train(replace(config, train_eps_factor=0.5), data, tmp_path / "old", progress=False)
    monkeypatch.setattr(loop, "train_epoch", stop)  # nothing is trained again
    again = train(config, data, tmp_path / "old", progress=False)
    assert again.result["art"] == whole.result["art"] and len(again.history) == 4


# ---- one run


@pytest.fixture(scope="module")
def done(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "acert"
    return train(replace(SMALL, kappa=0.25), few, folder, progress=False)


def test_a_run_folder_holds_what_was_done(done, few):
    result = done.result
    assert set(RESULT_KEYS) <= result.keys()
    assert (result["n"], result["split"], result["verifier"], result["radius_cap"]) == (60, "test", "ibp", 0.125)
    assert result["art"] == pytest.approx((result["acc"] * result["acr"]) ** 0.5)
    assert result["acr"] == pytest.approx(done.radii.radius.clip(upper=0.1).mean() / 0.1)
    assert result["cert_acc"][0.05] == pytest.approx((done.radii.radius >= 0.05).mean())
    assert sorted(result["cert_acc"]) == [0.05, 0.1]
    assert tuple(done.history.columns) == HISTORY_COLUMNS
    assert done.history.epoch.tolist() == [0, 1, 2, 3]
    assert done.history.eps_t.iloc[0] == 0
    assert done.history.eps_t.iloc[-1] == 0.1
    assert done.history[["share_zero", "share_inside", "share_cap"]].iloc[1:].sum(axis=1).tolist() == pytest.approx(
        [1] * 3
    )
    assert done.history.loss.iloc[0] > done.history.clean_loss.iloc[-1]
    assert done.history.val_acc.iloc[-1] > 0.3
    assert len(load_runs(done.path.parent)) == 1
    assert done.config["in_shape"] == [1, 8, 8]


def test_stored_radii_are_certified_by_the_stored_weights(done, few):
    model, radii = done.load_model(), torch.tensor(done.radii.radius.to_numpy())
    x, y = to_float(few.test_x), few.test_y
    assert done.radii.label.tolist() == y.tolist()
    assert done.radii.predicted.tolist() == model(x).argmax(1).tolist()
    assert done.radii["index"].tolist() == list(range(60))
    positive = radii > 0
    assert positive.equal(model(x).argmax(1) == y)
    assert positive.sum() > 10
    with torch.no_grad():
        assert (margin_at(freeze(model), x[positive], y[positive], radii[positive].float()) < 0).all()
    assert (done.radii.upper > done.radii.radius)[positive.numpy()].all()
    assert not (done.radii.status >= RadiusStatus.MAXITER).any()


def test_the_same_call_again_returns_the_run_without_training(done, few, monkeypatch):
    monkeypatch.setattr(loop, "train_epoch", None)
    again = train(replace(SMALL, kappa=0.25, device="auto"), few, done.path, progress=False)
    assert again.result == done.result


def test_another_configuration_is_refused_and_nothing_is_overwritten(done, few):
    before = {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"kappa = 0\.25 there, 0\.5 here; seed = 0 there, 1 here"):
        train(replace(SMALL, kappa=0.5, seed=1), few, done.path, progress=False)
    with pytest.raises(FileExistsError, match="resume=True"):
        train(replace(SMALL, kappa=0.25), few, done.path, resume=False, progress=False)
    assert {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()} == before


def test_other_data_is_refused(done, few, digits):
    with pytest.raises(ValueError, match="n_train = 200 there"):
        train(replace(SMALL, kappa=0.25), digits, done.path, progress=False)
    with pytest.raises(ValueError, match=r"data: holds 'digits', but config.dataset = 'mnist'"):
        train(replace(SMALL, dataset="mnist"), few, done.path, progress=False)


def test_an_unreadable_folder_is_named(few, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"run_dir: .*config.json cannot be read"):
        train(SMALL, few, tmp_path, progress=False)
    (tmp_path / "config.json").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"run_dir: .*config.json cannot be read"):
        train(SMALL, few, tmp_path, progress=False)


def test_the_same_seed_gives_the_same_numbers(done, few, tmp_path):
    torch.manual_seed(123)  # the global state does not matter,
    before = torch.random.get_rng_state()
    again = train(replace(SMALL, kappa=0.25), few, tmp_path / "again", progress=False)
    assert torch.equal(torch.random.get_rng_state(), before)  # and is left alone
    assert_same_weights(weights(again.path), weights(done.path))
    assert again.radii.equals(done.radii)
    assert again.history.drop(columns="seconds").equals(done.history.drop(columns="seconds"))
    other = train(replace(SMALL, kappa=0.25, seed=1), few, tmp_path / "other", progress=False)
    assert not torch.equal(weights(other.path)["1.weight"], weights(done.path)["1.weight"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheduler", ["onecycle", "step"])
def test_every_method_runs(method, scheduler, few, tmp_path):
    config = replace(
        SMALL,
        method=method,
        model="small_cnn",
        width=4,
        epochs=2,
        clean_epochs=0,
        ramp_epochs=1,
        scheduler=scheduler,
        milestones=(1,),
        l1=1e-5,
        merged=scheduler == "step",
    )
    run = train(config, replace(few, val_x=few.val_x[:0], val_y=few.val_y[:0]), tmp_path, progress=False)
    assert run.history[["val_acc", "val_acr", "val_art"]].isna().all(axis=None)
    assert run.result["kappa"] == (1.0 if method == "standard" else 0.0)
    expected = [1e-2, 2e-3] if scheduler == "step" else [run.history.lr.iloc[0], 1e-2 / 25 / 100]
    assert run.history.lr.tolist() == pytest.approx(expected, rel=0.05)


def test_acert_learns_digits(digits, tmp_path):
    config = replace(preset("digits", "acert", budget="fast"), epochs=8, ramp_epochs=4, device="cpu")
    run = train(config, digits, tmp_path, progress=False)
    assert run.result["acc"] > 0.8
    assert run.result["acr"] > 0.3
    shares = run.history.iloc[-1]
    assert shares.share_zero < 0.3
    assert run.history.radius_mean.iloc[-1] > 0.05


def test_evaluate_is_independent_of_its_batches(done, few):
    model = done.load_model()
    tables = [evaluate(model, few.test_x, few.test_y, 0.1, SMALL.search, size) for size in (7, 1024)]
    assert tables[0].radius.to_numpy() == pytest.approx(tables[1].radius.to_numpy(), abs=1e-7)
    direct = certified_radius(model, to_float(few.test_x), few.test_y, 0.1)
    assert tables[1].radius.tolist() == direct.radius.tolist()


@pytest.mark.parametrize("killed", [False, True])
def test_the_published_protocol_selects_on_the_test_set_and_says_so(killed, few, tmp_path, monkeypatch):
    config = replace(SMALL, protocol="published", epochs=6)
    if killed:
        with monkeypatch.context() as patched, pytest.raises(Interrupted):
            stop_after(4, patched)
            train(config, few, tmp_path, progress=False)
    run = train(config, few, tmp_path, progress=False)
    best = run.history.val_art.to_numpy()
    assert run.result["protocol"] == "published" and run.result["selected_on"] == "test"
    assert run.result["selected_epoch"] == best.argmax()
    assert (run.history.val_acr <= run.history.eps_t / 0.1 + 1e-6).all() and run.history.val_acr[0] == 0
    sizes = [slice(i, i + 32) for i in range(0, 60, 32)]
    found = certified_radius(run.load_model(), to_float(few.test_x), few.test_y, 0.1)
    accs = [(run.load_model()(to_float(few.test_x)).argmax(1) == few.test_y)[s].double().mean() for s in sizes]
    acrs = [found.radius[s].double().mean() / 0.1 for s in sizes]
    means = run.result["means_of_batches"]
    assert means["art"] == pytest.approx(
        sum((a * r) ** 0.5 for a, r in zip(accs, acrs, strict=True)).item() / 2, abs=1e-6
    )
    assert means["art"] == pytest.approx(best.max(), abs=1e-3)
    assert means["acr"] == pytest.approx(sum(acrs).item() / 2, abs=1e-6)
    assert means["acc"] == run.result["acc"] and sum(accs).item() / 2 != pytest.approx(means["acc"], abs=1e-3)
    assert means["acr"] != pytest.approx(run.result["acr"], abs=1e-6)  # ours pools: the last batch is smaller
    plain = train(replace(config, protocol="held-out"), few, tmp_path / "plain", progress=False)
    assert plain.result["protocol"] == "held-out" and "selected_on" not in plain.result


@pytest.mark.parametrize(
    ("arts", "patience", "min_epochs", "epochs", "selected"),
    [
        ([0.0, 0.3, 0.5, 0.5, 0.4, 0.6], 2, 0, 5, 2),  # the first of equal ones; two epochs later it ends
        ([0.0, 0.3, 0.5, 0.5, 0.4, 0.6], 2, 6, 6, 5),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0, 0, 6, 0),
        ([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 1, 3, 3, 0),
    ],
)
def test_the_published_protocol_ends_early(arts, patience, min_epochs, epochs, selected, few, tmp_path, monkeypatch):
    scores = iter(arts)
    settings = {"patience": patience, "min_epochs": min_epochs, "epochs": 6}
    config, true = replace(SMALL, protocol="published", **settings), loop.mean_of_batches
    with monkeypatch.context() as patched:
        patched.setattr(loop, "mean_of_batches", lambda *given: true(*given) | {"art": next(scores)})
        patched.setattr(loop, "_finish", lambda *given: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            train(config, few, tmp_path, progress=False)
    run = train(config, few, tmp_path, progress=False)  # killed after its last epoch, it trains no further
    assert len(run.history) == epochs and run.result["selected_epoch"] == selected
    assert ("ended_after" in run.result) == (epochs < 6) and run.result.get("ended_after", 6) == epochs


def test_a_history_is_kept_where_the_search_makes_use_of_it(few):
    for method, solver, kept in (
        ("acert", "log-secant", True),
        ("acert-sabr", "log-secant", True),
        ("acert", "brentq", False),
        ("fast-ibp", "log-secant", False),
    ):
        config = replace(SMALL, method=method, solver=solver, radius_history=True)
        state = loop.initial_state(config, few, torch.device("cpu"), steps=7)
        assert (state.radii is not None) == kept


def test_shrinking_radii_are_warned_of_once(few, caplog):
    state = loop.initial_state(SMALL, few, torch.device("cpu"), steps=7)
    shares = [None, 0.1, 0.1, 0.25, 0.4]
    for epoch, zero in enumerate(shares):
        state.history.append({"epoch": epoch, "share_zero": zero, "radius_mean": 0.01 * epoch})
        loop._warn_of_spiral(state)
        assert len(caplog.records) == (epoch >= 3)
    assert "epoch 3: the share of training samples with a positive radius fell from 0.90 to 0.75" in caplog.text


def test_a_steps_precision_is_its_own(few):
    """Called without the session of a training, where somebody else has set another one."""
    arguments = to_float(few.train_x[:32]), few.train_y[:32], torch.arange(32), 0.1, torch.ones(1, 1, 1, 1)
    losses = []
    for autocast in (False, True):
        state = loop.initial_state(SMALL, few, torch.device("cpu"), steps=7)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses.append(loop.train_step(state, SMALL, *arguments)[0])
    assert torch.equal(*losses)


def test_a_warning_is_not_glued_to_a_progress_bar(few, capsys):
    state = loop.initial_state(SMALL, few, torch.device("cpu"), steps=7)
    state.history = [{"epoch": i, "share_zero": zero, "radius_mean": 0.01} for i, zero in enumerate((0.1, 0.9))]
    logging.getLogger().addHandler(handler := logging.StreamHandler())
    try:
        with tqdm(total=3, desc="networks", mininterval=0):
            loop._warn_of_spiral(state)
    finally:
        logging.getLogger().removeHandler(handler)
    (line,) = [line for line in re.split("[\r\n]", capsys.readouterr().err) if "epoch 1: the share" in line]
    assert line.startswith("epoch 1: the share of training samples")


def test_ibp_methods_start_from_ibp_initialisation(few):
    spread = {}
    for method in METHODS:
        state = loop.initial_state(replace(SMALL, method=method), few, torch.device("cpu"), steps=7)
        spread[method] = state.model[1].weight.std().item()
    expected = (2 * torch.pi) ** 0.5 / 64
    for method in set(METHODS) - {"standard", "ibp", "crown-ibp"}:
        assert spread[method] == pytest.approx(expected, rel=0.1)
    assert spread["standard"] == spread["ibp"] != pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains(model, few, tmp_path):
    few = replace(
        few, **{f"{part}_{k}": getattr(few, f"{part}_{k}")[:24] for part in ("train", "val", "test") for k in "xy"}
    )
    config = replace(SMALL, model=model, width=2, epochs=1, clean_epochs=0, ramp_epochs=0)
    run = train(config, few, tmp_path, progress=False)
    assert run.load_model()(to_float(few.test_x)).shape == (24, 10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu_gives_certified_radii(few, tmp_path):
    run = train(replace(SMALL, device="cuda"), few, tmp_path, progress=False)
    radii, model = torch.tensor(run.radii.radius.to_numpy()), run.load_model().cuda()
    positive = radii > 0
    x, y = to_float(few.test_x, "cuda"), few.test_y.cuda()
    with torch.no_grad():
        margin = margin_at(freeze(model), x[positive], y[positive], radii[positive].float().cuda())
    assert (margin < 0).all()
