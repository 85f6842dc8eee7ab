"""A ball is thrown at a box: where it misses, the derivative is 0, and what it gains by hitting is a jump."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from contact_examples.scenes import Found, derivative, physics_of, rolled, state_at
from mage_diffsim.experiments.figures import PALETTE
from mage_diffsim.experiments.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL = """<mujoco><option timestep="{timestep}"/><worldbody>
<geom type="plane" size="5 5 1"/>
<body pos="0 0 .1"><joint name="ball_x" type="slide" axis="1 0 0"/><joint name="ball_z" type="slide" axis="0 0 1"/>
 <geom type="sphere" size=".05" mass=".5" friction=".3"/></body>
<body pos="1 0 .1"><joint name="box_x" type="slide" axis="1 0 0"/><joint name="box_z" type="slide" axis="0 0 1"/>
 <joint name="box_angle" axis="0 1 0"/><geom type="box" size=".15 .1 .1" mass=".3" friction=".4"/></body>
</worldbody><actuator><motor joint="ball_x" ctrlrange="-1 1"/></actuator></mujoco>"""
FASTEST = 6.0
"""Speed of the fastest throw [m/s]; the slowest is 0."""
RISE = 0.6435
"""Angle of the throws [rad]: 4 across to 3 up."""
SECONDS = 1.0
NOISE = 0.3
"""Standard deviation of the speed where the objective is smoothed [m/s]."""
SHOWN = (2.0, 2.5, 3.0, 3.5, 4.0)
"""Mean speeds of the table [m/s]."""


def measure(n: int = 3001, timestep: float = 0.0025) -> Found:
    """The path of the box over the speed of the throw, its exact derivative, and both smoothed by noise on the speed.

    Of the objective smoothed by a Gaussian, J_s(v) = E J(v + w), the derivative is E J(v + w) w / NOISE^2: what
    differences of values estimate. E J'(v + w) is what exact derivatives estimate. Both are sums over the grid.

    Args:
        n: speeds.
        timestep: of the simulator [s].
    """
    physics = physics_of("Throw", MODEL.format(timestep=timestep))
    speed = torch.linspace(0.0, FASTEST, n, dtype=torch.float64).requires_grad_()
    start = state_at(physics, ball_x_velocity=speed * math.cos(RISE), ball_z_velocity=speed * math.sin(RISE))
    moved = rolled(physics, start, round(SECONDS / timestep))[:, physics.task.state_names.index("box_x")]
    slope = derivative(moved, speed)
    v, path = speed.detach(), moved.detach()
    w = v - v[:, None]
    weight = torch.exp(-0.5 * (w / NOISE) ** 2)
    weight = weight / weight.sum(1, keepdim=True)  # the ends of the grid see half of the noise: path is 0 there
    smooth, by_values, by_slopes = weight @ path, (weight * w) @ path / NOISE**2, weight @ slope
    columns = dict(speed=v, path=path, slope=slope, smooth=smooth, by_values=by_values, by_slopes=by_slopes)
    rows = [{name: float(x[i]) for name, x in columns.items()} for i in range(n)]
    cells = []
    for mean in SHOWN:
        i = int((v - mean).abs().argmin())
        cells.append([f"{mean}", *(f"{x[i]:.3f}" for x in (path, slope, smooth, by_values, by_slopes))])
    zero = float((slope == 0.0).double().mean())
    title = f"Throw: of {n} speeds, {100 * zero:.0f}% have derivative 0"
    header = ("speed", "path", "its derivative", "smoothed path", "its derivative, by values", "by derivatives")

    def paint(figure: Figure) -> None:
        above, middle, below = figure.subplots(3, 1, sharex=True)
        above.plot(v, path, color=PALETTE[6], linewidth=1)
        above.plot(v, smooth, color=PALETTE[1], label=f"mean over noise of {NOISE} m/s")
        above.set_ylabel("path of the box [m]")
        above.legend(fontsize="small", frameon=False)
        middle.plot(v, slope, ".", markersize=2, color=PALETTE[6])
        middle.set_yscale("symlog", linthresh=0.1)
        middle.set_ylabel("exact derivative [s]")
        below.plot(v, by_values, color=PALETTE[1], label="derivative of the mean")
        below.plot(v, by_slopes, color=PALETTE[0], linestyle="--", label="mean of the derivatives")
        below.set_ylabel("smoothed [s]")
        below.set_xlabel("speed of the throw [m/s]")
        below.legend(fontsize="small", frameon=False)
        for axis in (above, middle, below):
            axis.grid(alpha=0.25)

    return Found(rows, Table(title, header, cells), (6.4, 6.4), paint)
