"""The base class of tasks on MJCF models: what an author declares, and what is read from the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from mage_diffsim.envs.files import source_file
from mage_diffsim.envs.mujoco.loading import load_simulation
from mage_diffsim.envs.mujoco.model import Readout, Simulation
from mage_diffsim.envs.task import Task, require_generator
from mage_diffsim.errors import InputError, unknown_name
from mage_diffsim.shapes import Float, Tensor


class MujocoTask(Task):
    """A control problem on an MJCF model. Declare the class attributes below, and write observe, reward, terminated.

    The state is ``qpos | qvel | act | mocap | readouts``: ``act`` has the activations of muscles, filters and
    integrators, and ``mocap`` has x, y, z and a unit quaternion of every mocap body, which a step leaves as they are.
    Joints and actuators are read from the model; there is one action for every control of an actuator. A *readout* is
    what the step computes besides the next positions and velocities, differentiable in every backend;
    ``self.readout(state, name)`` finds it in the state. A step depends on the state alone: the constraint solver starts
    without memory of earlier steps.

    An action in [-1, 1] is scaled to its control's ``ctrlrange``. A control without one gets its range from what it
    does:

    * a muscle: 0 to 1;
    * a filter with ``actrange``: that;
    * an integrator with ``actrange``: the rates that cross it in one second;
    * a servo (its bias depends on the length): the controls that rest at the ends of the range of its joint or tendon,
      and at -pi and pi on a hinge without a range and on a ball joint;
    * another actuator of fixed gain: the controls that reach the ends of its ``forcerange``, or of the
      ``actuatorfrcrange`` of its joint or tendon, at rest;
    * a motor that nothing bounds: -1 to 1, so that ``gear`` is its largest force;
    * an orientation servo: -pi to pi per component of a rotation vector, -1 to 1 per component of a quaternion;
    * an actuator that is switched off or has gain 0: -1 to 1.

    Reading anything that comes from the model needs ``mujoco`` (extra ``mjx``).

    Raises:
        InputError: the model does not load, or has what a task cannot use (see :func:`.loading.load_simulation`).
        MissingExtra: mujoco is not installed.
    """

    mjcf: ClassVar[str]
    """The model: ``gymnasium:half_cheetah.xml`` (an asset of gymnasium's), the path of a file (relative paths start at
    the task's own file; for a class of a notebook or of ``python -c``, at the current directory), or the XML itself."""
    frame_skip: ClassVar[int]
    """Simulator steps per action; ``dt`` is this many timesteps of the model."""
    readouts: ClassVar[Mapping[str, Readout]] = {}
    """Name to readout: :class:`BodyPosition`, :class:`SitePosition`, :class:`MeanVelocity`, :class:`CentreOfMass` or
    :class:`CentreOfMassVelocity`."""
    contact_margin: ClassVar[Literal["sum", "maximum"]] = "sum"
    """How the margins of two geoms make the margin of their contact. ``sum`` adds them, as MuJoCo does since 3.5;
    ``maximum`` takes the larger one, as earlier versions did, the paper's among them. It edits the model, which all
    backends then share, and is refused where no edit is exact (see :func:`.loading.load_simulation`)."""
    position_noise: ClassVar[float] = 0.0
    """:meth:`reset` adds a number uniform in +- this to every component of the model's initial qpos."""
    velocity_noise: ClassVar[float] = 0.0
    """Scale of the initial qvel: uniform in +- this, or its standard deviation with ``normal_velocity``."""
    normal_velocity: ClassVar[bool] = False
    """Whether the initial qvel is normally distributed instead of uniformly."""
    difference_steps: ClassVar[tuple[float, float, float]] = (1e-7, 1e-6, 1e-6)
    """Steps of finite differences through MuJoCo C for qpos and mocap poses, for qvel, and for controls and
    activations, in their units. These are good for every task here; ``benchmarks/gradient_quality.py --sweep`` shows a
    task's errors over the steps."""
    gradient_horizon = 50
    """Through hundreds of steps of contact the true gradient explodes, and its finite differences cost minutes."""
    physics = {  # noqa: RUF012  (the base class declares it a ClassVar)
        "mujoco": "mage_diffsim.envs.mujoco.task:simulation_of",
        "mjx": "mage_diffsim.envs.mujoco.task:simulation_of",
        "warp": "mage_diffsim.envs.mujoco.task:simulation_of",
        "mujoco-warp": "mage_diffsim.envs.mujoco.task:simulation_of",
    }

    @cached_property
    def simulation(self) -> Simulation:
        """The compiled model with what was read from it; compiled on first use."""
        return load_simulation(
            type(self).__name__, self.mjcf, self.model_folder, self.frame_skip, self.readouts, self.contact_margin
        )

    @property
    def model_folder(self) -> Path:
        """Where relative paths of models start: at the class that gives the model, which a subclass may inherit."""
        classes = type(self).__mro__
        file = source_file(next((c for c in classes if "mjcf" in vars(c) and "mjcf" not in vars(self)), type(self)))
        return Path.cwd() if file is None else file.parent

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.simulation.state_names

    @property
    def action_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.simulation.action_names

    @property
    def action_low(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.simulation.action_low

    @property
    def action_high(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.simulation.action_high

    @property
    def dt(self) -> float:  # type: ignore[override]
        return self.simulation.dt

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """``obs0``, ``obs1``, ...; override it to give names."""
        width = self.observe(torch.zeros(self.state_dim)).shape[-1]
        return tuple(f"obs{i}" for i in range(width))

    def qpos(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch nq"]:
        """The generalised positions in the state: m, rad, unit quaternions."""
        return state[..., : self.simulation.nq]

    def qvel(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch nv"]:
        """The generalised velocities in the state: m/s, rad/s."""
        return self.simulation.split(state)[1]

    def act(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch na"]:
        """The actuators' activations in the state, in the order of the actuators that have one."""
        return self.simulation.split(state)[2]

    def mocap(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch m"]:
        """The poses of the mocap bodies in the state, m = 7 nmocap: x, y, z [m] and a unit quaternion of each."""
        return self.simulation.split(state)[3]

    def readout(self, state: Float[Tensor, "*batch S"], name: str) -> Float[Tensor, "*batch k"]:
        """A readout in the state: one number of a mean velocity, three of the others.

        Raises:
            InputError: no readout of this name is declared.
        """
        if name not in self.readouts:
            raise unknown_name(f"readout of task {self.name}", name, self.readouts, remedy="declare it in readouts")
        return state[..., self.simulation.readout_slices[name]]

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        require_generator(generator)
        simulation = self.simulation
        for attribute in ("position_noise", "velocity_noise"):
            scale = getattr(self, attribute)
            if not isinstance(scale, (int, float)) or not scale >= 0.0:
                raise InputError(f"task {self.name}: {attribute} is {scale!r}; accepted is a number of 0 or more")

        def noise(width: int, scale: float, normal: bool = False) -> Tensor:
            like: dict[str, Any] = dict(dtype=torch.float64, device=generator.device, generator=generator)
            if normal:
                return scale * torch.randn(n, width, **like)
            return scale * (2.0 * torch.rand(n, width, **like) - 1.0)

        position = noise(simulation.nq, self.position_noise)
        qpos = position + torch.as_tensor(simulation.qpos0, device=position.device)
        return self.state_at(qpos, noise(simulation.nv, self.velocity_noise, self.normal_velocity))

    def state_at(
        self,
        qpos: Float[Tensor, "n nq"],
        qvel: Float[Tensor, "n nv"],
        act: Float[Tensor, "n na"] | None = None,
        mocap: Float[Tensor, "n m"] | None = None,
    ) -> Float[Tensor, "n S"]:
        """The state of a start: readouts as they are there, but mean velocities 0; quaternions normalised.

        Args:
            qpos: generalised positions, shape [n, nq].
            qvel: generalised velocities, shape [n, nv], the same dtype and device.
            act: activations, shape [n, na]; by default the model's own, which are 0 for most actuators.
            mocap: x, y, z and a quaternion of every mocap body, shape [n, 7 nmocap]; by default the model's own.

        Raises:
            InputError: one of them has another shape.
        """
        s = self.simulation
        widths = {"qpos": (qpos, s.nq), "qvel": (qvel, s.nv), "act": (act, s.na), "mocap": (mocap, 7 * s.nmocap)}
        for name, (x, width) in widths.items():
            if x is not None and x.shape != (len(qpos), width):
                raise InputError(
                    f"task {self.name}: state_at was given {name} of shape {tuple(x.shape)}; accepted is (n, {width}), "
                    "with one n for all"
                )
        moving = (x.double().cpu().numpy() for x in (qpos, qvel))
        given = (None if x is None else x.double().cpu().numpy() for x in (act, mocap))
        return torch.as_tensor(self.simulation.start(*moving, *given)).to(qpos)

    def render(self, state: Float[Tensor, " S"]) -> np.ndarray:
        """A picture by MuJoCo's renderer, uint8 [240, 320, 3], from the model's first camera if it has one.

        Raises:
            InputError: there is no OpenGL here.
        """
        return self.simulation.render(state.double().cpu().numpy())


def simulation_of(task: Any) -> Simulation:
    """The implementation of every backend of MuJoCo models: the compiled model."""
    return task.simulation


def with_unit_quaternions(simulation: Simulation, state: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
    """The state with its quaternions normalised, so that a derivative with respect to one is tangent to the sphere.

    A zero quaternion is no rotation, as in MuJoCo, and has derivative 0.
    """
    if not simulation.quaternions:
        return state
    # Split and stack have derivatives of one operation, where those of slices fill an array of the state's size each.
    sizes, done = [], 0
    for first in simulation.quaternions:
        sizes += [first - done, 4]
        done = first + 4
    parts = list(state.split([*sizes, state.shape[1] - done], dim=-1))
    quaternions = torch.stack(parts[1::2], dim=1)
    zero = (quaternions == 0.0).all(-1, keepdim=True)
    safe = torch.where(zero, torch.eye(1, 4, dtype=state.dtype, device=state.device), quaternions)
    parts[1::2] = (safe / torch.linalg.vector_norm(safe, dim=-1, keepdim=True)).unbind(1)
    return torch.cat(parts, dim=-1)
