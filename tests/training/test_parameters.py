"""A notebook's parameters: checked, made into a configuration, and the command that leads back to it."""

import json
import shlex
import warnings
from dataclasses import asdict, fields, replace

import nbformat
import papermill
import pytest
import yaml
from hypothesis import given, settings, strategies as st

from acertlab._validation import Within
from acertlab.data.run import defaults_before
from acertlab.training.config import TrainConfig, preset
from acertlab.training.loop.front import KAPPAS
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.parameters import (
    PARAMETERS,
    check_parameters,
    config_from_parameters,
    config_of,
    default_run_dir,
    front_kappas,
    training_command,
)
from acertlab.training.presets import BUDGETS

SPEC = {
    "eps_max": Within(0, 1, open_low=True),
    "kappa": Within(0, 1),
    "method": ("ibp", "acert"),
    "epochs": Within(1, kind=int),
    "seed": int,
    "out_dir": str,
    "fast": bool,
}


GOOD = {"eps_max": 0.4, "kappa": 0.0, "method": "acert", "epochs": 3, "seed": 0, "out_dir": "", "fast": False}


class TestCheckParameters:
    def test_coerced_in_the_order_of_the_spec(self):
        values = check_parameters(
            GOOD | {"eps_max": "8/255", "kappa": 1, "epochs": "5", "fast": "true", "other": 3}, SPEC
        )
        assert list(values) == list(SPEC)
        assert values == GOOD | {"eps_max": 8 / 255, "kappa": 1.0, "epochs": 5, "fast": True}
        assert isinstance(values["kappa"], float)
        assert isinstance(values["epochs"], int)
        assert check_parameters({"eps": "8.8/255"}, {"eps": float}) == {"eps": 8.8 / 255}

    @pytest.mark.parametrize(
        ("name", "value", "accepted"),
        [
            ("eps_max", 0, r"a number \(0.1 or \"8/255\"\) > 0 and <= 1"),
            ("eps_max", 1.5, "<= 1"),
            ("eps_max", "8/0", "> 0"),
            ("eps_max", "large", "> 0"),
            ("eps_max", float("nan"), "> 0"),
            ("eps_max", None, "> 0"),
            ("eps_max", True, "> 0"),
            ("kappa", -0.1, ">= 0 and <= 1"),
            ("method", "acret", r"ibp, acert \(did you mean 'acert'\?\)"),
            ("epochs", 2.5, "a whole number >= 1"),
            ("epochs", 0, "a whole number >= 1"),
            ("seed", "x", "a whole number"),
            ("out_dir", 3, "text"),
            ("fast", 1, "True or False"),
        ],
    )
    def test_every_fault_names_parameter_value_and_what_is_accepted(self, name, value, accepted):
        with pytest.raises(ValueError, match=f"parameter {name} = .*: accepted (is|are) .*{accepted}") as error:
            check_parameters(GOOD | {name: value}, SPEC)
        assert repr(value) in str(error.value)

    def test_a_function_as_the_check(self):
        def even(value):
            if value % 2:
                raise ValueError("an even number")
            return value

        assert check_parameters({"a": 2}, {"a": even}) == {"a": 2}
        with pytest.raises(ValueError, match="parameter a = 3: accepted is an even number"):
            check_parameters({"a": 3}, {"a": even})

    def test_a_parameter_that_is_not_set(self):
        with pytest.raises(ValueError, match="does not set kappa"):
            check_parameters({"eps_max": 0.1}, {"eps_max": float, "kappa": float})

    @given(st.integers(0, 10**6), st.integers(1, 10**6))
    def test_fractions(self, top, bottom):
        assert check_parameters({"eps": f"{top}/{bottom}"}, {"eps": float})["eps"] == top / bottom


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A notebook with one parameter, whose last cell is run twice over variables of its own."""
    check = (
        "from acertlab._validation import Within\nfrom acertlab.training.parameters import check_parameters\n"
        "(kappa,) = check_parameters(globals(), {'kappa': Within(0, 1)}).values()"
    )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    new = nbformat.v4
    cells = [
        new.new_code_cell("kappa = 0.0  # share of the clean loss", metadata={"tags": ["parameters"]}),
        new.new_code_cell(check),
        new.new_code_cell("own_variable = 3"),
        new.new_code_cell(check + "\nprint(repr(kappa))"),
    ]
    path = tmp_path_factory.mktemp("notebook") / "a.ipynb"
    nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def execute(notebook, **parameters):
    with warnings.catch_warnings():  # papermill's and the kernel's own
        warnings.simplefilter("ignore")
        return papermill.execute_notebook(notebook, None, parameters, progress_bar=False, log_output=False)


class TestThroughPapermill:
    def test_a_fraction_arrives_as_a_number(self, notebook):
        executed = execute(notebook, kappa="1/4")
        assert executed.cells[-1].outputs[0].text == "0.25\n"

    def test_a_misspelt_name_stops_the_notebook(self, notebook):
        with pytest.raises(papermill.PapermillExecutionError, match=r"'kapa' is not a parameter.*did you mean 'kappa'"):
            execute(notebook, kapa=0.5)


# ---- to a configuration
def test_notebook_parameters_replace_a_preset_where_they_are_set():
    unset = {
        "dataset": "mnist",
        "method": "acert",
        "budget": "fast",
        "kappa": 0.0,
        "front": False,
        "kappas": "",
        "seed": 0,
        "eps_max": 0.0,
        "model": "",
        "width": 0,
        "epochs": 0,
        "batch_size": 0,
        "device": "auto",
        "data_root": "",
        "run_dir": "",
        "settings": {},
    }
    assert unset.keys() == PARAMETERS.keys()
    fast = preset("mnist", "acert", budget="fast")
    assert config_from_parameters(check_parameters(unset, PARAMETERS)) == fast
    asked = unset | {"kappa": 0.25, "eps_max": "25.5/255", "width": 8, "epochs": 12, "seed": 3}
    config = config_from_parameters(check_parameters(asked, PARAMETERS))
    assert config == replace(fast, kappa=0.25, eps_max=0.1, width=8, epochs=12, ramp_epochs=6, seed=3)
    paper = config_from_parameters(unset | {"method": "fast-ibp", "budget": "paper", "epochs": 7})
    assert (paper.epochs, paper.ramp_epochs, paper.milestones) == (7, 2, (5, 6))
    assert config_from_parameters(unset | {"epochs": 1}).epochs == 1
    for name, value, accepted in (
        ("budget", "tiny", "smoke, fast, paper"),
        ("eps_max", "8/0", ">= 0 and <= 1"),
        ("dataset", "minst", "digits, mnist"),
        ("method", "acrt", "did you mean 'acert'"),
        ("model", "resnet", "small_cnn, cnn7"),
        ("epochs", 2.5, "a whole number"),
    ):
        with pytest.raises(ValueError, match=f"{name} = {value!r}: accepted.*{accepted}"):
            config_from_parameters(check_parameters(unset | {name: value}, PARAMETERS))


def test_a_front_is_asked_for_by_its_kappas():
    asked = {"dataset": "digits", "method": "acert", "budget": "fast", "kappa": 0.0, "seed": 0}
    config = config_from_parameters(asked)

    def walk(given):
        told = check_parameters(given, {name: PARAMETERS[name] for name in ("front", "kappas")})
        return front_kappas(told, config)

    assert walk({"front": False, "kappas": ""}) is None
    assert walk({"front": "true", "kappas": ""}) == KAPPAS
    for written in ("0 0.25 1/2", "0,0.25, 0.5", [0, 0.25, "1/2"]):
        assert walk({"front": True, "kappas": written}) == (0.0, 0.25, 0.5)
    one, other = (default_run_dir(config, "runs", kappas) for kappas in ((0.0, 0.5), (0.0, 0.6)))
    assert "-front-" in one.name and one != other and "kappa0" in default_run_dir(config, "runs").name
    for wrong, said in (
        ({"front": False, "kappas": "0 0.5"}, "kappas = '0 0.5': accepted is \"\", unless front = True"),
        ({"front": True, "kappas": "0 half"}, "parameter kappas = '0 half': accepted is numbers with blanks"),
        ({"front": True, "kappas": 0.5}, "parameter kappas = 0.5: accepted is numbers with blanks"),
        ({"front": True, "kappas": "0 0.5 0.2"}, r"kappas = \[0.0, 0.5, 0.2\]: accepted is two or more, all rising"),
        ({"front": 2, "kappas": ""}, "parameter front = 2: accepted is True or False"),
    ):
        with pytest.raises(ValueError, match=said):
            walk(wrong)
    with pytest.raises(ValueError, match="config.method = 'standard': accepted is a method with kappa"):
        front_kappas({"front": True, "kappas": ""}, replace(config, method="standard"))


def test_other_settings_are_a_mapping():
    asked = {"dataset": "mnist", "method": "mtl-ibp", "budget": "fast", "kappa": 0.5, "seed": 0, "epochs": 12}
    written = (
        "{alpha: 3/10, scheduler: step, milestones: [5, 9], lr: 2e-3, three_phase: true, ramp_epochs: 4, domain: null}"
    )
    chosen = check_parameters({"settings": yaml.safe_load(written)}, {"settings": PARAMETERS["settings"]})
    expected = {
        "alpha": 0.3,
        "scheduler": "step",
        "milestones": (5, 9),
        "lr": 2e-3,
        "three_phase": True,
        "ramp_epochs": 4,
        "domain": None,
        "epochs": 12,
        "kappa": 0.5,
    }
    config = config_from_parameters(asked | chosen)
    assert config == replace(preset("mnist", "mtl-ibp", budget="fast"), **expected)
    assert config_from_parameters(asked | {"settings": {"radius_cap": 0.5}}).radius_cap == 0.5
    for wrong, what in (
        ({"alhpa": 0.3}, "alhpa is none of them .did you mean 'alpha'.*They are train_eps_factor, "),
        ({"kappa": 1}, "kappa is a parameter of its own"),
        ({"alpha": 3}, "alpha = 3: accepted is a number .* <= 1"),
        ({"alpha": "f(x)"}, "alpha = 'f.x.': accepted is a number"),
        ({"lr": "1/0"}, "lr = '1/0': accepted is a number .* > 0"),
        ({"milestones": [9, 5]}, "rising epochs"),
        (0.3, "a mapping from names of TrainConfig to values"),
        ([], "a mapping from names of TrainConfig to values"),
    ):
        with pytest.raises(ValueError, match=f"parameter settings = .*accepted.*{what}"):
            check_parameters({"settings": wrong}, {"settings": PARAMETERS["settings"]})
        with pytest.raises(ValueError, match=what):
            config_from_parameters(asked | {"settings": wrong})


def test_settings_as_they_were_written_once_are_told_anew():
    """Before they were a mapping: an executed notebook's "" still works, and for another text the error says how."""
    assert check_parameters({"settings": ""}, {"settings": PARAMETERS["settings"]}) == {"settings": {}}
    with pytest.raises(ValueError) as caught:
        check_parameters({"settings": "alpha=0.3, milestones=(15, 18)"}, {"settings": PARAMETERS["settings"]})
    assert str(caught.value).endswith('with papermill -y "settings: {alpha: 0.3, milestones: [15, 18]}"')


def test_runs_get_folders_of_their_own():
    config = TrainConfig(dataset="mnist", kappa=0.25, eps_max=0.1, seed=3)
    assert default_run_dir(config).as_posix().startswith("runs/mnist-acert-kappa0.25-eps0.1-seed3-")
    assert default_run_dir(config) == default_run_dir(replace(config, device="cpu"))
    assert default_run_dir(config) != default_run_dir(replace(config, lr=1e-3))
    assert default_run_dir(replace(config, dataset="folder:/a/b")).name.startswith("b-acert")


# ---- and back to the command: followed here by what papermill would inject
def followed(command: str) -> TrainConfig:
    """The configuration that notebook 02 makes of a papermill command's parameters."""
    program, notebook, _, *words = shlex.split(command)
    assert (program, notebook) == ("papermill", "notebooks/02_training.ipynb")
    given = {}
    for flag, *value in zip(words[::3], words[1::3], words[2::3], strict=False):
        assert flag == "-p"
        given[value[0]] = value[1]
    numbers = {"kappa": float, "eps_max": float, "seed": int, "width": int, "epochs": int, "batch_size": int}
    given = {name: numbers.get(name, str)(value) for name, value in given.items()}  # as papermill's -p reads them
    if words[-2] == "-y":
        given |= yaml.safe_load(words[-1])  # as papermill does
    texts = dict.fromkeys(("model", "data_root", "run_dir"), "")
    zeros = {"kappa": 0.0, "eps_max": 0.0} | dict.fromkeys(("seed", "width", "epochs", "batch_size"), 0)
    defaults = texts | zeros | {"dataset": "digits", "method": "acert", "device": "auto", "budget": "fast"}
    defaults |= {"settings": {}, "front": False, "kappas": ""}
    assert given.keys() <= defaults.keys()
    return config_from_parameters(check_parameters(defaults | given, PARAMETERS))


@settings(max_examples=30)
@given(
    st.sampled_from(["digits", "mnist", "cifar10"]),
    st.sampled_from(["standard", "ibp", "fast-ibp", "acert", "acert-fast"]),
    st.floats(0, 1),
    st.integers(0, 5),
    st.sampled_from(BUDGETS),
    st.sampled_from(
        [
            {},
            {"width": 8},
            {"epochs": 12},
            {"eps_max": 2 / 255},
            {"batch_size": 32, "model": "mlp"},
            {"settings": {"lr": 1 / 300, "ramp": "linear", "domain": None, "xtol": 1e-7}},
        ]
    ),
)
def test_the_command_leads_back(dataset, method, kappa, seed, budget, more):
    parameters = {"dataset": dataset, "method": method, "kappa": kappa, "seed": seed, "budget": budget} | more
    config = config_from_parameters(parameters)
    assert followed(training_command(config)) == config


def test_settings_that_are_no_parameters_of_their_own_are_told_too():
    config = replace(preset("digits", "acert", budget="fast"), kappa=0.25, lr=1e-3, scheduler="step", domain=None)
    config = replace(config, milestones=(3, 5), radius_cap=0.5)
    command = training_command(config)
    assert "-y 'settings: {" in command and "scheduler: step" in command and "width" not in command
    assert followed(command) == config


@pytest.mark.parametrize("method", METHODS)
def test_what_a_run_of_before_does_not_name_is_what_was_done_then(method):
    """Of methods with no use for a setting it is today's default, so that their runs are those of today."""
    used = {field.name for field in fields(METHODS[method].objective)}
    today, before = TrainConfig(method=method), defaults_before({"method": method})
    old = {"attack": "last", "small_box_at_border": "cut", "batch_statistics": "clean"}
    assert old.keys() < before.keys() <= {field.name for field in fields(TrainConfig)}
    for name, value in before.items():
        assert value == (old[name] if name in old and name in used else getattr(today, name)), name
    written = {name: value for name, value in asdict(today).items() if name not in before}
    assert config_of(written) == replace(today, **before)


def test_from_a_run_folder():
    config = replace(preset("mnist", "acert"), kappa=0.25)
    written = json.loads(json.dumps(asdict(config) | {"in_shape": [1, 28, 28], "version": "0.1.0"}))
    assert config_of(written) == config
    del written["train_eps_factor"]  # as in runs of before there was such a setting
    assert config_of(written) == config
    del written["lr"]
    with pytest.raises(ValueError, match="config: it lacks lr"):
        config_of(written)
