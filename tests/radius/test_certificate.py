"""`certify` over loaders of every kind, its report in every form, and calls that were killed."""

import json
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import acertlab.radius.certificate
from acertlab.bounds.box import Box
from acertlab.bounds.rules.dispatch import rule
from acertlab.data.run import RADII_COLUMNS
from acertlab.radius import metrics
from acertlab.radius.certificate import PAIR_BATCH, Report, certify
from acertlab.radius.certified import certified_radius, find_radii
from acertlab.radius.search import RadiusStatus
from tests.helpers.networks import Trained

EPS_MAX = 0.2


@pytest.fixture
def batches(digits_net: Trained) -> list[tuple[Tensor, Tensor]]:
    return list(zip(digits_net.x[:150].split(40), digits_net.y[:150].split(40), strict=True))


@pytest.fixture
def report(digits_net: Trained, batches: list) -> Report:
    return certify(digits_net.model, batches, EPS_MAX, progress=False)


def test_the_numbers_are_those_of_the_samples_one_by_one(digits_net: Trained, report: Report) -> None:
    x, y = digits_net.x[:150], digits_net.y[:150]
    result = certified_radius(digits_net.model, x, y, EPS_MAX)
    assert list(report.radii) == [*RADII_COLUMNS, "evaluations"] and report.radii["index"].tolist() == [*range(150)]
    assert np.allclose(report.radii["radius"], result.radius, rtol=3e-5, atol=3e-8)
    assert (report.radii["status"].to_numpy() == result.status.numpy()).all()
    assert report.accuracy == metrics.accuracy(digits_net.model, x, y)
    assert report.acr == pytest.approx(metrics.acr(result.radius, EPS_MAX), rel=1e-4)
    assert report.art == (report.accuracy * report.acr) ** 0.5
    assert len(report.cert_acc) == 11 and report.cert_acc[0.0] == report.accuracy
    said = report.settings
    assert (said["verifier"], said["merged"], said["sound"], said["domain"]) == ("ibp", True, False, (0.0, 1.0))
    assert (said["eps_max"], said["n"], said["dtype"], said["monotone"]) == (EPS_MAX, 150, "float32", True)
    assert said["evaluations"] == report.radii["evaluations"].sum() and said["seconds"] > 0


def test_the_worst_samples_are_correct_ones_with_the_smallest_radii(digits_net: Trained, report: Report) -> None:
    radii = report.radii[report.radii["status"] != RadiusStatus.MISCLASSIFIED].sort_values("radius", kind="stable")
    assert len(report.worst) == 8 and (report.worst["label"] == report.worst["predicted"]).all()
    assert list(report.worst["index"]) == list(radii["index"][:8])
    assert torch.equal(report.images, digits_net.x[report.worst["index"].tolist()])


class Stream(IterableDataset):
    """Batches whose number nobody knows beforehand."""

    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: DataLoader(TensorDataset(x, y), 64),
        lambda x, y: DataLoader(Stream([(x[:9], y[:9]), (x[9:], y[9:])]), batch_size=None),
        lambda x, y: ((a, b) for a, b in zip(x.split(100), y.split(100), strict=True)),
        lambda x, y: [(x[:1], y[:1].byte()), (x[1:1], y[1:1]), (x[1:].contiguous(), y[1:].int())],
        lambda x, y: ((255 * x).round().byte(), y),
    ],
    ids=["pair", "list pair", "DataLoader", "stream", "generator", "small and empty batches", "bytes"],
)
def test_loaders_of_every_kind(digits_net: Trained, make: Callable) -> None:
    x, y = (digits_net.x[:150] * 255).round() / 255, digits_net.y[:150]
    whole = certify(digits_net.model, [(x, y)], 0.1, worst=2, progress=False)
    report = certify(digits_net.model, make(x, y), 0.1, worst=2, progress=False)
    assert np.allclose(report.radii["radius"], whole.radii["radius"], rtol=3e-5, atol=3e-8)
    assert report.images.dtype == torch.float32 and torch.allclose(report.images, whole.images, atol=1e-7)


def test_a_pair_of_tensors_is_cut_into_batches(digits_net: Trained, tmp_path: Path) -> None:
    assert len(digits_net.x) > PAIR_BATCH
    certify(digits_net.model, (digits_net.x, digits_net.y), 0.1, run_dir=tmp_path, progress=False)
    assert len(list(tmp_path.glob("batch-*.parquet"))) == -(-len(digits_net.x) // PAIR_BATCH)


def test_settings_reach_the_search(digits_net: Trained, batches: list) -> None:
    settings = {"merged": False, "domain": None, "solver": "bisect", "xtol": 1e-3, "rtol": 1e-2, "maxiter": 7}
    report = certify(digits_net.model, batches[:1], 0.1, **settings, eps_grid=(0.05,), worst=0, progress=False)
    result = certified_radius(digits_net.model, *batches[0], 0.1, **settings)
    assert np.array_equal(report.radii["radius"], result.radius.numpy())
    assert settings.items() <= report.settings.items() and list(report.cert_acc) == [0.05] and not len(report.worst)
    sound = certify(digits_net.model, batches[:1], 0.1, sound=True, progress=False)
    assert sound.settings["sound"] is True and sound.acr <= report.acr + 0.1


def test_progress_knows_the_number_of_batches(
    digits_net: Trained, batches: list, capsys: pytest.CaptureFixture
) -> None:
    certify(digits_net.model, batches, 0.1)
    assert "4/4" in capsys.readouterr().err
    certify(digits_net.model, batches, 0.1, progress=False)
    assert not capsys.readouterr().err


def test_table_and_notebook(report: Report) -> None:
    table = report.table().set_index("quantity")["value"]
    assert table["Acc (%)"] == 100 * report.accuracy and table["verifier"] == "ibp" and table["n"] == "150"
    assert sum(table[f"samples {status.name}"] for status in RadiusStatus) == 150
    assert report._repr_html_().startswith("<table") and f"{100 * report.acr:.2f}" in report._repr_html_()


def test_it_is_told_in_words(report: Report, tmp_path: Path) -> None:
    said = str(report)
    assert said.startswith(f"Of 150 samples {100 * report.accuracy:.1f} % are classified correctly, and ")
    whole = (report.radii["status"] == RadiusStatus.AT_EPS_MAX).mean()
    assert (
        f" {100 * whole:.1f} % provably stay so" in said and f" {100 * report.acr:.1f} % of that (ACR), by ibp" in said
    )
    assert "Certified at eps_max" in said and "tensor(" not in said and len(said.splitlines()) < 20
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8").partition("<body>")[2]
    assert report.sentence() in page
    for status in report.radii["status"].unique():
        assert page.count(RadiusStatus(status).sentence) == 1 + (report.worst["status"] == status).sum()


def test_the_picture_holds_curve_histogram_and_images(digits_net: Trained, report: Report) -> None:
    figure = report.plot()
    kinds = [trace.type for trace in figure.data]
    assert kinds[0] == "scatter" and "bar" in kinds and kinds[-1] == "image"
    assert figure.data[0].y[0] == 100 * report.accuracy
    assert {trace.xaxis for trace in figure.data} == {"x", "x2", "x3"} and figure.layout.yaxis3.scaleanchor == "x3"
    assert sum("radius" in (note.text or "") and note.xref == "x3" for note in figure.layout.annotations) == 8
    flat = certify(
        nn.Sequential(nn.Linear(64, 10)).eval(), (digits_net.x.flatten(1), digits_net.y), 0.1, progress=False
    )
    assert all(trace.type != "image" for trace in flat.plot().data)  # no images, no picture of them


def test_json_and_a_page_that_works_offline(report: Report, tmp_path: Path) -> None:
    report.to_json(tmp_path / "deep" / "report.json")
    told = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert told["acr"] == report.acr and told["settings"]["domain"] == [0.0, 1.0] and len(told["cert_acc"]) == 11
    assert (
        told["radii"]["radius"] == report.radii["radius"].tolist() and told["worst"] == report.worst["index"].tolist()
    )
    assert None in told["radii"]["upper"]  # infinite: certified at eps_max
    report.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and f"ACR {100 * report.acr:.2f} %" in page and "Plotly.newPlot" in page
    assert len(page) > 3e6 and '<script src="' not in page  # plotly.js is inside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "report.html"]


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches whose radii are searched."""
    sizes: list[int] = []

    def search(model: nn.Module, x: Tensor, *args: object, **kwargs: object) -> object:
        sizes.append(len(x))
        return find_radii(model, x, *args, **kwargs)

    monkeypatch.setattr(acertlab.radius.certificate, "find_radii", search)
    return sizes


def same(first: Report, second: Report) -> bool:
    settings = [{k: v for k, v in r.settings.items() if k != "seconds"} for r in (first, second)]
    tables = first.radii.equals(second.radii) and first.worst.equals(second.worst)
    return tables and torch.equal(first.images, second.images) and settings[0] == settings[1]


def test_finished_batches_are_not_computed_again(
    digits_net: Trained, batches: list, report: Report, searched: list, tmp_path: Path
) -> None:
    def interrupted():
        yield from batches[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify(digits_net.model, interrupted(), EPS_MAX, run_dir=tmp_path, progress=False)
    assert searched == [40, 40]
    resumed = certify(digits_net.model, batches, EPS_MAX, run_dir=tmp_path, progress=False)
    assert searched == [40, 40, 40, 30] and same(resumed, report)
    again = certify(digits_net.model, batches, EPS_MAX, run_dir=tmp_path, progress=False)
    assert len(searched) == 4 and same(again, report) and again.settings["seconds"] == resumed.settings["seconds"]
    anew = certify(digits_net.model, batches[::-1], EPS_MAX, run_dir=tmp_path, resume=False, progress=False)
    assert searched[4:] == [30, 40, 40, 40] and len(list(tmp_path.glob("batch-*.parquet"))) == 4
    assert anew.acr == pytest.approx(report.acr)


SCRIPT = """
import sys, time, torch
from acertlab.radius.certificate import certify
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3)).eval()
x, y = torch.rand(60, 6), torch.arange(60) % 3
def batches():
    for pair in zip(x.split(10), y.split(10)):
        time.sleep(float(sys.argv[2]))
        yield pair
report = certify(model, batches(), 0.2, run_dir=sys.argv[1] or None, progress=False)
"""


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle; the same call again finds the finished batches and ends with the same numbers."""
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)

    def here(run_dir: str) -> Report:
        monkeypatch.setattr(sys, "argv", [str(script), run_dir, "0"])
        return runpy.run_path(str(script))["report"]

    killed = subprocess.Popen([sys.executable, script, folder, "0.5"])
    deadline = time.monotonic() + 120
    while len(list(folder.glob("batch-*.parquet"))) < 2 and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in folder.glob("batch-*.parquet")}
    assert 2 <= len(done) < 6
    resumed = here(str(folder))
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())  # kept as they were
    assert len(list(folder.glob("batch-*.parquet"))) == 6
    assert same(resumed, here(""))


class Shifted(nn.Module):
    """A network whose state dict does not tell all that it computes."""

    def __init__(self, **changed: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mean, self.slope, self.double, self.hidden, self.head = 0.5, 0.1, False, nn.Linear(4, 8), nn.Linear(8, 3)
        self.offset = torch.zeros(8)
        vars(self).update(changed)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.leaky_relu(self.hidden((x - self.mean) / 0.25), self.slope) + self.offset
        return self.head(2 * h if self.double else h)


def hooked() -> nn.Module:
    net = Shifted()
    net.hidden.register_forward_hook(lambda layer, args, out: out + 1)
    return net


@pytest.mark.parametrize(
    "other",
    [
        lambda: Shifted(mean=0.1),
        lambda: Shifted(slope=0.3),
        lambda: Shifted(double=True),
        lambda: Shifted(offset=torch.ones(8)),
        hooked,
    ],
)
def test_another_network_of_the_same_state_dict_is_refused(other: Callable[[], nn.Module], tmp_path: Path) -> None:
    x = torch.rand(6, 4)
    batch = (x, Shifted().eval()(x).argmax(1))
    first = certify(Shifted().eval(), batch, EPS_MAX, run_dir=tmp_path, progress=False)
    again = certify(Shifted().eval(), batch, EPS_MAX, run_dir=tmp_path, progress=False)
    assert again.radii.equals(first.radii)
    with pytest.raises(ValueError, match="begun with another network"):
        certify(other().eval(), batch, EPS_MAX, run_dir=tmp_path, progress=False)


class Scaled(nn.Module):
    """A layer with a rule of its own, which stays whole in the graph."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@rule.register(Scaled)
def _scaled(layer: Scaled, box: Box) -> Box:
    return Box(layer.factor * box.lower, layer.factor * box.upper)


def test_numbers_of_a_layer_that_stays_whole_tell_networks_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, last, x = nn.Linear(4, 4), nn.Linear(4, 3), torch.rand(6, 4)
    one, other = (nn.Sequential(first, Scaled(factor), last).eval() for factor in (1.0, 5.0))
    certify(one, (x, one(x).argmax(1)), EPS_MAX, run_dir=tmp_path, progress=False)
    with pytest.raises(ValueError, match="begun with another network"):
        certify(other, (x, one(x).argmax(1)), EPS_MAX, run_dir=tmp_path, progress=False)


def test_another_network_setting_or_sample_is_refused(digits_net: Trained, batches: list, tmp_path: Path) -> None:
    certify(digits_net.model, batches[:2], EPS_MAX, run_dir=tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = [(batches[0][0] * 0.99, batches[0][1]), batches[1]]
    relabelled = [(batches[0][0], batches[0][1].roll(1)), batches[1]]
    model = nn.Sequential(digits_net.model, nn.Identity()).eval()
    calls = [
        ((digits_net.model, batches, 0.1), {}, "begun with eps_max = 0.2, not 0.1"),
        ((digits_net.model, batches, EPS_MAX), {"rtol": 1e-4}, "begun with rtol = 1e-05, not 0.0001"),
        ((digits_net.model, batches, EPS_MAX), {"domain": None}, r"begun with domain = \[0.0, 1.0\], not None"),
        ((digits_net.model, batches, EPS_MAX), {"sound": True}, "begun with sound = False, not True"),
        ((model, batches, EPS_MAX), {}, "begun with another network; choose another run_dir, or resume=False"),
        ((digits_net.model, other, EPS_MAX), {}, "begun with other samples in batch 0; a loader that shuffles"),
        ((digits_net.model, relabelled, EPS_MAX), {}, "begun with other samples in batch 0"),
    ]
    for arguments, settings, message in calls:
        with pytest.raises(ValueError, match=message):
            certify(*arguments, run_dir=tmp_path, progress=False, **settings)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_changed_are_noticed(batches: list, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    certify(model, batches[:1], EPS_MAX, run_dir=tmp_path, progress=False)
    with torch.no_grad():
        model[1].bias[3] += 1e-6
    with pytest.raises(ValueError, match="begun with another network"):
        certify(model, batches[:1], EPS_MAX, run_dir=tmp_path, progress=False)


def test_a_damaged_folder_is_named(digits_net: Trained, batches: list, tmp_path: Path) -> None:
    certify(digits_net.model, batches[:2], EPS_MAX, run_dir=tmp_path, progress=False)
    broken = min(tmp_path.glob("batch-*.parquet"))
    broken.write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=f"{broken.name} cannot be read .* delete it"):
        certify(digits_net.model, batches[:2], EPS_MAX, run_dir=tmp_path, progress=False)
    (tmp_path / "certify.json").write_text("{")
    with pytest.raises(ValueError, match="certify.json cannot be read as JSON"):
        certify(digits_net.model, batches[:2], EPS_MAX, run_dir=tmp_path, progress=False)
    (tmp_path / "certify.json").unlink()
    with pytest.raises(ValueError, match=r"holds batches, but no certify\.json"):
        certify(digits_net.model, batches[:2], EPS_MAX, run_dir=tmp_path, progress=False)
    certify(digits_net.model, batches[:2], EPS_MAX, run_dir=tmp_path, resume=False, progress=False)
    assert isinstance(pd.read_parquet(broken), pd.DataFrame)


X, Y = torch.rand(4, 64), torch.arange(4)
MODEL = nn.Sequential(nn.Linear(64, 10)).eval()


@pytest.mark.parametrize(
    "arguments, settings, kind, message",
    [
        ((MODEL, 3, 0.1), {}, TypeError, "loader: must give batches .*; not int"),
        ((MODEL, "mnist", 0.1), {}, TypeError, "loader: .* not str"),
        ((MODEL, {"x": X}, 0.1), {}, TypeError, "loader: .* not dict"),
        ((MODEL, X, 0.1), {}, TypeError, "loader: .* not Tensor"),
        ((MODEL, [X, X, X], 0.1), {}, TypeError, "its item 0 is Tensor; it must give batches"),
        ((MODEL, [(X, 3)], 0.1), {}, TypeError, r"its item 0 is \(Tensor, int\)"),
        ((MODEL, [(X[:0], Y[:0]), (X, Y, Y)], 0.1), {}, TypeError, r"its item 1 is \(Tensor, Tensor, Tensor\)"),
        ((MODEL, [(X.numpy(), "abcd")], 0.1), {}, TypeError, r"\(ndarray, str\)"),
        ((MODEL, [(X, Y[:3])], 0.1), {}, ValueError, r"its batch 0 has shapes \(4, 64\) and \(3,\)"),
        ((MODEL, (X, Y[:, None]), 0.1), {}, ValueError, r"its batch 0 has shapes \(4, 64\) and \(4, 1\)"),
        ((MODEL, [], 0.1), {}, ValueError, "loader: gave no samples"),
        ((MODEL, (X[:0], Y[:0]), 0.1), {}, ValueError, "loader: gave no samples"),
        ((MODEL, (pair for pair in ()), 0.1), {}, ValueError, "a generator that was used up"),
        ((MODEL, [(X, Y.float())], 0.1), {}, TypeError, "y: must be an integer tensor"),
        ((MODEL, [(X, Y + 8)], 0.1), {}, ValueError, "y: holds labels from 8 to 11"),
        ((MODEL, [(X * 2, Y)], 0.1), {}, ValueError, "x: values from .* lie outside the domain"),
        ((MODEL, [(X.double(), Y)], 0.1), {}, ValueError, "x: dtype torch.float64 differs from the model's"),
        ((nn.Sequential(nn.Linear(64, 10), nn.Dropout()), [(X, Y)], 0.1), {}, ValueError, "model: is in training mode"),
        ((len, [(X, Y)], 0.1), {}, TypeError, "model: must be a torch.nn.Module"),
        ((MODEL, [(X, Y)], 0.0), {}, ValueError, "eps_max = .*: accepted is a finite number > 0"),
        ((MODEL, [(X, Y)], "8 of 255"), {}, ValueError, "eps_max = .*: accepted is a finite number > 0"),
        ((MODEL, [(X, Y)], 0.1), {"worst": -1}, ValueError, "worst = -1: accepted is a whole number >= 0"),
        ((MODEL, [(X, Y)], 0.1), {"eps_grid": (0.0, 0.2)}, ValueError, r"eps_grid: \[0.0, 0.2\] has values outside"),
        ((MODEL, [(X, Y)], 0.1), {"bound": "deeppoly"}, ValueError, "bound: 'deeppoly' is unknown"),
        ((MODEL, [(X, Y)], 0.1), {"solver": "newton"}, ValueError, "solver"),
    ],
)
def test_bad_calls(arguments: tuple, settings: dict, kind: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message):
        certify(*arguments, run_dir=tmp_path, progress=False, **settings)
    assert not list(tmp_path.iterdir())


def test_the_batch_that_fails_is_named() -> None:
    with pytest.raises(ValueError, match="x: values") as caught:
        certify(MODEL, [(X, Y), (X * 2, Y)], 0.1, progress=False)
    assert caught.value.__notes__ == ["This was batch 1 of the loader."]
