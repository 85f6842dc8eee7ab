"""What may be different when a sweep goes on with a cell."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest

from mage_diffsim.errors import InputError
from mage_diffsim.experiments.cells import Cell, train_cell
from mage_diffsim.experiments.sweep import _check_cell_folder
from mage_diffsim.run_folder import read_config
from mage_diffsim.session import train
from tests.experiments.sweeps import cell


def test_an_unfinished_cell_goes_on_with_the_graphs_that_are_given(tiny, tmp_path):
    config = cell(tiny, steps=40).config
    train(dataclasses.replace(config, graphs="auto"), tmp_path / "a")
    train_cell(dataclasses.replace(config, graphs="off"), tmp_path / "a", None, lambda kind, value: None)
    assert read_config(tmp_path / "a").graphs == "off"


@pytest.mark.parametrize(("device", "other"), [("cuda", False), ("cuda:2", False), ("cpu", True)])
def test_a_cell_goes_on_on_another_card_and_on_no_other_kind_of_device(tiny, tmp_path, device, other):
    config = cell(tiny, steps=40).config
    train(config, tmp_path / "a")
    for name in ("config.json", "identity.json"):
        file = tmp_path / "a" / name
        content = json.loads(file.read_text())
        content.get("config", content)["device"] = "cuda:1"
        file.write_text(json.dumps(content))
    here = Cell("a", dataclasses.replace(config, device=device))
    with pytest.raises(InputError, match="device cuda:1 and not cpu") if other else contextlib.nullcontext():
        _check_cell_folder(here, tmp_path / "a", fresh=False)
