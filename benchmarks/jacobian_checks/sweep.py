"""Which step should central differences of MuJoCo C take?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from jacobian_checks.errors import NEGLIGIBLE
from jacobian_checks.options import Options
from jacobian_checks.subjects import Subject
from mage_diffsim.envs.differences import (
    KINK,
    Function,
    central_differences,
    consecutive,
    jacobian_error,
    quantile,
    scale_of,
)
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import step_of
from mage_diffsim.errors import InputError
from mage_diffsim.experiments.summary import write_summary
from mage_diffsim.experiments.sweep_display import make_sweep_display
from mage_diffsim.experiments.tables import Table, write_csv
from mage_diffsim.files import make_folder
from mage_diffsim.shapes import Float, Tensor

STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
FIELDS = ("task", "block", "step", "n", "unresolved", "error_median", "error_p90", "error_max", "share_above")
"""Columns of sweep.csv, see :func:`sweep_steps`."""
HEADER = ("task", "block", *(f"{h:.0e}" for h in STEPS), "unresolved", "plateau", "the task's step", "on it")


def run_sweep(options: Options) -> int:
    """Measures the error of central differences of MuJoCo C at every step, and returns exit code 0.

    Raises:
        InputError: no task is a MuJoCo task.
    """
    options.check()
    subjects = [s for s in (Subject(name, options) for name in options.references) if isinstance(s.task, MujocoTask)]
    if not subjects:
        raise InputError(f"--sweep is about MuJoCo tasks, and {', '.join(options.references)} is none")
    rows, table = [], []
    make_folder(options.folder)
    display = make_sweep_display()
    with display:
        display.begin({s.task.name: 0 for s in subjects}, {s.task.name: 1 for s in subjects})
        for subject in subjects:
            name = subject.task.name
            display.start(name)
            found = sweep_steps(step_of(subject.truth_physics), subject.points.x, subject.blocks, STEPS)
            rows += [{"task": name} | row for row in found]
            table += _table_rows(subject, found)
            display.update(name, 1)
            display.finish(name, f"{len(subject.points.x)} states")
    write_csv(options.folder / "sweep.csv", FIELDS, rows)
    heading = f"Error of central differences: 90th percentile (share of states above {KINK:.0e})"
    judged = {word: [" ".join(row[:2]) for row in table if row[-1] == word] for word in ("yes", "no", "not known")}
    verdict = [
        f"The task's step is on the plateau in {len(judged['yes'])} of {len(table)} blocks"
        + (f"; off it: {', '.join(judged['no'])}" if judged["no"] else "")
        + (f"; not known, as no state is resolved: {', '.join(judged['not known'])}" if judged["not known"] else "")
        + "."
    ]
    facts = options.facts | {"plateau": f"error within ten times the least, or below {NEGLIGIBLE:.0e}"}
    write_summary(
        options.folder / "sweep.md", "Step of finite differences", verdict, [Table(heading, HEADER, table)], facts
    )
    return 0


def _table_rows(subject: Subject, found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    assert isinstance(subject.task, MujocoTask)
    pose, velocity, control = subject.task.difference_steps
    own_steps = {"position": pose, "mocap": pose, "velocity": velocity, "action": control, "activation": control}
    table = []
    for block in subject.blocks:
        mine = [row for row in found if row["block"] == block]
        steps, own = plateau(mine), own_steps[block]
        errors = [f"{r['error_p90']:.0e} ({r['share_above']:.0%})" for r in mine]
        flat = f"{max(steps):.0e} to {min(steps):.0e}" if steps else "-"
        judged = ("yes" if own in steps else "no") if steps else "not known"
        table.append([subject.task.name, block, *errors, str(mine[0]["unresolved"]), flat, f"{own:.0e}", judged])
    return table


def sweep_steps(
    function: Function, x: Float[Tensor, "N X"], blocks: Mapping[str, Sequence[int]], steps: Sequence[float]
) -> list[dict[str, Any]]:
    """Error of central differences at each step against Richardson's extrapolation at the best step of each point.

    R(h) = (4 D(h / 2) - D(h)) / 3 has an error of order h^4. A point's reference is the R(h) that is closest to R at
    the next step. Where they stay further apart than ``KINK`` the point is *unresolved* and left out.

    Args:
        function: function of rows, float64.
        x: the points, shape [N, X].
        blocks: name to columns of ``x``.
        steps: step sizes, descending, at least two.

    Returns:
        one row per block and step: block, step, n, unresolved, error_median, error_p90, error_max, and share_above,
        the share of errors above ``KINK``.
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
            error = jacobian_error(d, reference)[resolved]
            row: dict[str, Any] = {"block": name, "step": h, "n": len(error), "unresolved": int((~resolved).sum())}
            row |= {f"error_{k}": quantile(error, q) for k, q in {"median": 0.5, "p90": 0.9, "max": 1.0}.items()}
            rows.append(row | {"share_above": float((error > KINK).double().mean()) if len(error) else math.nan})
    return rows


def plateau(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The steps of one block whose 90th percentile error is at most ten times the least one, or ``NEGLIGIBLE``.

    There are none where no point is resolved, whose errors are NaN.
    """
    best = min(row["error_p90"] for row in rows)
    return [row["step"] for row in rows if row["error_p90"] <= max(10.0 * best, NEGLIGIBLE)]
