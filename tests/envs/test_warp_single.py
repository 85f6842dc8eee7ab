"""float32 where contacts are dense: states thrown into the ground and into themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics, make_task  # noqa: E402
from tests.envs.row_models import Stiff  # noqa: E402
from tests.envs.warp_models import HardPile, Pile, scaled  # noqa: E402

ROWS = 2000


def thrown(task):
    """States [ROWS, S] of random poses about the initial one, at speeds about 1, 6 and 20; actions; most contacts."""
    simulation, rng = task.simulation, np.random.default_rng(0)
    model, data = simulation.model, mujoco.MjData(simulation.model)
    poses, contacts = np.empty((ROWS, model.nq)), 0
    for i in range(ROWS):
        poses[i] = simulation.qpos0
        mujoco.mj_integratePos(model, poses[i], rng.normal(scale=0.5, size=model.nv), 1.0)
        data.qpos[:] = poses[i]
        mujoco.mj_fwdPosition(model, data)
        contacts = max(contacts, data.ncon)
    speeds = rng.normal(size=(ROWS, model.nv)) * np.resize([1.0, 6.0, 20.0], (ROWS, 1))
    actions = rng.uniform(-1.0, 1.0, (ROWS, task.action_dim))
    return task.state_at(torch.tensor(poses), torch.tensor(speeds)), torch.tensor(actions), contacts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "contacts"),
    [("HalfCheetah", 12), ("Hopper", 6), ("Walker2d", 8), (Pile, 6), (HardPile, 6), (Stiff, 4)],
    ids=str,
)
def test_float32_is_within_1e_4_of_float64_at_999_of_1000_thrown_states(model, contacts):
    task = make_task(model) if isinstance(model, str) else model()
    state, action, most = thrown(task)
    assert most >= contacts
    state, action = state.float(), action.float()
    single = make_physics(task, "warp", dtype=torch.float32).step(state, action).double()
    double = make_physics(task, "warp", dtype=torch.float64).step(state.double(), action.double())
    assert double.isfinite().all() and single.isfinite().all()
    assert scaled(single - double, double).quantile(0.999) < 1e-4
