"""The images of a run with their ranges, alone and in the explorer."""

import html
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import acertlab as al
from acertlab.bounds.margin import certified_margin
from acertlab.data.files import write_json
from acertlab.data.run import load_run
from acertlab.training.parameters import training_command
from acertlab.visualization import widgets
from acertlab.visualization.widgets import gallery
from tests.helpers.figures import same


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """A run on the digits, barely trained."""
    config = replace(al.preset("digits", "acert", budget="smoke"), epochs=4, ramp_epochs=3)
    folder = tmp_path_factory.mktemp("real") / "run"
    al.train(config, al.load_dataset("digits"), folder, progress=False)
    return folder


class TestGallery:
    def test_best_and_worst_with_their_ranges(self, real_run):
        run, shown = load_run(real_run), widgets.gallery_of([str(real_run)])
        positive = np.sort(run.radii.radius[run.radii.radius > 0])
        np.testing.assert_allclose(shown.certified[: shown.best], positive[::-1][: gallery.EACH])
        np.testing.assert_allclose(shown.certified[shown.best :], positive[: gallery.EACH])
        assert (shown.certified <= shown.attacked).all()
        assert shown.note == ""
        numbers = [int(title.split("no. ")[1]) for title in shown.titles]
        data = al.load_dataset("digits")
        np.testing.assert_array_equal(shown.images, al.to_float(data.test_x[numbers]))
        y = data.test_y[numbers]
        certified = torch.tensor(shown.certified, dtype=torch.float32)
        assert (certified_margin(run.load_model(), torch.tensor(shown.images), y, certified) < 0).all()
        texts = [note.text for note in widgets.gallery_figure(shown).layout.annotations]
        assert texts[0] == f"{shown.titles[0]}<br>{shown.ranges[0]}"
        assert widgets.gallery_of([str(real_run)]) is shown  # kept

    def test_without_weights_without_a_dataset(self, real_run, tmp_path):
        packed = tmp_path / "run"
        packed.mkdir()
        for name in ("config.json", "history.parquet", "radii.parquet", "result.json"):
            (packed / name).write_bytes((real_run / name).read_bytes())
        (packed / "model.safetensors").write_bytes(b"")
        shown = widgets.gallery_of([str(packed)])
        assert shown.attacked is None and shown.images is not None
        assert "No attacks" in widgets.gallery_text(shown)
        (packed / "model.safetensors").unlink()
        shown = widgets.gallery_of([str(packed)])
        assert "it lacks model.safetensors" in widgets.gallery_text(shown)
        (packed / "model.safetensors").write_bytes(b"")
        write_json(packed / "result.json", load_run(real_run).result | {"dataset": f"folder:{tmp_path}/none"})
        shown = widgets.gallery_of([str(packed)])
        assert shown.images is None
        assert "No images are shown" in widgets.gallery_text(shown)
        assert f"certified {shown.certified[0]:.3g}" in widgets.gallery_text(shown)
        assert len(widgets.gallery_figure(shown).data) == 1

    def test_in_the_explorer_once_asked_for(self, real_run):
        box = widgets.pareto_explorer(real_run.parent)
        images = next(row for row in box.children if box.controls["images"] in getattr(row, "children", ()))
        assert len(images.children) == 1
        box.controls["images"].value = True
        _, fitted, text = images.children
        live = fitted.children[0].children[0]
        same(live, widgets.gallery_figure(widgets.gallery_of([str(real_run)])))
        assert text.value.startswith("Up to the first number")
        box.controls["images"].value = False
        assert len(images.children) == 1

    def test_the_command_of_the_picked_network(self, real_run, runs, networks):
        box = widgets.pareto_explorer(real_run.parent)
        command = re.search("<pre.*?>(.*)</pre>", box.parts["command"].value, re.S).group(1)
        config = replace(al.preset("digits", "acert", budget="smoke"), epochs=4, ramp_epochs=3)
        assert html.unescape(command) == training_command(config)
        unfinished = widgets.pareto_texts(networks, widgets.first_view(networks))["command"]
        assert "# the run folder" in unfinished  # no command, but why
