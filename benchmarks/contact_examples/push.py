"""A box is pushed: derivatives by force and friction are nearly 0 while it sticks, and jump where it slides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from contact_examples.scenes import Found, derivative, physics_of, state_at
from mage_diffsim.experiments.figures import PALETTE
from mage_diffsim.experiments.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MASS, FRICTION, GRAVITY, SECONDS = 1.0, 0.5, 9.81, 0.5
LIMIT = FRICTION * MASS * GRAVITY
"""Force that friction can hold [N]."""
MODEL = f"""<mujoco><option timestep="{{timestep}}"/><worldbody><geom type="plane" size="5 5 1" friction=".1"/>
<body pos="0 0 .1"><joint name="x" type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/>
 <joint name="angle" axis="0 1 0"/><geom type="box" size=".1 .1 .1" mass="{MASS}" friction="{FRICTION}"/></body>
</worldbody><actuator><motor joint="x" ctrlrange="{{low}} {{high}}"/></actuator></mujoco>"""
SHOWN = (0.5, 0.9, 1.0, 1.1, 1.5)
"""Forces of the table, as shares of the limit."""


def measure(n: int = 161, timestep: float = 0.002) -> Found:
    """The box's path over the force that pushes it for half a second, and its derivatives by force and friction.

    Args:
        n: forces, from 0 to twice the limit.
        timestep: of the simulator [s].
    """
    physics = physics_of("Push", MODEL.format(timestep=timestep, low=0.0, high=2.0 * LIMIT), ["geom_friction"])
    share = torch.linspace(0.0, 2.0, n, dtype=torch.float64)
    force = (share * LIMIT).requires_grad_()
    own = physics.parameters()["geom_friction"]
    friction = own.expand(n, *own.shape).clone().requires_grad_()
    action = (force / LIMIT - 1.0)[:, None]  # -1 is no force, 1 twice the limit
    state = state_at(physics, x=torch.zeros(n, dtype=torch.float64))
    for _ in range(round(SECONDS / timestep)):
        state = physics.step(state, action, {"geom_friction": friction})
    path = state[:, 0]
    by_force, by_friction = torch.autograd.grad(path.sum(), (force, friction))
    by_friction = by_friction[:, 1, 0]  # of the box, whose friction is the larger one
    rigid = (0.5 * (force - LIMIT) / MASS * SECONDS**2).clamp(min=0.0)
    by_force_rigid = derivative(rigid, force)
    columns = dict(force=force, path=path, by_force=by_force, by_friction=by_friction, rigid=rigid,
                   by_force_rigid=by_force_rigid)  # fmt: skip
    numbers = {name: x.detach() for name, x in columns.items()}
    rows = [{name: float(x[i]) for name, x in numbers.items()} for i in range(n)]
    cells = []
    for at in SHOWN:
        row = rows[int((share - at).abs().argmin())]
        names = ("path", "rigid", "by_force", "by_force_rigid", "by_friction")
        cells.append([f"{at}", *(f"{row[name]:.2g}" for name in names)])
    header = ("force, of the limit", "path [m]", "rigid", "d path / d force [m/N]", "rigid", "d path / d friction [m]")

    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, 3, sharex=True)
        titles = ("path [m]", "d path / d force [m/N]", "d path / d friction [m]")
        shown = ("path", "rigid"), ("by_force", "by_force_rigid"), ("by_friction",)
        for axis, title, names in zip(axes, titles, shown, strict=True):
            for name, colour, dash in zip(names, PALETTE, ("-", "--"), strict=False):
                label = "Coulomb, rigid" if "rigid" in name else "simulated"
                axis.plot(share, numbers[name], dash, color=colour, label=label)
            axis.set_title(title, fontsize="medium")
            axis.set_xlabel("force, of the limit")
            axis.grid(alpha=0.25)
        axes[0].legend(fontsize="small", frameon=False)

    return Found(rows, Table(f"Push: friction holds {LIMIT:.2f} N", header, cells), (9.0, 3.0), paint)
