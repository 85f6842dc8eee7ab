"""Sets how far MuJoCo C's solvers of constraints and contacts go, and measures what a model's own leave undone."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.model import Simulation, load_mujoco, quiet

TOLERANCE = 1e-26
"""Solver tolerance of a converged step. With elliptic cones 1e-20 leaves 2e-11, which differences show as 1e-5; this
leaves 1e-14 for a tenth more steps."""
CONTACT_TOLERANCE, CONTACT_ITERATIONS = 1e-15, 900
"""``ccd_tolerance`` [m] and ``ccd_iterations`` of a converged step. They belong to the search for contacts of
ellipsoids, cylinders and meshes."""
INEXACT = 1e-5
"""Error of a next state, relative above 1, up to which MuJoCo C itself may be off where curved geoms touch. It finds
distances to rounding, and normals to its root: 1e-8 to 1e-6."""
NOTEWORTHY = 1e-4
"""A warning names a model whose own settings leave its steps farther than this from the converged ones."""
ROLLOUTS, STEPS = 4, 16
"""Number of rollouts from the model's initial state that :func:`solver_gap` compares, and of steps in each."""
LONGEST = 20
"""Simulator steps of an environment step that :func:`solver_gap` takes at most."""

_logger = logging.getLogger("mage_diffsim")


def with_solver(model: Any, solver: str) -> Any:
    """A copy of a ``mujoco.MjModel`` that is solved as ``solver`` says (see :attr:`.Physics.solvers`)."""
    model = copy.copy(model)
    if solver == "converged":
        # The problem is convex: Newton's method and slower solvers have one solution.
        model.opt.tolerance, model.opt.solver = TOLERANCE, load_mujoco().mjtSolver.mjSOL_NEWTON
        # A model made for speed may allow only a handful of each.
        model.opt.iterations = max(model.opt.iterations, 200)
        model.opt.ls_iterations = max(model.opt.ls_iterations, 100)
        model.opt.ccd_tolerance = CONTACT_TOLERANCE
        model.opt.ccd_iterations = max(model.opt.ccd_iterations, CONTACT_ITERATIONS)
    return model


def inexactness(model: Any, data: Any, steps: int) -> float:
    """Error of a converged step of MuJoCo C by the contacts that it finds: :data:`INEXACT`, or 0.

    Contacts of an ellipsoid with anything but a plane, and of a cylinder with anything but a plane or a sphere, are not
    exact, nor are those of a sphere whose centre is inside of a height field.

    Args:
        model: a ``mujoco.MjModel`` that converges.
        data: its ``mujoco.MjData``, with the state and the controls; it ends ``steps`` simulator steps later.
        steps: simulator steps.
    """
    mujoco, found = load_mujoco(), 0.0
    kinds = mujoco.mjtGeom
    plane, field, sphere = (int(x) for x in (kinds.mjGEOM_PLANE, kinds.mjGEOM_HFIELD, kinds.mjGEOM_SPHERE))
    exact = {int(kinds.mjGEOM_ELLIPSOID): (plane,), int(kinds.mjGEOM_CYLINDER): (plane, sphere)}
    for left in reversed(range(-1, steps)):
        mujoco.mj_fwdPosition(model, data)
        for geoms, distance in zip(data.contact.geom, data.contact.dist, strict=True):
            if min(geoms) < 0:  # of a flexible body
                continue
            pair = tuple(int(x) for x in model.geom_type[geoms])
            deep = pair == (field, sphere) and distance < -model.geom_size[geoms[1], 0]
            if deep or any(kind in exact and other not in exact[kind] for kind, other in (pair, pair[::-1])):
                found = INEXACT
        if left >= 0:
            mujoco.mj_step(model, data)
    return found


def solver_gap(simulation: Simulation) -> float:
    """How far the model's own solver settings leave an environment step from the converged one.

    Both start from the states of a few converged rollouts with uniformly random controls. A step is of
    :data:`LONGEST` simulator steps at most. Equal models are measured once per process.

    Returns:
        the largest difference of a component of qpos, qvel or act, relative to max(1, its size); infinite where only
        the model's own step is not finite.
    """
    key = simulation.fingerprint
    if key not in _gaps:
        _gaps[key] = _measured(simulation)
    return _gaps[key]


_gaps: dict[str, float] = {}
"""Gaps by the fingerprint of the simulation."""


def _measured(simulation: Simulation) -> float:
    mujoco = load_mujoco()
    converged, own = (with_solver(simulation.model, s) for s in ("converged", "model"))
    data = mujoco.MjData(converged)
    other = mujoco.MjData(own)
    low, high = simulation.action_low, simulation.action_high
    random = np.random.default_rng(0)
    start = mujoco.mjtState.mjSTATE_FULLPHYSICS
    state = np.empty(mujoco.mj_stateSize(converged, start))
    gaps, substeps = [0.0], min(simulation.frame_skip, LONGEST)
    with quiet():
        for _ in range(ROLLOUTS):
            mujoco.mj_resetData(converged, data)
            for _ in range(STEPS):
                data.ctrl[:] = other.ctrl[:] = random.uniform(low, high)
                data.qacc_warmstart[:] = other.qacc_warmstart[:] = 0.0  # as a step here starts the solver
                mujoco.mj_getState(converged, data, state, start)
                mujoco.mj_setState(own, other, state, start)
                mujoco.mj_step(converged, data, substeps)
                mujoco.mj_step(own, other, substeps)
                ends = [np.concatenate([d.qpos, d.qvel, d.act]) for d in (data, other)]
                gap = np.abs(ends[0] - ends[1]) / np.maximum(1.0, np.abs(ends[0]))
                if np.isfinite(ends[0]).all():
                    gaps.append(float(gap.max()) if np.isfinite(gap).all() else np.inf)
    return max(gaps)


_named: set[str] = set()
"""Fingerprints of the simulations of which :func:`name_gap` has warned."""


def name_gap(simulation: Simulation, solver: str) -> None:
    """Warn, once per process, of a model whose :func:`solver_gap` is :data:`NOTEWORTHY`.

    Args:
        simulation: the model.
        solver: the solver policy in force.
    """
    gap = solver_gap(simulation)
    if gap <= NOTEWORTHY or simulation.fingerprint in _named:
        return
    _named.add(simulation.fingerprint)
    _logger.warning(
        "task %s: the model's own solver settings (%s) leave the next state up to %.2g from the converged one "
        "(relative where they are above 1); %s",
        simulation.name,
        settings_text(simulation.model),
        gap,
        "the converged step is used, as backends warp and mjx do; solver 'model' takes the model's own settings"
        if solver == "converged"
        else "the model's own settings are used, as asked; backends warp and mjx have solver 'converged' only",
    )


def settings_text(model: Any) -> str:
    """The solver settings of a ``mujoco.MjModel``, in words."""
    option = model.opt
    kind = load_mujoco().mjtSolver(option.solver).name.removeprefix("mjSOL_").lower()
    return (
        f"solver {kind}, iterations {option.iterations}, ls_iterations {option.ls_iterations}, tolerance "
        f"{option.tolerance:g}, ccd_iterations {option.ccd_iterations}, ccd_tolerance {option.ccd_tolerance:g}"
    )
