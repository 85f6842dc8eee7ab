"""How good are the derivatives of one environment step? Points to take them at, the truth there, errors and times.

The *joint input* of a step is ``state | action`` in one tensor [N, S + A], so that one Jacobian [N, Y, S + A] holds
every derivative; a *block* of it is a range of its columns: action, position, velocity (or state).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mage_diffsim.dynamics import Imagined, LearnedDynamics
from mage_diffsim.envs.batched import BatchedEnv
from mage_diffsim.envs.differences import (
    KINK,
    Function,
    central_differences,
    consecutive,
    jacobian_error,
    jacobian_of,
    scale_of,
)
from mage_diffsim.envs.mujoco.model import load_mujoco, quiet
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import Physics
from mage_diffsim.envs.sampling import Policy, action_sequences, actions_inside, sample_states
from mage_diffsim.envs.task import Task
from mage_diffsim.experiments import timing
from mage_diffsim.settings import make_config
from mage_diffsim.shapes import Bool, Float, Tensor
from mage_diffsim.training import Trainer

NEGLIGIBLE = 1e-7
"""An error that no step needs to be chosen for: a tenth of what float64 derivatives are held to."""

# --- points --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
    """Where derivatives are taken. The numbers are float64 that float32 holds exactly: one truth serves both."""

    x: Float[Tensor, "N X"]
    """Joint inputs, state | action."""
    origin: tuple[str, ...]
    """Where each comes from: one of :data:`.sampling.WAYS`, policy or reset."""
    contact: Bool[Tensor, " N"] | None
    """Whether a contact or a joint limit pushes during the step; None where the physics does not say."""

    def groups(self) -> dict[str, Bool[Tensor, " N"]]:
        """Subsets by name: all; contact and free; each origin. Empty ones are left out."""
        found = {"all": torch.ones(len(self.origin), dtype=torch.bool)}
        if self.contact is not None:
            found |= {"contact": self.contact, "free": ~self.contact}
        for name in dict.fromkeys(self.origin):
            found[name] = torch.tensor([origin == name for origin in self.origin])
        return {name: mask for name, mask in found.items() if mask.any()}


def gather_points(
    reference: Physics, n: int, *, seed: int, rollouts: Sequence[str], policy: Policy | None = None
) -> Points:
    """States that rollouts reach, each with the action taken there; one in 32, at least one, is a reset state.

    Args:
        reference: float64 physics on the CPU; its task says how to reset and observe.
        n: number of points.
        seed: of resets, actions and times.
        rollouts: of :data:`.sampling.WAYS`; each gives an equal share.
        policy: gives another share, called ``policy``.
    """
    task, resets = reference.task, max(1, n // 32)
    reached = sample_states(reference, n - resets, seed=seed, ways=rollouts, policy=policy)
    generator = torch.Generator().manual_seed(seed + 1)
    start = torch.cat([task.reset(resets, generator), actions_inside(resets, task.action_dim, generator)], dim=1)
    x = torch.cat([torch.cat([reached.state, reached.action], dim=1), start]).float().double()
    contact = in_contact(task, x) if isinstance(task, MujocoTask) else None
    return Points(x, (*reached.ways, *["reset"] * resets), contact)


def in_contact(task: MujocoTask, x: Float[Tensor, "N X"]) -> Bool[Tensor, " N"]:
    """Whether a contact or a joint limit exerts a force at the beginning of any substep or after the last.

    Args:
        task: whose model is stepped by MuJoCo C.
        x: joint inputs, shape [N, S + A], float64.
    """
    mujoco, simulation = load_mujoco(), task.simulation
    data = mujoco.MjData(simulation.model)
    controls = task.scale_action(x[:, task.state_dim :]).numpy()
    first, found = int(mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT), []  # equalities and friction come before

    def pushing() -> bool:
        unilateral = data.efc_type >= first
        return bool((data.efc_force[unilateral] != 0.0).any())

    with quiet():
        for row, control in zip(x.numpy(), controls, strict=True):
            mujoco.mj_resetData(simulation.model, data)
            data.qpos[:] = row[: simulation.nq]
            data.qvel[:] = row[simulation.nq : simulation.nq + simulation.nv]
            data.ctrl[:] = control
            active = False
            for _ in range(simulation.frame_skip):
                mujoco.mj_step(simulation.model, data)
                active |= pushing()
            mujoco.mj_forward(simulation.model, data)
            found.append(active or pushing())
    return torch.tensor(found)


def blocks_of(task: Task) -> dict[str, range]:
    """The joint input's columns by block. What a MuJoCo state holds besides qpos and qvel has no influence."""
    states, actions = task.state_dim, range(task.state_dim, task.state_dim + task.action_dim)
    if not isinstance(task, MujocoTask):
        return {"action": actions, "state": range(states)}
    nq, nv = task.simulation.nq, task.simulation.nv
    return {"action": actions, "position": range(nq), "velocity": range(nq, nq + nv)}


def step_of(physics: Physics, *, observed: bool = False) -> Function:
    """A physics' step as a function of the joint input; ``observed`` gives the next observation instead."""
    width = physics.task.state_dim

    def step(x: Tensor) -> Tensor:
        next_state = physics.step(x[:, :width], x[:, width:])
        return physics.task.observe(next_state) if observed else next_state

    return step


# --- a source against the truth ------------------------------------------------------------------------------------


class Errors(NamedTuple):
    """How far one block of a source's Jacobian is from the truth, per point."""

    error: Float[Tensor, " N"]
    """max|J - J_fd| / max|J_fd|; infinite where J is not finite."""
    cosine: Float[Tensor, " N"]
    """Of the flattened blocks; NaN where either is zero or not finite."""
    nonfinite: Bool[Tensor, " N"]
    """J has an entry that is not finite."""


def compare(jacobian: Float[Tensor, "N Y K"], truth: Float[Tensor, "N Y K"]) -> Errors:
    """Error, direction and finiteness of a Jacobian of any float dtype."""
    jacobian = jacobian.to(truth)
    a, b = jacobian.flatten(1), truth.flatten(1)
    cosine = (a * b).sum(1) / (torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1))
    return Errors(jacobian_error(jacobian, truth), cosine, ~jacobian.isfinite().all(2).all(1))


def quantile(x: Float[Tensor, " N"], q: float) -> float:
    """The smallest number of ``x`` that at least a share ``q`` does not exceed; NaNs are left out, NaN if none is left.

    Unlike an interpolating quantile it may be asked about infinities.
    """
    x = x[~x.isnan()].sort().values
    return float(x[max(math.ceil(q * len(x)) - 1, 0)]) if len(x) else math.nan


def summary_rows(
    errors: Mapping[str, Errors],
    clean: Mapping[str, Bool[Tensor, " N"]],
    groups: Mapping[str, Bool[Tensor, " N"]],
    value_error: Float[Tensor, " N"],
) -> list[dict[str, Any]]:
    """One row per block, group of points and kind (clean or unclean); empty ones are left out but for group ``all``.

    Args:
        errors: of every block.
        clean: of every block, where the truth can be trusted.
        groups: name to members.
        value_error: of the step itself; its median and maximum are over the group, clean or not.
    """
    rows = []
    for block, e in errors.items():
        for group, members in groups.items():
            values = {f"value_error_{k}": quantile(value_error[members], q) for k, q in (("median", 0.5), ("max", 1.0))}
            for kind in ("clean", "unclean"):
                mask = members & (clean[block] if kind == "clean" else ~clean[block])
                if group != "all" and not mask.any():
                    continue
                error, cosine = e.error[mask], e.cosine[mask]
                row: dict[str, Any] = {"block": block, "states": group, "kind": kind, "n": int(mask.sum())}
                names = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
                row |= {f"error_{name}": quantile(error, q) for name, q in names.items()}
                row |= {f"cosine_{name}": quantile(cosine, q) for name, q in {"median": 0.5, "p10": 0.1}.items()}
                row |= {"cosine_min": quantile(cosine, 0.0), "nonfinite": int(e.nonfinite[mask].sum())}
                rows.append(row | values)
    return rows


class Times(NamedTuple):
    """Wall times of one batch, medians of warm repeats, and what the first calls took beyond them."""

    step_ms: float
    step_vjp_ms: float
    """A step with gradient and its pull-back to the action, as a critic update needs them."""
    vjp_ratio: float
    compile_s: float
    """Building the physics, and first calls beyond warm ones."""


def measure_times(make: Callable[[], Physics], x: Float[Tensor, "N X"], repeats: int) -> tuple[Physics, Times]:
    """Make a physics and time it on the points; both are returned."""
    began = time.perf_counter()
    physics = make()
    built = time.perf_counter() - began
    width = physics.task.state_dim
    state, action = x[:, :width].contiguous(), x[:, width:].contiguous()

    def step() -> None:
        with torch.no_grad():
            physics.step(state, action)

    def step_vjp() -> None:
        leaf = action.clone().requires_grad_()
        torch.autograd.grad(physics.step(state, leaf).sum(), leaf)

    taken = timing.interleaved({"step": step, "step + VJP": step_vjp}, repeats, x.device)
    plain, with_vjp = taken["step"], taken["step + VJP"]
    ratio = with_vjp.median_s / plain.median_s
    compiling = built + plain.first_s + with_vjp.first_s
    return physics, Times(1e3 * plain.median_s, 1e3 * with_vjp.median_s, ratio, compiling)


# --- many states ---------------------------------------------------------------------------------------------------


CHUNK = 1000
"""Steps whose actions are drawn at once."""


class Visits(NamedTuple):
    """What a source gave at every state that rollouts on its own physics visited."""

    states: int
    episodes: int
    """That ended, each followed by a reset."""
    nonfinite_values: int
    """States whose successor, observation or reward is not finite."""
    nonfinite_gradients: int
    """States where the pull-back to state and action has an entry that is not finite."""
    largest_gradient: float
    """Of those that are finite, the largest entry."""


def visit(
    physics: Physics, states: int, *, rows: int, seed: int, progress: Callable[[int], None] = lambda n: None
) -> Visits:
    """Step environments on a physics and pull a random vector back at every state on the way.

    Half of the environments act by uniform actions, half by sinusoidal ones. In the first step a quarter of them rest
    exactly in the model's initial configuration with action zero: symmetric, degenerate states.

    Args:
        physics: any.
        states: how many to visit, rounded up to whole steps of all environments.
        rows: environments side by side.
        seed: of resets, actions and vectors.
        progress: told the number of states after every step.
    """
    task, generator = physics.task, torch.Generator().manual_seed(seed)
    like: dict[str, Any] = {"dtype": physics.dtype, "device": physics.device}
    env = BatchedEnv(task, physics, rows, [generator])
    ways = ("sinusoidal", "uniform") * rows
    env.reset()
    quarter = rows // 4
    resting = torch.cat([resting_states(task, quarter).to(**like), env.state[quarter:]])
    env.reset(state=resting)
    seen = episodes = bad_values = bad_gradients = 0
    largest = 0.0
    while seen < states:
        if seen // rows % CHUNK == 0:
            planned = action_sequences(ways[:rows], CHUNK, task.action_dim, generator).to(**like)
        action = planned[seen // rows % CHUNK]
        if seen == 0:
            action[:quarter] = 0.0
        inputs = env.state.detach().clone().requires_grad_(), action.clone().requires_grad_()
        vector = torch.randn(rows, task.state_dim, generator=generator).to(**like)
        gradient = torch.cat(torch.autograd.grad(physics.step(*inputs), inputs, vector), dim=1)
        finite = gradient.isfinite()
        bad_gradients += int((~finite.all(1)).sum())
        largest = max(largest, float(torch.where(finite, gradient, 0.0).abs().max()))
        transition = env.step(action)
        bad_values += int(transition.diverged.sum())
        episodes += int((transition.terminated | transition.truncated).sum())
        seen += rows
        progress(seen)
    return Visits(seen, episodes, bad_values, bad_gradients, largest)


def resting_states(task: Task, n: int) -> Float[Tensor, "N S"]:
    """The model's initial configuration at rest, without the noise of a reset; zeros for a task without a model."""
    if not isinstance(task, MujocoTask):
        return torch.zeros(n, task.state_dim, dtype=torch.float64)
    qpos = torch.as_tensor(task.simulation.qpos0, dtype=torch.float64).expand(n, -1)
    return task.state_at(qpos, qpos.new_zeros(n, task.simulation.nv))


# --- the learned model ---------------------------------------------------------------------------------------------


def trained_ensembles(
    reference: str, counts: Sequence[int], *, seed: int, device: str
) -> Iterator[tuple[int, Trainer]]:
    """A training with uniformly random actions, paused after each of the given numbers of transitions.

    The ensemble is trained as every training with the preset ``cpu`` trains it: some batches every few transitions.

    Args:
        reference: the task's name.
        counts: numbers of transitions, ascending.
        seed: of the run.
        device: torch device.
    """
    steps = counts[-1]
    config = make_config(
        reference, preset="cpu", seeds=(seed,), steps=steps, device=device, hyper={"warmup_steps": steps + 1}
    )
    trainer = Trainer(config)
    for n in range(1, steps + 1):
        trainer.step()
        if n in counts:
            yield n, trainer


class Learned(NamedTuple):
    """The ensemble's values and action-Jacobians at some points, of each of its M members, without noise."""

    next_obs: Float[Tensor, "M N O"]
    jacobian: Float[Tensor, "M N O A"]
    """d next_obs / d action."""


def ask_ensemble(trainer: Trainer, obs: Float[Tensor, "N O"], action: Float[Tensor, "N A"]) -> Learned:
    """Values and derivatives of every member at every point, float64 on the CPU.

    The dynamics give each row of a batch to one member, in equal blocks of rows: repeat the points once per member.
    """
    assert trainer.ensemble is not None
    dynamics, members, n = LearnedDynamics(trainer.ensemble), trainer.ensemble.members, len(obs)
    like = {"device": trainer.device, "dtype": trainer.dtype}
    at = Imagined(obs.to(**like).repeat(members, 1)[None], None)
    rows = action.to(**like).repeat(members, 1)

    def step(a: Tensor) -> Tensor:
        return dynamics.step(at, a[None]).obs[0]

    with torch.no_grad():
        next_obs = step(rows)
    jacobian = jacobian_of(step, rows)
    return Learned(*(y.double().cpu().unflatten(0, (members, n)) for y in (next_obs, jacobian)))


def change_error(delta: Float[Tensor, "N O"], truth: Float[Tensor, "N O"]) -> Float[Tensor, " N"]:
    """max|d - d_true| / max|d_true| of the change of the observation, per point: the errors' counterpart for values."""
    return (delta - truth).abs().amax(1) / truth.abs().amax(1)


def explained_variance(delta: Float[Tensor, "N O"], truth: Float[Tensor, "N O"]) -> float:
    """R^2 of the predicted change, averaged over the components that change at all."""
    variance = truth.var(dim=0, correction=0)
    share = 1.0 - (delta - truth).square().mean(0) / variance
    return float(share[variance > 1e-12].mean())


# --- the step of the differences -----------------------------------------------------------------------------------


def sweep_steps(
    function: Function, x: Float[Tensor, "N X"], blocks: Mapping[str, Sequence[int]], steps: Sequence[float]
) -> list[dict[str, Any]]:
    """Error of central differences at each step, against Richardson's extrapolation at the best step of each point.

    R(h) = (4 D(h / 2) - D(h)) / 3 has an error of order h^4. A point's reference is the R(h) that is closest to R at
    the next step; where they stay further apart than KINK the point is *unresolved* and left out of the errors.

    Args:
        function: of rows, float64.
        x: where, shape [N, X].
        blocks: name to columns of ``x``.
        steps: to try, descending, at least two.

    Returns:
        one row per block and step: block, step, n, unresolved, error_median, error_p90, error_max, share_above (share
        of errors above KINK).
    """
    columns = [c for block in blocks.values() for c in block]
    here = function(x)
    central, halved = (
        torch.stack([central_differences(function, x, here, columns, h)[0] for h in tried])  # [H, N, Y, K]
        for tried in (steps, [0.5 * h for h in steps])
    )
    extrapolated = (4.0 * halved - central) / 3.0
    rows = []
    for name, mine in zip(blocks, consecutive(blocks.values()), strict=True):
        candidates = extrapolated[..., mine]
        scale = scale_of(candidates[:-1])
        gap = ((candidates[1:] - candidates[:-1]).abs().amax((2, 3)) / scale).nan_to_num(nan=math.inf, posinf=math.inf)
        least, best = gap.min(dim=0)
        reference = candidates[best, torch.arange(len(x))]
        resolved = least <= KINK
        for h, d in zip(steps, central[..., mine], strict=True):
            error = compare(d, reference).error[resolved]
            row: dict[str, Any] = {"block": name, "step": h, "n": len(error), "unresolved": int((~resolved).sum())}
            row |= {f"error_{k}": quantile(error, q) for k, q in {"median": 0.5, "p90": 0.9, "max": 1.0}.items()}
            rows.append(row | {"share_above": float((error > KINK).double().mean()) if len(error) else math.nan})
    return rows


def plateau(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The steps of one block's rows whose 90th percentile error is at most ten times the best one's or NEGLIGIBLE."""
    best = min(row["error_p90"] for row in rows)
    return [row["step"] for row in rows if row["error_p90"] <= max(10.0 * best, NEGLIGIBLE)]
