"""Derivatives through many steps of contact grow, and so does their variance; differences of values stay bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from contact_examples.scenes import Found, Tensor, rolled
from mage_diffsim.envs import make_physics, make_task
from mage_diffsim.experiments.figures import PALETTE
from mage_diffsim.experiments.tables import Table
from mage_diffsim.model_checks.finding import gymnasium_assets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mage_diffsim.envs.physics import Physics
    from mage_diffsim.envs.task import Task

TASKS = ("HalfCheetah", "Hopper", "Ant", "Ant, solref 0.06", "Ant, solref 0.2")
"""Tasks; after a comma the time constant [s] of contacts, whose default is 0.02."""
HORIZONS = (1, 2, 5, 10, 20, 50, 100)
NOISE = 0.1
"""Standard deviation of the noise on the first action, whose range is -1 to 1."""
SETTLED = 30
"""Steps before the first action, after which the body lies or stands on the ground."""
LARGEST = 0.5
"""Actions are uniform within +- this."""


def task_of(name: str) -> Task:
    """One of :data:`TASKS`."""
    name, _, solref = name.partition(", solref ")
    task = make_task(name)
    if not solref:
        return task
    text = (gymnasium_assets() / f"{name.lower()}.xml").read_text(encoding="utf-8")
    soft = text.replace("<geom conaffinity=", f'<geom solref="{solref} 1" conaffinity=')
    assert soft != text, f"the defaults of {name}'s geoms begin in another way"
    return type(name, (type(task),), {"mjcf": soft})()


def estimates(physics: Physics, state: Tensor, actions: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Two estimates per sample of d E[return] / d (first action), where noise is added to the first action.

    Args:
        physics: the step.
        state: starts, shape [P, S].
        actions: a script of H actions for each start, shape [H, P, A].
        noise: standard normal, shape [P, N, A]; the first sample of every start is not noisy.

    Returns:
        the derivative of the sample's return, and its difference of returns times noise / NOISE, both [P, N, A].
    """
    starts, samples, width = noise.shape
    noise = noise.clone()
    noise[:, 0] = 0.0
    each = state.repeat_interleave(samples, 0)
    first = (actions[0, :, None] + NOISE * noise).flatten(0, 1).requires_grad_()
    total = torch.zeros(len(each), dtype=each.dtype)
    for t in range(len(actions)):
        action = first if t == 0 else actions[t].repeat_interleave(samples, 0)
        after = physics.step(each, action)
        total = total + physics.task.reward(physics.task.observe(each), action, physics.task.observe(after))
        each = after
    (by_derivative,) = torch.autograd.grad(total.sum(), first)
    gain = total.detach().view(starts, samples, 1)
    return by_derivative.view(starts, samples, width)[:, 1:], (gain - gain[:, :1])[:, 1:] * noise[:, 1:] / NOISE


def spread(estimate: Tensor) -> Tensor:
    """Standard deviation of one sample's estimate, all components together, for every start."""
    return estimate.var(1).sum(-1).sqrt()


def measure(
    tasks: tuple[str, ...] = TASKS, horizons: tuple[int, ...] = HORIZONS, starts: int = 16, samples: int = 257
) -> Found:
    """Sizes and standard deviations of both estimates over the horizon.

    Args:
        tasks: MuJoCo tasks.
        horizons: steps of the return.
        starts: states from which it is taken, after random actions.
        samples: noisy first actions per start, and one without noise.
    """
    rows, cells = [], []
    for name in tasks:
        task = task_of(name)
        physics = make_physics(task, "warp", dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        state = physics.reset(starts, generator)

        def script(steps: int, generator: torch.Generator = generator, width: int = task.action_dim) -> Tensor:
            uniform = torch.rand(steps, starts, width, dtype=torch.float64, generator=generator)
            return LARGEST * (2.0 * uniform - 1.0)

        with torch.no_grad():
            for action in script(SETTLED):
                state = rolled(physics, state, 1, action)
        actions = script(max(horizons))
        noise = torch.randn(starts, samples, task.action_dim, dtype=torch.float64, generator=generator)
        for steps in horizons:
            first, zeroth = estimates(physics, state, actions[:steps], noise)
            sizes = first.norm(dim=-1).median(1).values
            spreads = [float(spread(estimate).median()) for estimate in (first, zeroth)]
            row = {"task": name, "horizon": steps, "size": float(sizes.median()), "largest": float(sizes.max())}
            row |= dict(zip(("first_order", "zeroth_order"), spreads, strict=True))
            rows.append(row)
            cells.append([name, f"{steps}", *(f"{row[x]:.2g}" for x in list(row)[2:])])
    header = ("task", "steps", "size of the derivative", "of the worst start", "std, by derivatives", "by values")

    def paint(figure: Figure) -> None:
        shown = [name for name in tasks if "solref" not in name]
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, shown, strict=True):
            mine = [row for row in rows if row["task"] == name]
            for column, label, colour, dash in (
                ("first_order", "by derivatives", PALETTE[0], "-"),
                ("zeroth_order", "by differences of values", PALETTE[1], "--"),
            ):
                axis.loglog([r["horizon"] for r in mine], [r[column] for r in mine], dash, color=colour, label=label)
            axis.set_title(name, fontsize="medium")
            axis.set_xlabel("steps")
            axis.grid(alpha=0.25)
        axes[0].set_ylabel("standard deviation\nof one sample's estimate")
        axes[0].legend(fontsize="small", frameon=False)

    title = "Horizon: derivative of the return by the first action, median over starts"
    return Found(rows, Table(title, header, cells), (9.0, 3.2), paint)
