"""The script that compares backends with MuJoCo C: that it passes what is right, and sees what is not."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")

from against_mujoco import run
from mujoco_agreement import contacts, measuring
from mujoco_agreement.contacts import contacts_of
from mujoco_agreement.measuring import measure, measure_apart
from mujoco_agreement.options import Options

from mage_diffsim.envs.mujoco import MujocoPhysics
from mage_diffsim.errors import InputError
from mage_diffsim.model_checks.finding import Model, find_models, task_of
from mage_diffsim.model_checks.reference import KINDS, Reference

MODELS = Path(__file__).parent.parent / "envs" / "models"
QUICK = Options(paths=("-",), backends=("mujoco",), states=4, dtypes=("float64",)).resolved()


def rows_of(name, backend="mujoco", options=QUICK):
    """The rows of a small model: visited, then thrown."""
    return list(measure(Model(name, MODELS / f"{name}.xml"), backend, options))


@pytest.mark.parametrize("name", ["capsules_parallel", "sphere_on_capsule"])
@pytest.mark.parametrize("backend", ["warp", "mujoco"])
def test_a_backend_that_is_right_is_found_right(name, backend):
    if backend == "warp":
        pytest.importorskip("warp")
    for row, kind in zip(rows_of(name, backend), KINDS, strict=True):
        assert (row["states"], row["status"], row["count"]) == (kind, "ok", 4)
        assert row["value_worst"] < 1e-8
        assert row["state_clean"] >= 3 and row["state_worst"] < 1e-5 and row["action_worst"] < 1e-4
        assert row["contacts_differ"] == (0 if backend == "warp" else None)
        assert row["nonfinite_values"] == row["nonfinite_gradients"] == row["diverged_in_c"] == 0
        assert row["solver_gap_worst"] < 1e-8


@pytest.mark.parametrize("broken", [False, True])
def test_wrong_values_and_derivatives_are_seen(monkeypatch, broken):
    right = MujocoPhysics._advance

    def wrong(physics, state, action):
        """The first number is off by the square of the action, or not a number in one row."""
        error = torch.zeros_like(state)
        error[:, 0] = 0.1 * action[:, 0] ** 2
        if broken:
            error[2, 0] = torch.nan
        return right(physics, state, action) + error

    monkeypatch.setattr(MujocoPhysics, "_advance", wrong)
    for row in rows_of("capsules_parallel"):
        assert row["value_worst"] > 1e-4 and row["action_worst"] > 1e-2
        assert row["state_worst"] < 1e-5  # the error does not depend on the state
        assert row["nonfinite_values"] == int(broken)


PALM = """<mujoco><worldbody><body name="palm" mocap="true" pos="0 0 .2"><geom size=".15"/></body><body><joint name="x"
 type="slide" axis="0 0 1"/><geom size=".1"/></body></worldbody><actuator><motor joint="x" ctrlrange="-1 1"/></actuator>
 </mujoco>"""


@pytest.mark.parametrize("backend", ["warp", "mjx"])
def test_contacts_with_mocap_bodies_are_counted_where_these_are(backend, tmp_path):
    pytest.importorskip("warp" if backend == "warp" else "mujoco.mjx")
    path = tmp_path / "palm.xml"
    path.write_text(PALM)
    reference = Reference(path)
    points = reference.thrown(20, np.random.default_rng(0))
    found = contacts_of(backend, task_of(path).simulation, points.state)
    assert found is not None and found.equal(reference.contacts(points)) and 0 < found.sum() < 20


def test_another_number_of_contacts_is_seen(monkeypatch):
    monkeypatch.setitem(contacts._CONTACTS, "mujoco", lambda simulation, qpos: torch.full((len(qpos),), 7))
    assert [row["contacts_differ"] for row in rows_of("sphere_on_capsule")] == [4, 4]


def test_states_from_which_c_diverges_are_left_out_and_counted():
    visited, thrown = rows_of("divergence")
    assert (thrown["count"], thrown["diverged_in_c"]) == (0, 4) and thrown["value_worst"] != thrown["value_worst"]
    assert visited["count"] + visited["diverged_in_c"] == 4


def test_the_gap_of_capped_solvers_is_measured():
    assert max(row["solver_gap_worst"] for row in rows_of("solver_capped")) > 0.1


def test_what_a_backend_refuses_is_a_row_with_the_reason():
    pytest.importorskip("warp")
    (row,) = rows_of("discrete_integrator", "warp")
    assert row["states"] == "" and row["status"].startswith("refused: the Warp compiler does not cover this model")


def test_a_folder_is_searched_measured_apart_and_gone_on_with(tmp_path, monkeypatch):
    folder, out = tmp_path / "models", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(MODELS / "capsules_parallel.xml", folder / "deep" / "first.xml")
    shutil.copy(MODELS / "capsules_parallel.xml", folder / "second.xml")
    (folder / "include.xml").write_text("<mujocoinclude><geom/></mujocoinclude>")
    (folder / "scene.xml").write_text("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    options = Options(paths=(str(folder),), backends=("mujoco",), quick=True, states=2, out=out)
    assert run(options) == 0
    text = (out / "summary.md").read_text()
    assert "second | the same model as deep/first" in text and "it has no joint" in text
    assert (
        "it is an include (mujocoinclude)" in text
        and str(tmp_path) not in text.replace(f"{folder}", "").split("Command")[0]
    )
    assert text.index("mujoco: 1 of 1 models measured, 0 crashed or not done") < text.index("## ")
    with (out / "results.csv").open() as file:
        assert [row["states"] for row in csv.DictReader(file)] == list(KINDS)
    monkeypatch.setattr(measuring, "measure_apart", None)  # nothing is measured again
    assert run(options) == 0


def test_a_model_that_is_late_or_gone_ends_in_a_row(tmp_path):
    model = Model("hinge", MODELS / "two_actuators_on_one_joint.xml")
    (late,) = measure_apart(model, "mujoco", replace(QUICK, limit=0.01))
    assert late["status"].startswith("failed: not done")
    (gone,) = measure_apart(Model("gone", tmp_path / "gone.xml"), "mujoco", QUICK)
    assert gone["status"].startswith("failed: ValueError") and str(tmp_path) not in gone["status"]


def test_settings_that_cannot_be_measured_are_refused(tmp_path):
    with pytest.raises(InputError, match="backend of MuJoCo models"):
        replace(QUICK, backends=("moojoco",)).resolved()
    with pytest.raises(InputError, match="--states is 0"):
        replace(QUICK, states=0).resolved()
    with pytest.raises(InputError, match="no file or folder"):
        find_models((str(tmp_path / "nothing"),))
