"""The number of contacts that a backend sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mage_diffsim.envs.mujoco.model import Simulation
from mage_diffsim.shapes import Int, Tensor


def contacts_of(backend: str, simulation: Simulation, qpos: np.ndarray) -> Int[Tensor, " N"] | None:
    """Number of contacts that a backend sees at each qpos [N, nq], in float64; None if it does not tell."""
    if not simulation.has_contacts:
        return torch.zeros(len(qpos), dtype=torch.int64) if backend in _CONTACTS else None
    return _CONTACTS[backend](simulation, qpos) if backend in _CONTACTS else None


def _warp_contacts(simulation: Simulation, qpos: np.ndarray) -> Int[Tensor, " N"]:
    """Evaluates the conditions that the compiler emits."""
    from mage_diffsim.envs.warp.compiler.constraints import contacts
    from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
    from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate
    from mage_diffsim.envs.warp.compiler.intake import read

    every = contacts(Kinematics(read(simulation), Graph().inputs("q", simulation.nq)))
    present = evaluate([c.present for c in every], {f"q{i}": column for i, column in enumerate(qpos.T)})
    found = np.zeros(len(qpos), np.int64)
    for one in present:
        found += np.broadcast_to(np.asarray(one, bool), found.shape)
    return torch.from_numpy(found)


def _mjx_contacts(simulation: Simulation, qpos: np.ndarray) -> Int[Tensor, " N"]:
    """Counts the contacts that the step makes constraints of."""
    import jax
    from mujoco import mjx

    from mage_diffsim.bridges.jax import x64
    from mage_diffsim.envs.mjx import step
    from mage_diffsim.envs.mjx.contacts import groups

    with x64():
        model = mjx.put_model(step.oracle_model(simulation.model), impl="jax")
        data, size = mjx.make_data(model, impl="jax"), jax.numpy.asarray(simulation.model.geom_size)

        def count(q: Any) -> Any:
            moved, found = mjx.kinematics(model, data.replace(qpos=q)), 0
            for group in groups(simulation.model):
                distance = group.collide(size, moved.geom_xpos, moved.geom_xmat)[0]
                found += (distance < np.repeat(group.margin, group.slots)).sum()
            return found

        return torch.from_numpy(np.broadcast_to(jax.jit(jax.vmap(count))(qpos), len(qpos)).astype(np.int64))


_CONTACTS = {"warp": _warp_contacts, "mjx": _mjx_contacts}
