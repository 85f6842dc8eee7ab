"""The number of contacts that a backend sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mage_diffsim.envs.mujoco.model import Simulation
from mage_diffsim.shapes import Int, Tensor


def contacts_of(backend: str, simulation: Simulation, state: np.ndarray) -> Int[Tensor, " N"] | None:
    """Number of contacts that a backend sees at each state [N, S], in float64; None if it does not tell."""
    if not simulation.has_contacts:
        return torch.zeros(len(state), dtype=torch.int64) if backend in _CONTACTS else None
    return _CONTACTS[backend](simulation, state) if backend in _CONTACTS else None


def _warp_contacts(simulation: Simulation, state: np.ndarray) -> Int[Tensor, " N"]:
    """Evaluates the conditions that the compiler emits."""
    from mage_diffsim.envs.warp.compiler.constraints import contacts
    from mage_diffsim.envs.warp.compiler.dynamics import Kinematics
    from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate
    from mage_diffsim.envs.warp.compiler.intake import read

    qpos, _, _, mocap = simulation.split(state)
    graph = Graph()
    inputs = graph.inputs("q", simulation.nq), graph.inputs("mocap", 7 * simulation.nmocap)
    every = contacts(Kinematics(read(simulation), *inputs))
    values = {f"q{i}": column for i, column in enumerate(qpos.T)}
    values |= {f"mocap{i}": column for i, column in enumerate(mocap.T)}
    present = evaluate([c.present for c in every], values)
    found = np.zeros(len(qpos), np.int64)
    for one in present:
        found += np.broadcast_to(np.asarray(one, bool), found.shape)
    return torch.from_numpy(found)


def _mjx_contacts(simulation: Simulation, state: np.ndarray) -> Int[Tensor, " N"]:
    """Counts the contacts that the step makes constraints of."""
    import jax
    from mujoco import mjx

    from mage_diffsim.bridges.jax import x64
    from mage_diffsim.envs.mjx import step
    from mage_diffsim.envs.mjx.contacts import groups

    with x64():
        model = mjx.put_model(step.oracle_model(simulation.model), impl="jax")
        data, size = mjx.make_data(model, impl="jax"), jax.numpy.asarray(simulation.model.geom_size)

        def count(row: Any) -> Any:
            qpos, _, _, mocap = simulation.split(row)
            poses = mocap.reshape(-1, 7)
            placed = data.replace(qpos=qpos, mocap_pos=poses[:, :3], mocap_quat=poses[:, 3:])
            moved, found = mjx.kinematics(model, placed), 0
            for group in groups(simulation.model):
                distance = group.collide(size, moved.geom_xpos, moved.geom_xmat)[0]
                found += (distance < np.repeat(group.margin, group.slots)).sum()
            return found

        return torch.from_numpy(np.broadcast_to(jax.jit(jax.vmap(count))(state), len(state)).astype(np.int64))


_CONTACTS = {"warp": _warp_contacts, "mjx": _mjx_contacts}
