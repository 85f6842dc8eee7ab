"""The types of a configuration: what a type checker is told is what the code accepts."""

from __future__ import annotations

import dataclasses
import inspect
from typing import get_args, get_type_hints

import pytest

from mage_diffsim.choices import require_choices
from mage_diffsim.config import TrainConfig
from mage_diffsim.errors import InputError
from mage_diffsim.hyper import Hyper, HyperSettings
from mage_diffsim.methods import METHODS, MethodName
from mage_diffsim.settings import Settings, make_config


def test_make_config_takes_the_fields_of_a_training_by_their_types():
    fields = get_type_hints(TrainConfig)
    del fields["task"]
    assert get_type_hints(Settings) == fields | {"hyper": Hyper | HyperSettings}
    assert inspect.signature(make_config).parameters["settings"].annotation == "Unpack[Settings]"


def test_overrides_of_hyper_parameters_have_their_types():
    assert get_type_hints(HyperSettings) == get_type_hints(Hyper)


def test_every_method_has_a_row_in_the_table_of_methods():
    assert tuple(METHODS) == get_args(MethodName)


def test_no_name_is_no_choice_but_where_it_stands_for_a_default():
    require_choices(TrainConfig, {"loss": None})
    with pytest.raises(InputError, match="unknown method None: choose one of data-efficient-td3, ddpg, "):
        require_choices(TrainConfig, {"method": None})


@pytest.mark.parametrize("name", ["method", "dynamics", "loss", "reward", "preset", "ensemble", "solver", "compile"])
def test_an_unknown_name_is_refused_wherever_a_configuration_comes_from(name):
    with pytest.raises(InputError, match=f"unknown {name} 'nonsense': choose one of "):
        make_config(**{name: "nonsense"})
    with pytest.raises(InputError, match=f"unknown {name} 'nonsense': choose one of "):
        TrainConfig.from_dict(dataclasses.asdict(make_config()) | {name: "nonsense"})
