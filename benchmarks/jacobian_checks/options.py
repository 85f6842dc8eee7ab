"""The flags of gradient_quality.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from mage_diffsim.devices import device_text, torch_device
from mage_diffsim.envs.physics import BACKENDS
from mage_diffsim.envs.registry import task_names
from mage_diffsim.envs.sampling import WAYS
from mage_diffsim.errors import InputError, unknown_name

QUICK: dict[str, tuple[str, ...] | None] = {"Pendulum": None, "InvertedPendulum": None, "HalfCheetah": ("mujoco",)}
"""Tasks of --quick and their backends; None is all."""
QUICK_LEARNED = ("HalfCheetah",)
"""Tasks for which --quick trains an ensemble."""
DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    tasks: tuple[str, ...] | None = None
    """Registered tasks, path/to/file.py:Class or module:Class; by default all registered tasks."""
    backends: tuple[str, ...] | None = None
    """Physics backends; by default all that the task has."""
    derivatives: tuple[str, ...] | None = None
    """Derivative sources; by default all that the backend offers (with --quick its first)."""
    dtypes: tuple[str, ...] | None = None
    """float64, float32 or both, the default (with --quick float64)."""
    states: int | None = None
    """States per task, at least 4; by default 256 (with --quick 64)."""
    rollouts: tuple[str, ...] = ("uniform", "sinusoidal")
    """Actions of the rollouts that give states, in equal shares: uniform, bang-bang, constant, sinusoidal or small. One
    state in 32 is a reset state."""
    policy: Path | None = None
    """Run folder whose trained policy gives a further share of the states of its task."""
    learned: bool = True
    """Also measure the learned ensemble, trained on random transitions with the preset cpu."""
    transitions: tuple[int, ...] | None = None
    """Transitions that the ensemble has been trained on when it is measured; by default 1000 and 5000 (with --quick
    1000)."""
    repeats: int = 5
    """Warm repeats of every timing; the median is reported."""
    seed: int = 0
    """Seed of states, actions and the ensemble."""
    device: str = "cpu"
    """Torch device of the sources: cpu, cuda, cuda:1, ... The truth is computed on the CPU."""
    out: Path | None = None
    """Folder for results; by default runs/gradient_quality (runs/gradient_quality-quick with --quick)."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Pendulum and InvertedPendulum on all their backends, HalfCheetah on mujoco and learned; float64, 64 states."""
    sweep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure instead the error of central differences of MuJoCo C at steps from 1e-3 to 1e-8; writes sweep.csv and
    sweep.md."""
    soak: int | None = None
    """Visit instead so many states per source and count what is not finite; writes soak.csv and soak.md. By default
    only the first derivative source of every backend."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Forget what is finished in the out folder."""

    @property
    def references(self) -> tuple[str, ...]:
        """The tasks' names."""
        return self.tasks or (tuple(QUICK) if self.quick else task_names())

    @property
    def folder(self) -> Path:
        """The out folder."""
        return self.out or Path("runs") / ("gradient_quality" + ("-quick" if self.quick else ""))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all results in one folder share."""
        return {
            "states": self.states or (64 if self.quick else 256),
            "rollouts": list(self.rollouts),
            "policy": None if self.policy is None else str(self.policy),
            "seed": self.seed,
        }

    @property
    def facts(self) -> dict[str, Any]:
        """What a summary says of the settings."""
        return self.settings | {"device": device_text(self.device), "torch threads": torch.get_num_threads()}

    def check(self) -> None:
        """Refuses flags that cannot be measured.

        Raises:
            InputError: names the flag, what was given and what is accepted.
        """
        for kind, given, accepted in (
            ("backend", self.backends, BACKENDS),
            ("dtype", self.dtypes, DTYPES),
            ("rollout", self.rollouts, WAYS),
        ):
            for name in given or ():
                if name not in accepted:
                    raise unknown_name(kind, name, accepted)
        for flag in ("tasks", "backends", "derivatives", "dtypes", "rollouts", "transitions"):
            given = getattr(self, flag)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise InputError(f"--{flag} is {given}; accepted is one or more different values")
        numbers = [("states", self.settings["states"], 4), ("repeats", self.repeats, 1), ("seed", self.seed, 0)]
        numbers += [("transitions", n, 25) for n in self.transitions or ()]
        numbers += [("soak", self.soak, 1)] if self.soak is not None else []
        for flag, value, least in numbers:
            if value < least:
                raise InputError(f"--{flag} is {value}; accepted is {least} or more")
        if self.soak is not None and self.sweep:
            raise InputError("--soak and --sweep are two measurements: give one of them")
        torch_device(self.device)
