"""The command that trains a run again leads to its configuration; followed here by what papermill would inject."""

import json
import shlex
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import acertlab as al
from acertlab.training.config import BUDGETS
from acertlab.training.parameters import (
    PARAMETERS,
    check_parameters,
    config_from_parameters,
    config_of,
    training_command,
)


def followed(command: str) -> al.TrainConfig:
    """The configuration that notebook 02 makes of a papermill command's parameters."""
    program, notebook, _, *words = shlex.split(command)
    assert (program, notebook) == ("papermill", "notebooks/02_training.ipynb")
    assert words[::3] == ["-p"] * (len(words) // 3)
    given = dict(zip(words[1::3], words[2::3], strict=True))
    numbers = {"kappa": float, "eps_max": float, "seed": int, "width": int, "epochs": int, "batch_size": int}
    given = {name: numbers.get(name, str)(value) for name, value in given.items()}  # as papermill's -p reads them
    texts = dict.fromkeys(("model", "data_root", "run_dir", "settings"), "")
    zeros = {"kappa": 0.0, "eps_max": 0.0} | dict.fromkeys(("seed", "width", "epochs", "batch_size"), 0)
    defaults = texts | zeros | {"dataset": "digits", "method": "acert", "device": "auto", "budget": "fast"}
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
            {"settings": "lr=1/300, ramp=linear, domain=None"},
        ]
    ),
)
def test_the_command_leads_back(dataset, method, kappa, seed, budget, more):
    parameters = {"dataset": dataset, "method": method, "kappa": kappa, "seed": seed, "budget": budget} | more
    config = config_from_parameters(parameters)
    assert followed(training_command(config)) == config


def test_settings_that_are_no_parameters_of_their_own_are_told_too():
    config = replace(al.preset("digits", "acert", budget="fast"), kappa=0.25, lr=1e-3, scheduler="step", domain=None)
    config = replace(config, milestones=(3, 5), radius_cap=0.5)
    command = training_command(config)
    assert "-p settings" in command and "width" not in command
    assert followed(command) == config


def test_from_a_run_folder():
    config = replace(al.preset("mnist", "acert"), kappa=0.25)
    written = json.loads(json.dumps(asdict(config) | {"in_shape": [1, 28, 28], "version": "0.1.0"}))
    assert config_of(written) == config
    del written["train_eps_factor"]  # as in runs of before there was such a setting
    assert config_of(written) == config
    del written["lr"]
    with pytest.raises(ValueError, match="config: it lacks lr"):
        config_of(written)
