"""The flags of against_mujoco.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.errors import InputError, unknown_name


@dataclass(frozen=True)
class Options:
    """What to measure."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """MJCF files, folders that are searched for them, or ``gymnasium:`` for its assets."""
    backends: tuple[str, ...] = ("warp", "mjx", "mujoco")
    """Physics backends; each takes its default derivative source."""
    states: int | None = None
    """States of each kind; by default 48 (with --quick 8)."""
    dtypes: tuple[Literal["float64", "float32"], ...] = ("float64", "float32")
    """Precisions."""
    limit: float = 900.0
    """Seconds that one model may take on one backend, compilation included."""
    seed: int = 0
    """Seed of the states."""
    title: str | None = None
    """The models and their version, for the heading of summary.md; by default the paths."""
    out: Path = Path("runs/against_mujoco")
    """Folder for results."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure everything anew."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Few states and float64 alone."""

    def resolved(self) -> Options:
        """The options with the defaults that depend on other flags.

        Raises:
            InputError: a flag has a value that cannot be measured.
        """
        known = MujocoTask.physics
        for flag, given in (("paths", self.paths), ("backends", self.backends), ("dtypes", self.dtypes)):
            if not given or len(set(given)) < len(given):
                raise InputError(f"--{flag} is {given}; accepted is one or more different values")
        for backend in self.backends:
            if backend not in known:
                raise unknown_name("backend of MuJoCo models", backend, known)
        states = self.states if self.states is not None else 8 if self.quick else 48
        if states < 1 or not self.limit > 0.0:
            raise InputError(f"--states is {states} and --limit {self.limit}; accepted are positive numbers")
        return replace(self, states=states, dtypes=self.dtypes[:1] if self.quick else self.dtypes)
