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
from acertlab.data.run import SHIPPED, load_run
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
        assert f"{shown.titles[0]}: {shown.certified[0]:.4g}" in widgets.gallery_text(shown)
        assert len(widgets.gallery_figure(shown).data) == 1

    def test_in_the_explorer_once_asked_for(self, real_run):
        box = widgets.pareto_explorer(real_run.parent)
        tab = box.controls["tab"]
        place = tab.titles.index("Its images")
        images = tab.children[place].children[1]
        assert images.children == ()
        tab.selected_index = place
        live, text = images.children
        same(live, widgets.gallery_figure(widgets.gallery_of([str(real_run)])))
        assert text.value.startswith("Up to the first number")

    def test_shipped_runs_have_their_images_without_a_dataset(self, monkeypatch):
        monkeypatch.setenv("ACERTLAB_DATA", "/nowhere")
        runs = al.load_runs(SHIPPED)
        for path in runs[runs.seed == 0].path:
            shown = widgets.gallery_of([path])
            assert shown.images is not None, path
            assert len(shown.images) == 2 * gallery.EACH and len(set(shown.titles)) == 2 * gallery.EACH
            assert "No attacks" in widgets.gallery_text(shown)
        assert sum(file.stat().st_size for file in (SHIPPED / "images").iterdir()) < 60_000

    @pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
    def test_shipped_images_are_those_of_the_dataset(self, dataset):
        try:
            data = al.load_dataset(dataset, download=False)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        runs = al.load_runs(SHIPPED)
        shown = widgets.gallery_of([runs[(runs.dataset == dataset) & (runs.seed == 0)].path.iloc[0]])
        numbers = [int(title.split("no. ")[1]) for title in shown.titles]
        apart = np.abs(shown.images - al.to_float(data.test_x[numbers]).numpy())
        assert apart.mean() < (0.02 if dataset == "cifar10" else 1e-6)  # a JPEG, and exact
        names = [data.classes[label] for label in data.test_y[numbers]]
        assert [title.split(", no.")[0] for title in shown.titles] == names

    def test_the_command_of_the_picked_network(self, real_run, runs, networks):
        box = widgets.pareto_explorer(real_run.parent)
        command = re.search("<pre.*?>(.*)</pre>", box.parts["command"].value, re.S).group(1)
        config = replace(al.preset("digits", "acert", budget="smoke"), epochs=4, ramp_epochs=3)
        assert html.unescape(command) == training_command(config)
        unfinished = widgets.pareto_texts(networks, widgets.first_view(networks))["command"]
        assert "# the run folder" in unfinished  # no command, but why
