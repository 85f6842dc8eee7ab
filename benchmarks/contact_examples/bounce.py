"""A ball bounces: if the contact's force begins with a jump, derivatives stay wrong however small the timestep is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from contact_examples.scenes import Found, Tensor, derivative, physics_of, rolled, state_at
from mage_diffsim.experiments.figures import PALETTE
from mage_diffsim.experiments.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTACT = """solref="-{stiffness} 0" solimp="{solimp}" condim="1" """
MODEL = f"""<mujoco><option timestep="{{timestep}}"/><worldbody>
<geom type="plane" size="5 5 1" {CONTACT}/>
<body pos="0 0 .05"><joint name="height" type="slide" axis="0 0 1"/><geom type="sphere" size=".05" {CONTACT}/></body>
</worldbody><actuator><motor joint="height" ctrlrange="-1 1"/></actuator></mujoco>"""
GRAVITY = 9.81
SWING = 0.02
"""Half a period of the contact's spring [s]; the contact lasts about as long."""
STIFFNESS = (math.pi / SWING) ** 2
"""Of that spring, per mass [1/s^2]."""
HEIGHT, SPREAD, SECONDS = 1.0, 0.05, 0.6
"""Heights of the drops [m], HEIGHT +- SPREAD, and the time at which the ball is looked at: after one bounce."""
SOLIMPS = {"jumps": ".9999 .9999 .001", "jumps, MuJoCo's default": ".9 .95 .001", "from 0": "0 .95 .01"}
"""How the force begins, and the attribute that makes it do so. MuJoCo scales what a contact does to the acceleration,
gravity included, by the impedance, whose first number is that at the touch."""
PER_CONTACT = (4, 8, 16, 32, 64, 128)
"""Simulator steps in the time SWING."""
SHOWN, AROUND = 16, 0.02
"""Steps per contact in the figure, and its heights [m]: HEIGHT +- AROUND."""


def closed_form(height: Tensor) -> Tensor:
    """Height at the end where the impedance is 1: a fall, half a swing without gravity, and a rise."""
    speed = torch.sqrt(2.0 * GRAVITY * height)
    rising = SECONDS - speed / GRAVITY - SWING
    return speed * rising - 0.5 * GRAVITY * rising**2


def trend(y: Tensor, x: Tensor) -> float:
    """The slope of the straight line that is nearest to the points."""
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def measure(n: int = 401, per_contact: tuple[int, ...] = PER_CONTACT) -> Found:
    """Height after the bounce and its derivative by the initial height, over the steps per contact.

    Args:
        n: initial heights.
        per_contact: simulator steps in the time of a contact.
    """
    height = torch.linspace(HEIGHT - SPREAD, HEIGHT + SPREAD, n, dtype=torch.float64).requires_grad_()
    right = closed_form(height)
    truth = derivative(right, height)
    x, rows, cells = height.detach(), [], []
    ends: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for onset, solimp in SOLIMPS.items():
        for steps in per_contact:
            timestep = SWING / steps
            numbers = dict(timestep=timestep, stiffness=STIFFNESS, solimp=solimp)
            physics = physics_of(f"Bounce{steps}", MODEL.format(**numbers))
            end = rolled(physics, state_at(physics, height=height), round(SECONDS / timestep))[:, 0]
            slope, end = derivative(end, height), end.detach()
            ends[onset, steps] = end, slope
            rows += [
                {"force": onset, "steps_per_contact": steps, "height": float(x[i]), "end": float(end[i]),
                 "slope": float(slope[i])}
                for i in range(n)
            ]  # fmt: skip
            low, middle, high = torch.quantile(slope, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
            cells.append([onset, f"{steps}", f"{timestep:.2g}", f"{trend(end, x):.3f}", f"{middle:.3f}",
                          f"{low:.3f} to {high:.3f}"])  # fmt: skip
    title = f"Bounce: with impedance 1 the derivative is {float(truth.mean()):.3f} in closed form"
    header = ("force at the touch", "steps per contact", "timestep [s]", "trend of the values", "median derivative",
              "90% of the derivatives")  # fmt: skip

    def paint(figure: Figure) -> None:
        steps = SHOWN if SHOWN in per_contact else per_contact[0]
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        part = (x - HEIGHT).abs() < AROUND
        for axis, onset in zip(axes, ("jumps", "from 0"), strict=True):
            end, slope = ends[onset, steps]
            y = 1e3 * (end - end[part].mean())
            axis.plot(x[part], y[part], ".", markersize=3, color=PALETTE[0], label="simulated")
            axis.plot(x[part], 1e3 * trend(end, x) * (x[part] - HEIGHT), color=PALETTE[1], label="trend")
            for at in (HEIGHT - 0.01, HEIGHT, HEIGHT + 0.01):
                i = int((x - at).abs().argmin())
                near = (x - x[i]).abs() < 0.005
                tangent = y[i] + 1e3 * slope[i] * (x[near] - x[i])
                axis.plot(x[near], tangent, "--", color=PALETTE[6], label="exact derivative" if at == HEIGHT else None)
            axis.set_title(f"force {onset}, {steps} steps per contact", fontsize="medium")
            axis.set_xlabel("initial height [m]")
            axis.grid(alpha=0.25)
        axes[0].set_ylabel("height after the bounce,\nless its mean [mm]")
        axes[0].legend(fontsize="small", frameon=False)

    return Found(rows, Table(title, header, cells), (8.0, 3.2), paint)
