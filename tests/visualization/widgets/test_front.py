"""The explorer of a front: what it shows at a kappa is what the network there does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import acertlab as al
from acertlab.data.datasets import load_dataset, to_float
from acertlab.training.config import preset
from acertlab.training.loop.front import train_front
from acertlab.visualization.widgets.front import FrontView, front_explorer

KAPPAS = (0.0, 0.5, 0.9)


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits").first(300)


@pytest.fixture(scope="module")
def front(data, tmp_path_factory):
    config = replace(preset("digits", "acert", budget="fast"), epochs=6, ramp_epochs=3, width=4)
    return train_front(config, data, tmp_path_factory.mktemp("front") / "of", KAPPAS, epochs=1, progress=False)


@pytest.fixture(scope="module")
def view(front, data):
    return FrontView(front, data, 80)


@pytest.mark.parametrize("kappa", [0.0, 0.13, 0.5, 0.77])
def test_scores_and_curves_are_those_of_the_network_there(kappa, front, view, data):
    model, (x, y) = front.network(kappa), (to_float(data.test_x[:80]), data.test_y[:80])
    radii = al.certified_radius(model, x, y, view.eps_max).radius
    scores = view.measure(kappa).scores(view.labels, view.eps_max, 0.1)
    assert scores["Acc"] == al.accuracy(model, x, y)
    assert scores["ACR"] == pytest.approx(al.acr(radii, view.eps_max), abs=1e-4)
    assert scores["certified"] == pytest.approx(float((radii >= 0.1).float().mean()), abs=1e-6)
    circle = next(trace for trace in view.tradeoff(kappa)["data"] if trace["name"] == f"kappa = {kappa:g}")
    assert [circle["x"][0], circle["y"][0]] == pytest.approx([100 * scores["Acc"], 100 * scores["ACR"]])
    here = view.curves(kappa, 0.1)["data"][0]
    shares = [100 * float(((radii > 0) & (radii >= eps)).float().mean()) for eps in here["x"]]
    assert np.abs(np.asarray(here["y"]) - shares).max() <= 100 / 80  # a radius at a grid point, searched twice


def test_stored_networks_are_read_and_agree_with_the_measured_ones(front, view):
    assert list(view.stored) == [0.0, 0.25, 0.5, 0.7, 0.9]
    for kappa, of in view.stored.items():
        measured = view.measure(kappa)
        assert (measured.predicted == of.predicted).all()
        assert np.allclose(measured.radii, of.radii, atol=1e-4)


def test_the_text_says_what_was_trained_and_what_was_measured(view):
    assert "The network was trained at this kappa" in view.text(0.5, 0.1)
    between = view.text(0.6, 0.1)
    assert "between those trained at kappa = 0.5 and 0.9; it was not trained itself" in between
    assert between.count("<td") == 3 * 6 and "first 80 test images" in between


def test_images_tell_prediction_radius_and_attack(view):
    plain, attacked = view.images(0.3, False), view.images(0.3, True)
    texts = [[note.text for note in figure.layout.annotations] for figure in (plain, attacked)]
    for i, title in zip(view.picked, texts[0], strict=True):
        assert f"{view.measure(0.3).radii[i]:.4g}" in title
    assert all("[" in title for title in texts[1])
    ends = view.attacks(0.3)
    radii = torch.as_tensor(view.measure(0.3).radii[view.picked])
    assert (torch.as_tensor(ends) >= radii).all()  # no attack inside a certificate


def test_moving_the_slider_shows_another_network(front, data):
    explorer = front_explorer(front, data, images=60)
    assert explorer.controls["kappa"].value in (0.45, 0.4500) and set(KAPPAS) < set(
        dict(explorer.controls["kappa"].options).values()
    )
    before = {name: part.value if hasattr(part, "value") else part.spec for name, part in explorer.parts.items()}
    explorer.controls["kappa"].value = 0.9
    after = {name: part.value if hasattr(part, "value") else part.spec for name, part in explorer.parts.items()}
    assert all(before[name] is not after[name] for name in ("tradeoff", "curves", "text", "images"))
    assert "kappa = 0.9" in explorer.parts["text"].value
    explorer.controls["attack"].value = True
    assert "attacked" in explorer.parts["images"].figure.layout.title.text


def test_bad_input_is_named(front, data):
    with pytest.raises(ValueError, match=r"kappa = 0.95: accepted is"):
        front_explorer(front, data, kappa=0.95)
    other = torch.zeros(20, 1, 9, 8, dtype=torch.uint8)
    for change, found in (
        ({"name": "mine"}, r"300 test images of mine \(10 classes, 1 x 8 x 8\)"),
        ({"classes": ("a", "b")}, r"300 test images of digits \(2 classes, 1 x 8 x 8\)"),
        ({"test_x": other, "train_x": other}, r"300 test images of digits \(10 classes, 1 x 9 x 8\)"),
        ({"test_x": data.test_x[:0], "test_y": data.test_y[:0]}, r"0 test images of digits"),
    ):
        with pytest.raises(
            ValueError, match=rf"data: the front is of digits \(10 classes, 1 x 8 x 8\); these are {found}"
        ):
            FrontView(front, replace(data, **change))
    with pytest.raises(ValueError, match="images = 0"):
        FrontView(front, data, 0)


def test_on_other_images_the_stored_networks_are_measured_anew(front, data, view):
    others = replace(data, test_x=255 - data.test_x)
    there = FrontView(front, others, 80)
    for kappa, stored in there.stored.items():
        x, y = to_float(others.test_x[:80]), data.test_y[:80]
        radii = al.certified_radius(front.network(kappa), x, y, view.eps_max).radius
        assert stored.radii.tolist() == pytest.approx(radii.tolist(), abs=1e-4)
    told = there.text(0.6, 0.1)
    assert "the test images of digits are others here" in told and "measured anew" in told
    assert "anew" not in view.text(0.6, 0.1)
    fewer = FrontView(front, replace(data, test_x=data.test_x[:40], test_y=data.test_y[:40]), 80)
    assert "there are fewer test images" in fewer.text(0.6, 0.1) and len(fewer.stored[0.5].radii) == 40
