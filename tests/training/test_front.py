"""A front as one training: its knots, the networks between them, and what happens when it is killed or misused."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import update_bn

import acertlab as al
from acertlab import visualization as plots
from acertlab.analysis.method_table import chosen_runs, tuned_table
from acertlab.analysis.seeds import mean_over_seeds
from acertlab.data.datasets import load_dataset, to_float
from acertlab.data.files import read_json, write_json
from acertlab.data.pack import pack_runs
from acertlab.data.run import FRONT_FILES, SHIPPED_FRONTS, load_run
from acertlab.data.run_table import load_finished, load_runs
from acertlab.training.config import preset
from acertlab.training.loop import front as fronts, train as loop
from acertlab.training.loop.front import BATCH, PARTS, _mixed, epochs_after_first, load_front, train_front
from acertlab.training.loop.train import train
from acertlab.training.methods.catalogue import METHODS
from tests.helpers.training import SMALL as MLP, Interrupted, assert_same_weights

SMALL = replace(MLP, model="small_cnn", width=2, epochs=3, ramp_epochs=1)  # with BatchNorm
KAPPAS = (0.0, 0.5, 0.9)


def same(a, b):
    assert_same_weights(a.state_dict(), b.state_dict())


@pytest.fixture(scope="module")
def front(few, tmp_path_factory):
    return train_front(SMALL, few, tmp_path_factory.mktemp("front") / "of", KAPPAS, epochs=1, progress=False)


def test_the_first_knot_is_the_training_and_each_next_one_goes_on_from_it(front, few, tmp_path):
    alone = train(replace(SMALL, kappa=0.0), few, tmp_path / "alone", progress=False)
    same(front.knots[0.0].load_model(), alone.load_model())
    assert list(front.knots) == list(KAPPAS) and list(front.between) == [0.25, 0.7]
    second = front.knots[0.5].config
    assert (second["front"], second["epochs"], second["ramp_epochs"]) == ([0.0], 1, 0)
    assert front.knots[0.9].config["front"] == [0.0, 0.5]
    assert front.knots[0.5].history.eps_t.tolist() == [SMALL.eps_max]
    random = train(replace(loop_config(front, 0.5)), few, tmp_path / "random", progress=False)
    assert random.config["weights"] == "" != second["weights"]
    with pytest.raises(ValueError, match="weights = .* there"):
        train(loop_config(front, 0.5), few, front.knots[0.5].path, progress=False)


def loop_config(front, kappa):
    return replace(SMALL, kappa=kappa, epochs=1, clean_epochs=0, ramp_epochs=0, lr=1e-3)


def test_a_network_at_a_knot_is_the_one_trained_there_and_between_it_is_certified_like_any(front, few):
    for kappa, run in (front.knots | front.between).items():
        model = front.network(kappa)
        same(model, run.load_model())
        x, y = to_float(few.test_x), few.test_y
        radii = al.certified_radius(model, x, y, run.config["radius_cap"] or 1.25 * SMALL.eps_max).radius
        assert radii.tolist() == pytest.approx(run.radii.radius.tolist(), abs=1e-6)
    same(front.network(0.3), load_front(front.path).network(0.3))
    near, knot = front.network(0.5 + 1e-9).state_dict(), front.network(0.5).state_dict()
    for name, value in near.items():
        assert torch.allclose(value.double(), knot[name].double(), atol=1e-5), name


def test_statistics_on_the_way_are_those_of_training_images(front, few):
    first, second = (front.knots[kappa].load_model().state_dict() for kappa in (0.5, 0.9))
    for part in range(1, PARTS):
        model = front.knots[0.5].load_model()
        model.load_state_dict(_mixed(first, second, part / PARTS))
        update_bn(to_float(few.train_x).split(BATCH), model)
        ours = front.network(0.5 + 0.4 * part / PARTS).state_dict()
        names = [name for name in ours if "running" in name]
        assert names
        for name in names:
            assert torch.allclose(ours[name], model.state_dict()[name], atol=1e-5), name


@pytest.mark.parametrize("place", range(5))
def test_killed_anywhere_it_goes_on_to_the_same_bits(place, front, few, tmp_path, monkeypatch):
    """In the second epoch of the first knot, in the third knot, before its result, at the statistics, half way."""
    calls = {"epochs": 0, "results": 0}
    real_epoch, real_results = loop.train_epoch, loop.write_results

    def epoch_of(*args):
        calls["epochs"] += 1
        if (place, calls["epochs"]) in ((0, 2), (1, SMALL.epochs + 2)):
            raise Interrupted
        return real_epoch(*args)

    def results(*args, **more):
        calls["results"] += 1
        if (place, calls["results"]) in ((2, 3), (4, 5)):
            raise Interrupted
        return real_results(*args, **more)

    def statistics(*_):
        raise Interrupted

    monkeypatch.setattr(loop, "train_epoch", epoch_of)
    monkeypatch.setattr(loop, "write_results", results)
    monkeypatch.setattr(fronts, "write_results", results)
    if place == 3:
        monkeypatch.setattr(fronts, "_write_statistics", statistics)
    with pytest.raises(Interrupted):
        train_front(SMALL, few, tmp_path / "front", KAPPAS, epochs=1, progress=False)
    if place < 4:
        with pytest.raises(FileNotFoundError, match=r"goes on"):
            load_front(tmp_path / "front")
    monkeypatch.undo()
    again = train_front(SMALL, few, tmp_path / "front", KAPPAS, epochs=1, progress=False)
    for kappa in (0.0, 0.1, 0.5, 0.6, 0.9):
        same(again.network(kappa), front.network(kappa))
    assert all(again.between[kappa].radii.equals(front.between[kappa].radii) for kappa in front.between)


def test_it_is_read_as_points_of_one_curve(front):
    runs = load_runs(front.path, settings=["front"])
    assert sorted(runs.kappa) == [0.0, 0.25, 0.5, 0.7, 0.9]
    assert runs[runs.interpolated.eq(True)].kappa.tolist() == [0.25, 0.7]
    assert runs.set_index("kappa").front[0.9] == [0.0, 0.5]
    assert runs.one_training.eq(str(front.path)).all()
    assert al.analyse(runs).tuned[0].chosen_on == "validation"
    assert chosen_runs(runs).interpolated.isna().all()


def test_it_is_not_pooled_with_networks_trained_each_by_itself(front, few, tmp_path):
    shutil.copytree(front.path, tmp_path / "front")
    for kappa in (0.3, 0.6):  # kappas that the front has not, by which nothing would collide
        train(replace(SMALL, kappa=kappa, seed=1), few, tmp_path / f"alone-{kappa}", progress=False)
    runs = load_runs(tmp_path)
    assert runs.one_training.value_counts().to_dict() == {str(tmp_path / "front"): 5, "": 2}
    for table in (al.analyse, mean_over_seeds, chosen_runs, tuned_table, plots.tradeoff):
        with pytest.raises(ValueError, match="runs: of acert on digits some are networks of a front, one training"):
            table(runs)
    apart = load_finished(tmp_path)
    assert apart.method.value_counts().to_dict() == {"acert (front)": 5, "acert": 2}
    assert al.analyse(apart, resamples=20).table().method.tolist() == ["ACERT", "ACERT (front)"]
    assert plots.style.method_style("acert (front)")[:2] == ("ACERT (front)", plots.style.method_style("acert")[1])
    packed = load_runs(pack_runs(tmp_path, tmp_path.parent / "packed-both"))
    assert (packed.one_training != "").sum() == 5
    assert {run.path for run in map(load_run, packed.path)} == {Path(path) for path in packed.path}


def test_epochs_of_the_later_networks_come_with_the_budget(few, tmp_path):
    """Three fifths of the first one's, rounded: of digits, MNIST and CIFAR-10, budgets smoke, fast and paper."""
    found = {}
    for dataset in ("digits", "mnist", "cifar10"):
        for budget in ("smoke", "fast", "paper"):
            config = preset(dataset, "acert", budget=budget)
            found[dataset, budget] = (config.epochs, epochs_after_first(config))
    assert found["digits", "fast"] == (20, 12) == found["cifar10", "fast"] and found["mnist", "fast"] == (6, 4)
    assert found["cifar10", "paper"] == (200, 120)
    assert found["mnist", "paper"] == (100, 60) and found["digits", "smoke"] == (1, 1)
    front = train_front(replace(SMALL, epochs=6), few, tmp_path / "front", (0.9, 0.0), progress=False)
    first, second = (front.knots[kappa].config for kappa in (0.9, 0.0))
    assert (first["epochs"], second["epochs"]) == (6, 4) and second["lr"] == first["lr"] == SMALL.lr


def test_packed_with_its_weights_it_is_the_same_front(front, tmp_path):
    packed = load_front(pack_runs(front.path, tmp_path / "packed", weights=True))
    for kappa in (0.0, 0.33, 0.5, 0.9):
        same(packed.network(kappa), front.network(kappa))
    assert packed.between[0.25].result == front.between[0.25].result
    bare = pack_runs(front.path, tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="holds no front.json"):
        load_front(bare)


def test_what_comes_with_acertlab_is_made_by_its_script(few, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make", SHIPPED_FRONTS / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    monkeypatch.setenv("ACERTLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setitem(make.SETTINGS, "digits", {"epochs": 2, "ramp_epochs": 1})
    monkeypatch.setattr(al, "load_dataset", lambda name: few)
    make.main("digits", below=tmp_path)
    front, of = load_front(tmp_path / "digits-acert"), to_float(few.test_x[:20])
    for kappa, run in (front.knots | front.between).items():
        found = al.certified_radius(front.network(kappa), of, few.test_y[:20], run.result["radius_cap"])
        assert found.radius.tolist() == pytest.approx(run.radii.radius[:20].tolist(), abs=1e-5)


@pytest.mark.parametrize(("dataset", "accuracy"), [("digits", 0.9), ("mnist", 0.9), ("cifar10", 0.45)])
def test_a_front_that_comes_with_acertlab_moves(dataset, accuracy):
    front = load_front(SHIPPED_FRONTS / f"{dataset}-acert")
    try:
        data = load_dataset(dataset, download=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    here = torch.arange(0, len(data.test_y), len(data.test_y) // 100)  # of all classes
    x, y = to_float(data.test_x[here]), data.test_y[here]
    for kappa, run in (front.knots | front.between).items():
        found = al.certified_radius(front.network(kappa), x, y, run.result["radius_cap"])
        assert found.radius.tolist() == pytest.approx(run.radii.radius[here.numpy()].tolist(), abs=1e-5)
    assert al.accuracy(front.network(0.33), x, y) > accuracy


@pytest.mark.parametrize(
    ("config", "kappas", "more", "said"),
    [
        (SMALL, (0.0, 0.5, 0.5), {}, "kappas = .*all rising or all falling"),
        (SMALL, (0.0, 0.5, 0.2), {}, "kappas = .*all rising or all falling"),
        (SMALL, (0.5,), {}, "kappas = .*two or more"),
        (SMALL, (0.5, 1.5), {}, "kappas = 1.5"),
        (SMALL, (0.0, 0.5), {"epochs": 0}, "epochs = 0"),
        (SMALL, (0.0, 0.5), {"lr": -1.0}, "lr = -1"),
        (replace(SMALL, method="standard"), (0.0, 0.5), {}, "config.method = 'standard'.*a method with kappa"),
        (replace(SMALL, protocol="published"), (0.0, 0.5), {}, "config.protocol = 'published'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(config, kappas, more, said, few, tmp_path):
    with pytest.raises(ValueError, match=said):
        train_front(config, few, tmp_path / "front", kappas, progress=False, **more)
    assert not (tmp_path / "front").exists()


def test_another_front_in_the_folder_a_missing_knot_and_a_kappa_outside_are_named(front, few, tmp_path):
    for change in ({"kappas": (0.0, 0.4, 0.9)}, {"epochs": 2}, {"config": replace(SMALL, seed=5)}):
        asked = {"config": SMALL, "kappas": KAPPAS, "epochs": 1} | change
        with pytest.raises(
            ValueError, match=r"run_dir: .* holds another front: (kappas|epochs|first network's seed) = [^{]*here. Give"
        ):
            train_front(asked.pop("config"), few, front.path, progress=False, **asked)
    for kappa in (-0.1, 0.95, float("nan"), "0.5"):
        with pytest.raises((ValueError, TypeError), match="kappa = "):
            front.network(kappa)
    broken = shutil.copytree(front.path, tmp_path / "broken")
    shutil.rmtree(broken / "knot-01")
    with pytest.raises(FileNotFoundError, match="knot-01"):
        load_front(broken)
    write_json(broken / "front.json", {"kappas": [0.5, 0.0, 0.9]})
    shutil.copytree(front.path / "knot-01", broken / "knot-01")
    with pytest.raises(ValueError, match=r"front.json tells of other kappas than its networks"):
        load_front(broken)
    write_json(broken / "front.json", {"of": "another version"})
    with pytest.raises(ValueError, match=r"front.json lacks kappas"):
        load_front(broken)
    with pytest.raises(FileNotFoundError, match=r"holds no front\.json; .*train_front"):
        load_front(tmp_path)


def test_fronts_and_runs_keep_out_of_each_others_folders(front, few, tmp_path):
    with pytest.raises(ValueError, match=r"run_dir: .*knot-00 holds a run \(config.json, .*\), no front"):
        train_front(SMALL, few, front.knots[0.0].path, KAPPAS, epochs=1, progress=False)
    with pytest.raises(ValueError, match="run_dir: .* holds a front"):
        train(SMALL, few, front.path, progress=False)
    with pytest.raises(FileNotFoundError, match="is a front's folder.*load_front"):
        load_run(front.path)
    assert {path.name for path in front.path.iterdir() if path.is_file()} <= {".lock", *FRONT_FILES}
    broken = shutil.copytree(front.path, tmp_path / "broken")
    (broken / "statistics.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"statistics.safetensors cannot be read"):
        load_front(broken).network(0.3)


def test_a_front_of_another_version_and_device_goes_on(front, few, tmp_path):
    older = shutil.copytree(front.path, tmp_path / "older")
    told = read_json(older / "front.json")
    first = {name: value for name, value in told["first"].items() if name != "relu_shrinkage"}  # not named by 0.1.0
    write_json(older / "front.json", told | {"first": first | {"version": "0.0.9", "device": "cuda"}})
    again = train_front(SMALL, few, older, KAPPAS, epochs=1, progress=False)
    same(again.network(0.3), front.network(0.3))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "standard"])
def test_every_method_that_has_kappa_can_be_walked(method, few, tmp_path):
    config = replace(preset("digits", method, budget="smoke"), width=2)
    front = train_front(config, few, tmp_path / "front", (0.9, 0.5), epochs=1, progress=False)
    x, y, run = to_float(few.test_x), few.test_y, front.between[0.7]
    radii = al.certified_radius(front.network(0.7), x, y, run.result["radius_cap"]).radius
    assert radii.tolist() == pytest.approx(run.radii.radius.tolist(), abs=1e-6)
    weights = [front.knots[kappa].load_model().state_dict()["0.weight"] for kappa in (0.9, 0.5)]
    assert not torch.equal(*weights)  # the second went on


def test_methods_have_their_own_kappas(few, tmp_path):
    config = replace(preset("digits", "fast-ibp", budget="smoke"), width=2)
    front = train_front(config, few, tmp_path / "front", epochs=1, progress=False)
    assert front.kappas == fronts.KAPPAS_OF_FIXED_EPS
    assert read_json(tmp_path / "front/front.json")["kappas"] == list(front.kappas)
    assert load_dataset("digits").name == front.knots[0.8].config["dataset"]
