"""A tilted box falls: where it comes to rest has derivative 0, and at the watershed of two faces nearly every size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from contact_examples.scenes import Found, derivative, physics_of, rolled, state_at
from mage_diffsim.envs.differences import true_jacobians
from mage_diffsim.experiments.figures import PALETTE
from mage_diffsim.experiments.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL = """<mujoco><option timestep="{timestep}"/><worldbody><geom type="plane" size="5 5 1"/>
<body pos="0 0 .1"><joint name="x" type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/>
 <joint name="angle" axis="0 1 0"/><geom type="box" size=".1 .1 .1" mass="1" friction="1"/></body>
</worldbody><actuator><motor joint="x" ctrlrange="-1 1"/></actuator></mujoco>"""
LOW, HIGH = -0.1, 1.7
"""Angles at the start [rad]; upright is 0, on the next face pi / 2."""
DROP = 0.02
"""Height of the lowest corner at the start [m]."""
TIMES = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Times after the start [s]."""


def measure(n: int = 721, timestep: float = 0.002) -> Found:
    """The angle at some times, its derivative by the angle at the start, and how many of the next steps have a kink.

    Args:
        n: angles at the start.
        timestep: of the simulator [s].
    """
    physics = physics_of("Tilt", MODEL.format(timestep=timestep))
    start = torch.linspace(LOW, HIGH, n, dtype=torch.float64).requires_grad_()
    lowest = 0.1 * (start.cos().abs() + start.sin().abs())
    state = state_at(physics, z=lowest - 0.1 + DROP, angle=start)
    still = torch.zeros(n, 1, dtype=torch.float64)
    rows, cells, curves, done = [], [], {}, 0.0
    for time in TIMES:
        state, done = rolled(physics, state, round((time - done) / timestep)), time
        angle, slope = state[:, 2].detach(), derivative(state[:, 2], start)
        curves[time] = angle, slope
        rows += [
            {"time": time, "start": float(start[i].detach()), "angle": float(angle[i]), "slope": float(slope[i])}
            for i in range(n)
        ]
        every = {"state": range(6)}
        clean = true_jacobians(lambda x: physics.step(x, still), state.detach(), every)["state"].clean
        size = slope.abs()
        small, kinks = 100 * float((size < 0.01).double().mean()), int((~clean).sum())
        cells.append(
            [f"{time}", f"{float(size.median()):.2g}", f"{float(size.max()):.2g}", f"{small:.0f}%", f"{kinks}"]
        )
    header = ("time [s]", "median derivative", "largest", "below 0.01", "kinks in the next step")

    def paint(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True)
        for (time, (angle, slope)), colour in zip(curves.items(), PALETTE, strict=False):
            above.plot(start.detach(), angle, color=colour, linewidth=1, label=f"{time} s")
            below.plot(start.detach(), slope.abs().clamp(min=1e-6), color=colour, linewidth=1)
        for axis in (above, below):
            axis.axvline(math.pi / 4, color="#777777", linestyle=":", linewidth=1)
            axis.grid(alpha=0.25)
        above.set_ylabel("angle [rad]")
        above.legend(fontsize="small", frameon=False, title="after")
        below.set_yscale("log")
        below.set_ylabel("size of its derivative")
        below.set_xlabel("angle at the start [rad]; dotted: pi / 4")

    return Found(
        rows, Table("Tilt: derivative of the angle by the angle at the start", header, cells), (6.4, 5.2), paint
    )
