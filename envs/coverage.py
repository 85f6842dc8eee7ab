"""Which states the checks of a task see, and what these states do not show.

:func:`.sampling.explore` visits many states; :func:`pick` takes those that lie far apart; :func:`coverage` lists what
none of the picked states shows.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import numpy as np
import torch

from mage_diffsim.envs.mujoco.model import colliding_geoms, contacts_enabled, element_name, load_mujoco
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.sampling import Visited
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError
from mage_diffsim.shapes import Float, Int, Tensor

BUDGET = 16384
"""Steps of exploration of all environments together."""
LISTED = 12
"""Most names in one sentence."""


@dataclasses.dataclass(frozen=True)
class Span:
    """The values of one component of the state."""

    name: str
    tested: tuple[float, float]
    """Smallest and largest value in the tested states."""
    visited: tuple[float, float]
    """Smallest and largest value in all states of the rollouts and of the caller."""


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Where the checks looked."""

    tested: int
    """Number of tested states."""
    visited: int
    """Number of states they were picked from."""
    states: tuple[Span, ...]
    """One span per component of the state."""
    not_exercised: tuple[str, ...]
    """One sentence for each thing that no tested state shows."""


def steps_within_budget(task: Task, environments: int) -> int:
    """Steps of exploration: a whole episode, or what the budget allows."""
    return max(1, min(task.horizon, BUDGET // environments))


def pick(visited: Float[Tensor, "M S"], chosen: Float[Tensor, "K S"], n: int) -> Float[Tensor, "n S"]:
    """Picks ``n`` visited states: half as far apart as possible, the others evenly over time."""
    apart = spread_out(visited, chosen, n - n // 2)
    even = torch.arange(n // 2, device=visited.device) * len(visited) // max(n // 2, 1)
    # The environments lie side by side in time: every row is another environment's.
    even = (even + torch.arange(n // 2, device=visited.device)).clamp(max=len(visited) - 1)
    return torch.cat([visited[apart], visited[even]])


def spread_out(visited: Float[Tensor, "M S"], chosen: Float[Tensor, "K S"], n: int) -> Int[Tensor, " n"]:
    """Indices of the ``n`` states farthest from those chosen and from each other (greedy k-centre, Gonzalez 1985).

    The distance is the largest over the components, each relative to its visited range. So the extremes of every
    component come early.
    """
    scale = (visited.amax(0) - visited.amin(0)).clamp(min=1e-12)
    distance = torch.full_like(visited[:, 0], torch.inf)
    for state in chosen:
        distance = torch.minimum(distance, ((visited - state) / scale).abs().amax(1))
    found = torch.zeros(n, dtype=torch.int64, device=visited.device)
    for i in range(n):
        found[i] = distance.argmax()
        distance = torch.minimum(distance, ((visited - visited[found[i]]) / scale).abs().amax(1))
    return found


def read_states(path: Path, task: Task) -> Float[Tensor, "K S"]:
    """Reads states from a file, float64.

    ``.npy`` and ``.pt`` hold one array [K, S], ``.npz`` one array or one named ``states``, ``.csv`` one state per line;
    its first line may name the components in any order.

    Raises:
        InputError: the file cannot be read, or holds no states of this task.
    """
    accepted = "accepted are .npy, .npz, .pt and .csv files of one state per row"
    try:
        if path.suffix == ".npy":
            content = np.load(path, allow_pickle=False)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                content = arrays["states" if "states" in arrays or len(arrays.files) != 1 else arrays.files[0]]
        elif path.suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
        elif path.suffix == ".csv":
            content = _read_csv(path, task)
        else:
            raise InputError(f"cannot read states from {path}: {accepted}")
        states = torch.as_tensor(content).detach()
        if states.is_complex() or states.layout != torch.strided:
            raise TypeError(f"{states.dtype} of layout {states.layout}")
        states = states.to(torch.float64)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read states from {path}: {error.strerror or error}") from error
    except (
        ValueError,
        LookupError,
        EOFError,
        TypeError,
        RuntimeError,
        BadZipFile,
        UnpicklingError,
        csv.Error,
    ) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"cannot read states from {path} ({reason}): {accepted}") from error
    check_states(task, states)
    return states


def _read_csv(path: Path, task: Task) -> np.ndarray:
    text = path.read_text(encoding="utf-8-sig")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=separator) if any(row)]
    names = rows[0] if rows else []
    if sorted(names) == sorted(task.state_names):
        order = [names.index(name) for name in task.state_names]
        rows = [[row[i] for i in order] for row in rows[1:]]
    return np.array([[float(x) for x in row] for row in rows], dtype=np.float64)


def check_states(task: Task, states: Tensor) -> None:
    """Refuses states that do not belong to a task.

    Raises:
        InputError: the states have another shape, or one of them is not finite.
    """
    if states.ndim != 2 or states.shape[1] != task.state_dim or not len(states):
        raise InputError(
            f"the states given for task {task.name} have shape {tuple(states.shape)}; accepted is one row or more of "
            f"{task.state_dim} numbers: {', '.join(task.state_names)}"
        )
    bad = ~states.isfinite().all(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise InputError(
            f"state {row} given for task {task.name} is {states[row].tolist()}; accepted are finite numbers"
        )


def coverage(
    task: Task,
    tested: Float[Tensor, "N S"],
    following: Float[Tensor, "N S"],
    explored: Visited,
    given: Float[Tensor, "K S"] | None,
) -> Coverage:
    """Compares the tested states with the visited ones.

    Args:
        task: the task.
        tested: the tested states.
        following: the states one step later.
        explored: the rollouts that the tested states were picked from.
        given: the caller's states.
    """
    visited = explored.states if given is None else torch.cat([explored.states, given.to(explored.states)])
    lows, highs = visited.amin(0).tolist(), visited.amax(0).tolist()
    low, high = tested.amin(0).tolist(), tested.amax(0).tolist()
    spans = tuple(Span(name, (low[i], high[i]), (lows[i], highs[i])) for i, name in enumerate(task.state_names))
    return Coverage(
        tested=len(tested),
        visited=len(visited),
        states=spans,
        not_exercised=tuple(_missing(task, spans, tested, following, explored)),
    )


def _missing(
    task: Task, spans: tuple[Span, ...], tested: Tensor, following: Tensor, explored: Visited
) -> Iterator[str]:
    for span in spans:
        (low, high), (lowest, highest) = span.tested, span.visited
        if low == high:
            yield f"state {span.name}: it is {low:.6g} in every state tested"
        elif low - lowest > 0.05 * (highest - lowest) or highest - high > 0.05 * (highest - lowest):
            yield (
                f"state {span.name}: tested from {low:.6g} to {high:.6g}, and the rollouts or the states given reach "
                f"{lowest:.6g} to {highest:.6g}"
            )
    if isinstance(task, MujocoTask):
        yield from _idle_constraints(task, torch.cat([tested, following[following.isfinite().all(1)]]))
    with torch.no_grad():
        ends = task.terminated(task.observe(following))
    if not ends.any():
        did = f"{explored.ended} steps of the rollouts do" if explored.ended else "no step of the rollouts does"
        yield f"termination: no step tested ends an episode ({did})"
    elif ends.all():
        yield "termination: every step tested ends an episode"
    if explored.steps < task.horizon:
        yield f"time: the rollouts have {explored.steps} steps, and an episode {task.horizon}"
    if not explored.diverged:
        yield "divergence: no rollout reached a value that is not finite"
    yield "action bounds: derivatives at -1 and 1 are checked to be finite, and compared with differences inside only"


def _idle_constraints(task: MujocoTask, states: Float[Tensor, "N S"]) -> Iterator[str]:
    """The joint limits, tendon limits and pairs of geoms that are active in none of the states."""
    mujoco, model = load_mujoco(), task.simulation.model
    data = mujoco.MjData(model)
    joint, tendon = (int(getattr(mujoco.mjtConstraint, f"mjCNSTR_LIMIT_{x}")) for x in ("JOINT", "TENDON"))

    def name_of(kind: int, i: int) -> str:
        return element_name(mujoco, model, "JOINT" if kind == joint else "TENDON", i)

    def is_ball(kind: int, i: int) -> bool:
        return kind == joint and model.jnt_type[i] == mujoco.mjtJoint.mjJNT_BALL  # its limit has one side

    off = mujoco.mjtDisableBit.mjDSBL_LIMIT | mujoco.mjtDisableBit.mjDSBL_CONSTRAINT
    limits: set[tuple[int, int]] = set()
    if not model.opt.disableflags & off:
        limits |= {(joint, i) for i in range(model.njnt) if model.jnt_limited[i]}
        limits |= {(tendon, i) for i in range(model.ntendon) if model.tendon_limited[i]}
    sides = {name_of(*x) for x in limits if is_ball(*x)}
    sides |= {f"{name_of(*x)} {side}" for x in limits if not is_ball(*x) for side in ("low", "high")}
    pairs = {frozenset(pair) for pair in colliding_geoms(model)}
    if contacts_enabled(model):
        pairs |= {frozenset((int(model.pair_geom1[i]), int(model.pair_geom2[i]))) for i in range(model.npair)}
    idle_sides, idle_pairs = set(sides), set(pairs)
    for row in states.double().cpu().numpy():
        task.simulation.put(data, row)
        mujoco.mj_fwdPosition(model, data)
        for kind, i in zip(data.efc_type[: data.nefc].tolist(), data.efc_id[: data.nefc].tolist(), strict=True):
            if (kind, i) not in limits:
                continue
            if is_ball(kind, i):
                idle_sides.discard(name_of(kind, i))
                continue
            value = data.qpos[model.jnt_qposadr[i]] if kind == joint else data.ten_length[i]
            low, high = model.jnt_range[i] if kind == joint else model.tendon_range[i]
            idle_sides.discard(f"{name_of(kind, i)} {'low' if value - low < high - value else 'high'}")
        idle_pairs -= {frozenset(c.geom.tolist()) for c in data.contact[: data.ncon] if c.efc_address >= 0}
    if idle_sides:
        yield f"limits: {len(idle_sides)} of {len(sides)} never active: {_listed(sorted(idle_sides))}"
    if idle_pairs:
        names = ("-".join(element_name(mujoco, model, "GEOM", i) for i in sorted(pair)) for pair in idle_pairs)
        yield f"contacts: {len(idle_pairs)} of {len(pairs)} pairs of geoms never touch: {_listed(sorted(names))}"


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
