"""Is any value or gradient not finite in very many states?"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from jacobian_checks.errors import number
from jacobian_checks.options import Options
from jacobian_checks.subjects import Source, Subject, forget_models, source_name, subjects_of
from mage_diffsim.doctor import versions
from mage_diffsim.envs.batched import BatchedEnv
from mage_diffsim.envs.checks import error_text
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import Physics
from mage_diffsim.envs.sampling import action_sequences
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.summary import write_summary
from mage_diffsim.experiments.sweep_display import SweepDisplay, make_sweep_display
from mage_diffsim.experiments.tables import Table, write_csv
from mage_diffsim.files import make_folder, write_atomically
from mage_diffsim.shapes import Float, Tensor

CHUNK = 1000
"""Steps whose actions are drawn at once."""
ROWS = 256
"""Environments side by side."""
HEADER = ("task", "source", "states", "episodes", "values not finite", "gradients not finite", "largest gradient")


class Visits(NamedTuple):
    """What a source gave at the states of its own rollouts."""

    states: int
    episodes: int
    """Episodes that ended."""
    nonfinite_values: int
    """States whose successor, observation or reward is not finite."""
    nonfinite_gradients: int
    """States at which the pull-back to state and action has an entry that is not finite."""
    largest_gradient: float
    """Largest finite entry of a pull-back."""


def visit(
    physics: Physics, states: int, *, rows: int, seed: int, progress: Callable[[int], None] = lambda n: None
) -> Visits:
    """Steps environments and pulls a random vector back at every state on the way.

    Half of the environments take uniform actions, half sinusoidal ones. In the first step a quarter of them rest in the
    model's initial configuration with action 0: symmetric, degenerate states.

    Args:
        physics: the physics.
        states: number of states, rounded up to whole steps of all environments.
        rows: number of environments.
        seed: seed of resets, actions and vectors.
        progress: called with the number of states after every step.
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
    """The model's initial configuration at rest; zeros for a task without a model."""
    if not isinstance(task, MujocoTask):
        return torch.zeros(n, task.state_dim, dtype=torch.float64)
    qpos = torch.as_tensor(task.simulation.qpos0, dtype=torch.float64).expand(n, -1)
    return task.state_at(qpos, qpos.new_zeros(n, task.simulation.nv))


FIELDS = ("task", "backend", "derivative", "dtype", "device", *Visits._fields, "seconds", "status")
"""Columns of soak.csv, see :class:`Visits`."""


def run_soak(options: Options, states: int) -> int:
    """Visits many states with every source; returns 1 if something was not finite or a source failed, else 0."""
    subjects = subjects_of(options)
    sources = [(s, source) for s in subjects for source in s.sources if source.transitions is None]
    rows, cells, commit = [], options.folder / "soak", versions().get("commit", "")
    if options.fresh:
        shutil.rmtree(cells, ignore_errors=True)
    make_folder(cells)
    display = make_sweep_display()
    with display:
        names = [source.name for _, source in sources]
        display.begin(dict.fromkeys(names, 0), dict.fromkeys(names, states))
        for subject, source in sources:
            cell = cells / f"{source.name}_{states}_{options.seed}_{commit}.json"
            display.start(source.name)
            before = cell.exists()
            if before:
                row = json.loads(cell.read_text(encoding="utf-8"))
            else:
                row = _soak_one(subject, source, states, options.seed, display)
                if row["status"] == "ok":
                    write_atomically(cell, json.dumps(row))  # the next source may take an hour
            rows.append(row)
            forget_models()
            display.finish(source.name, f"{row['status']}{', measured before' if before else ''}")
    write_csv(options.folder / "soak.csv", FIELDS, rows)
    ok = [row for row in rows if row["status"] == "ok"]
    bad, seen = sum(row["nonfinite_values"] + row["nonfinite_gradients"] for row in ok), sum(r["states"] for r in ok)
    found = [[r["task"], source_name(r), *(str(r[k]) for k in Visits._fields[:-1]), number(r["largest_gradient"])]
             for r in ok]  # fmt: skip
    tables = [
        Table("Values and gradients that are not finite", HEADER, found),
        Table("Not measured", ("task", "source", "why"),
              [[r["task"], source_name(r), r["status"]] for r in rows if r["status"] != "ok"]),
    ]  # fmt: skip
    verdict = [f"Not finite: {bad} of {2 * seen} values and gradients, by {len(ok)} of {len(rows)} sources."]
    write_summary(options.folder / "soak.md", "Soak", verdict, tables, options.facts)
    return int(bad > 0 or not ok or any(r["status"].startswith("failed") for r in rows))


def _soak_one(subject: Subject, source: Source, states: int, seed: int, display: SweepDisplay) -> dict[str, Any]:
    """One row; a source that raises is a row too, because hours of other results do not depend on it."""
    row: dict[str, Any] = dict.fromkeys(FIELDS) | {k: v for k, v in vars(source).items() if k in FIELDS}
    began = time.perf_counter()

    def progress(n: int) -> None:
        display.update(source.name, min(n, states))

    try:
        physics = source.make(subject.task)
        visits = visit(physics, states, rows=min(ROWS, states), seed=seed, progress=progress)
    except (InputError, MissingExtra) as error:
        return row | {"status": f"refused: {error}"}
    except Exception as error:
        return row | {"status": f"failed: {error_text(error)}"}
    return row | visits._asdict() | {"seconds": round(time.perf_counter() - began, 1), "status": "ok"}
