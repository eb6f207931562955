"""Which runs the explorer's pickers show: of a dataset, a trained eps_max, shipped ones, mine, or both."""

import pandas as pd
import pytest

from acertlab.data.run import SHIPPED
from acertlab.visualization import widgets


class TestPickers:
    @pytest.fixture
    def several(self, runs):
        """The runs as shipped ones, a run of the same as mine, and mine of another eps_max and another dataset."""
        mine = [runs[:1], runs[:1].assign(eps_max=0.1), runs[:2].assign(dataset="mnist")]
        tables = [runs.assign(origin="shipped"), *(table.assign(origin="mine") for table in mine)]
        return pd.concat(tables, ignore_index=True)

    def test_mine_stand_beside_the_shipped_ones(self, several):
        box = widgets.pareto_explorer(several, choice=widgets.first_choice(several, "digits"))
        assert [trace.name for trace in box.parts["tradeoff"].figure.data[1:4]] == ["Standard", "ACERT", "ACERT (mine)"]
        assert {name: box.pickers[name].value for name in box.pickers} == {
            "dataset": "digits",
            "eps_max": 0.2,
            "origin": "both",
        }
        before = box.controls
        for origin, methods in (("mine", ["acert"]), ("shipped", ["standard", "acert"])):
            box.pickers["origin"].value = origin
            assert [method for _, method in box.controls["first"].options] == methods
        box.pickers["origin"].value = "both"
        assert box.controls is before

    def test_dataset_and_eps_max(self, several):
        box = widgets.pareto_explorer(several, choice=widgets.first_choice(several, "digits"))
        assert [eps for _, eps in box.pickers["eps_max"].options] == [0.1, 0.2]
        box.pickers["eps_max"].value = 0.1
        assert box.pickers["origin"].value == "mine"
        assert "eps_max = 0.1" in box.parts["tradeoff"].figure.layout.title.text
        box.pickers["dataset"].value = "mnist"
        assert (box.pickers["eps_max"].value, box.pickers["origin"].value) == (0.2, "mine")
        assert "MNIST" in box.parts["tradeoff"].figure.layout.title.text
        assert box.children[-1].controls is box.controls

    def test_runs_that_cannot_be_pooled_say_so_and_others_can_be_picked(self, several):
        twice = pd.concat([several, several[several.dataset == "mnist"]], ignore_index=True)
        box = widgets.pareto_explorer(twice, choice=widgets.first_choice(twice, "digits"))
        box.pickers["dataset"].value = "mnist"
        assert "keep one" in box.children[-1].value
        box.pickers["dataset"].value = "digits"
        assert box.children[-1].controls is box.controls

    def test_where_it_opens(self, several):
        cifar = several.assign(dataset=["cifar10", *several.dataset[1:]])
        assert widgets.first_choice(cifar) == widgets.Choice("cifar10", 0.2, "shipped")
        assert widgets.first_choice(cifar, origin="mine").origin == "mine"
        assert widgets.first_choice(cifar, origin="mine").dataset != "cifar10"
        with pytest.raises(ValueError, match=r"none with dataset = 'x'.*digits, 0\.2"):
            widgets.first_choice(several, "x")
        with pytest.raises(ValueError, match="origin = 'ours': accepted are both, shipped, mine"):
            widgets.first_choice(several, origin="ours")

    def test_the_shipped_ones_open_on_cifar10_with_a_standard_network(self, tmp_path):
        runs = widgets.load_beside_shipped(tmp_path)
        choice = widgets.first_choice(runs)
        assert choice == widgets.Choice("cifar10", pytest.approx(8.8 / 255), "shipped")
        assert set(choice.of(runs).method) == {"standard", "fast-ibp", "acert"}
        assert widgets.load_beside_shipped(SHIPPED).origin.eq("mine").all()  # each run once
