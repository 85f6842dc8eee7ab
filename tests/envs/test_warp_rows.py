"""Scalar constraint rows of the Warp compiler: limits, friction loss and equalities are MuJoCo C's."""

from __future__ import annotations

import functools

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")

from mage_diffsim.envs.warp.compiler.coordinates import Coordinates  # noqa: E402
from mage_diffsim.envs.warp.compiler.rows import scalar_rows  # noqa: E402
from tests.envs.row_models import MODELS  # noqa: E402
from tests.envs.stages import assert_close, compiled, numbers, states, values_of  # noqa: E402


@functools.cache
def rows_of(model):
    _, m, kinematics, q, v, _ = compiled(model)
    rows = scalar_rows(Coordinates(kinematics, q), v)
    unit = np.eye(m.nv).tolist()
    motions = [kinematics.velocities(x) for x in unit]
    wanted = []
    for row in rows:
        shares = [row.sign * row.coordinate.rate(*way) for way in zip(motions, unit, strict=True)]
        wanted += [row.weight, row.offset, *shares, *(row.sign * x for x in row.coordinate.row)]
    return m, rows, wanted


@pytest.mark.parametrize("model", MODELS, ids=lambda x: x.name)
def test_rows_are_those_of_mujoco_c_one_by_one(model):
    """Where a row is there its D is not 0; rows come in MuJoCo's order."""
    m, rows, wanted = rows_of(model)
    seen = set()
    for data in states(m, 60):
        found = numbers(wanted, values_of(data)).reshape(len(rows), 2 + 2 * m.nv)
        present = found[:, 0] > 0.0
        ours = found[present]
        theirs = data.efc_type < int(mujoco.mjtConstraint.mjCNSTR_CONTACT_FRICTIONLESS)
        seen |= set(data.efc_type[theirs].tolist())
        assert_close(ours[:, 2 : 2 + m.nv], data.efc_J.reshape(-1, m.nv)[theirs])
        assert_close(ours[:, 2 + m.nv :], ours[:, 2 : 2 + m.nv])
        assert_close(ours[:, 0] / data.efc_D[theirs], np.ones(len(ours)), 1e-9)
        assert_close(-ours[:, 1], data.efc_aref[theirs])
        ends = np.array([(row.low, row.high) for row in rows])[present]
        loss = data.efc_frictionloss[theirs]
        equal, rubs = data.efc_type[theirs] == 0, loss > 0.0
        assert (ends[equal] == (-np.inf, np.inf)).all() and (ends[~equal & ~rubs] == (0.0, np.inf)).all()
        assert (ends[rubs] == np.stack([-loss, loss], 1)[rubs]).all()
    assert seen == model.kinds
