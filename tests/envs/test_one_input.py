"""The derivative by one input of a step does not depend on whether the other's is taken too."""

from __future__ import annotations

import pytest
import torch

from mage_diffsim.envs import backends_of, make_physics, make_task
from mage_diffsim.envs.differences import jacobian_of, jacobians_of
from mage_diffsim.envs.physics import BACKENDS, load
from mage_diffsim.errors import MissingExtra

SOURCES = [
    (name, backend, source)
    for name in ("Pendulum", "InvertedPendulum")
    for backend in backends_of(make_task(name))
    # MuJoCo Warp has no float64. MJX compiles for minutes: tests/bridges/test_bridge_contract.py has its bridge.
    if backend not in ("mujoco-warp", "mjx")
    for source in load(BACKENDS[backend]).derivatives_of(make_task(name))
]


@pytest.mark.parametrize("name, backend, derivative", SOURCES)
def test_the_derivative_by_one_input_alone_is_that_by_both(name, backend, derivative):
    """The contract takes both at once; a training takes the action's alone."""
    try:
        physics = make_physics(make_task(name), backend, derivative=derivative, dtype=torch.float64)
    except MissingExtra as error:
        pytest.skip(str(error))
    state = physics.reset(6, torch.Generator().manual_seed(0))
    action = torch.linspace(-0.9, 0.9, 6, dtype=torch.float64)[:, None]
    by_state, by_action = jacobians_of(physics.step, (state, action))
    assert by_action.abs().max() > 0.0
    alone = jacobian_of(lambda x: physics.step(x, action), state), jacobian_of(lambda x: physics.step(state, x), action)
    for one, other in zip((by_state, by_action), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
