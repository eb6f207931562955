"""What the radius explorer shows after a slider moves is what the package computes."""

import numpy as np
import pytest
import torch

import acertlab as al
from acertlab.bounds.margin import certified_margin
from acertlab.models import architectures as models
from acertlab.radius.certified import certified_radius
from acertlab.visualization import widgets
from tests.helpers.figures import same


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = models.mlp((1, 8, 8), 4, width=20).eval()
    x = torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # misclassified
    return model, x, y


class TestRadiusExplorer:
    def test_every_slider_redraws_what_the_package_computes(self, network):
        model, x, y = network
        found = certified_radius(model, x, y, 0.05)
        assert found.radius[0] == 0 < found.radius[1:].min()
        box = widgets.radius_explorer(model, (x, y), 0.05, classes="abcd")
        radius = float(found.radius[4])
        moves = [("image", 3), ("eps", 0.0), ("eps", 0.05), ("image", 0), ("eps", radius / 2), ("image", 4)]
        for name, value in moves:
            box.controls[name].value = value
            i, eps = box.controls["image"].value, box.controls["eps"].value
            one = slice(i, i + 1)
            wanted = widgets.radius_figures(model, x[one], y[one], eps, 0.05, float(found.radius[i]), classes="abcd")
            assert wanted.keys() == box.parts.keys() - {"verdict"}
            for part, figure in wanted.items():
                same(box.parts[part], figure)
            margin = certified_margin(model, x[one], y[one], eps).item()
            assert f"R_cert = {margin:.4g}" in box.parts["verdict"].value
            assert ("certificate broken" in box.parts["verdict"].value) == (margin >= 0)

    def test_the_buttons_go_to_both_sides_of_the_radius(self, network):
        model, x, y = network
        box = widgets.radius_explorer(model, (x, y), 0.5)
        box.controls["image"].value = 2
        radius = float(certified_radius(model, x[2:3], y[2:3], 0.5).radius)
        at, beyond = box.children[1].children
        beyond.click()
        assert "certificate broken" in box.parts["verdict"].value
        at.click()
        assert box.controls["eps"].value == pytest.approx(radius, rel=1e-6)
        assert "certificate broken" not in box.parts["verdict"].value

    def test_the_axis_of_the_logits_stays_and_their_intervals_grow_on_it(self, network):
        box = widgets.radius_explorer(network[0], network[1:], 0.05)
        spans, widths = set(), []
        for eps in (0.0, 0.01, 0.02, 0.05):
            box.controls["eps"].value = eps
            figure = box.parts["logits"].figure
            spans.add(figure.layout.xaxis.range)
            widths.append(sum(sum(bar.x) for bar in figure.data[:3]))
        assert len(spans) == 1
        assert widths[0] == 0 and (np.diff(widths) > 0).all()
        (low, high), shown = spans.pop(), box.parts["logits"].figure.data[:3]
        clean = widgets.certificate_at(network[0], network[1][1:2], network[2][1:2], 0.0).logits
        assert low < float(clean.lower.min()) and high > float(clean.upper.max())
        assert sum(len(bar.y) for bar in shown) == 4

    def test_a_dataset(self):
        data = al.load_dataset("digits")
        model = models.mlp(data.in_shape, data.num_classes, width=20).eval()
        box = widgets.radius_explorer(model, data, images=7)
        assert (box.controls["image"].max, box.controls["eps"].max) == (6, 0.2)
        assert [trace.name for trace in box.parts["logits"].figure.data[:1]] == ["true class"]

    def test_what_is_needed(self, network):
        model, x, y = network
        with pytest.raises(ValueError, match="eps_max: is needed where data are tensors"):
            widgets.radius_explorer(model, (x, y))
        with pytest.raises(ValueError, match="data: holds no images"):
            widgets.radius_explorer(model, (x[:0], y[:0]), 0.1)

    def test_certified_up_to_the_radius_and_not_beyond(self, network):
        model, x, y = network
        found = certified_radius(model, x, y, 0.5)
        for i in range(1, 6):
            one = slice(i, i + 1)
            assert widgets.certificate_at(model, x[one], y[one], float(found.radius[i])).margin < 0
            assert widgets.certificate_at(model, x[one], y[one], float(found.upper[i])).margin >= 0

    def test_certificate_at(self, network):
        model, x, y = network
        found = widgets.certificate_at(model, x[1:2], y[1:2], 0.01)
        wrong = torch.arange(4) != y[1]
        difference = found.logits.upper[0][wrong].max() - found.logits.lower[0, y[1]]
        assert found.margin_eq3 == pytest.approx(float(difference), rel=1e-5)
        assert found.margin <= found.margin_eq3 + 1e-6

    def test_margins_over_is_the_margin_at_each_eps(self, network):
        model, x, y = network
        eps = np.linspace(0, 0.1, 7)
        one_by_one = [certified_margin(model, x[1:2], y[1:2], float(e)).item() for e in eps]
        np.testing.assert_allclose(widgets.margins_over(model, x[1:2], y[1:2], eps), one_by_one, atol=1e-6)
