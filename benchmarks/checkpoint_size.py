"""Measures checkpoints: their size, and the time to write and to read one.

It collects transitions of the task with random actions, then does a few updates at the full size of the networks, so
that optimisers and target networks hold what they hold in a training.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from mage_diffsim.checkpoints import load_checkpoint, save_checkpoint
from mage_diffsim.errors import InputError
from mage_diffsim.experiments.command import script_exit_code
from mage_diffsim.experiments.summary import write_summary
from mage_diffsim.experiments.tables import Table
from mage_diffsim.files import make_folder
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer

HEADER = ("dynamics", "environment steps", "MiB", "of it rows", "largest file", "files", "written in", "read in")


@dataclass(frozen=True)
class Options:
    __doc__ = __doc__

    task: str = "HalfCheetah"
    """Registered task, path/to/file.py:Class or module:Class."""
    dynamics: tuple[Literal["learned", "oracle"], ...] = ("oracle", "learned")
    """With the ensemble in the checkpoint, and without."""
    seeds: int = 5
    """Runs side by side."""
    steps: int = 100_000
    """Environment steps in the replay buffer."""
    every: int = 10_000
    """Environment steps between the checkpoint that is measured and the one before, whose parts it shares."""
    updates: int = 5
    """Critic updates before the checkpoint."""
    device: str = "cpu"
    """Torch device."""
    out: Path = Path("runs/checkpoints")
    """Folder for summary.md."""


def trained(options: Options, dynamics: str) -> Trainer:
    """A trainer with a full replay buffer and a few updates behind it."""
    hyper: dict[str, Any] = dict(updates_per_step=1, warmup_steps=options.steps - options.updates + 1, model_batches=1)
    hyper["model_every"] = options.steps
    settings: dict[str, Any] = dict(dynamics=dynamics, seeds=tuple(range(options.seeds)), device=options.device)
    if options.task == "HalfCheetah":
        settings["environment"] = "warp"
    settings |= dict(steps=options.steps, hyper=hyper)
    trainer = Trainer(make_config(options.task, shared=settings))
    while trainer.env_step < options.steps:
        trainer.step()
    return trainer


def measured(options: Options, dynamics: str, folder: Path) -> tuple[str, ...]:
    """A row under HEADER."""
    state, paths, took = trained(options, dynamics).state_dict(), [], 0.0
    rows = state["buffer"]["rows"]
    for steps in (max(options.steps - options.every, 1), options.steps):
        content = state | {"env_step": steps, "buffer": {"rows": rows[:, :steps], "size": steps}}
        paths.append(folder / f"step_{steps:010d}.json")
        began = time.perf_counter()
        save_checkpoint(paths[-1], {"trainer": content, "identity": {}, "used": {}, "train_s": 0.0, "wall_s": 0.0})
        took = time.perf_counter() - began
    began = time.perf_counter()
    load_checkpoint(paths[-1])
    read = time.perf_counter() - began
    index = json.loads(paths[-1].read_text())
    of_rows = {name for chunk in index["rows"] for name in chunk["parts"]}
    sizes = {part.name: part.stat().st_size / 2**20 for part in (folder / "parts").iterdir()}
    sizes = {name: size for name, size in sizes.items() if name in paths[-1].read_text()}
    return (
        dynamics,
        f"{options.steps}",
        f"{sum(sizes.values()):.1f}",
        f"{sum(sizes[name] for name in of_rows):.1f}",
        f"{max(sizes.values()):.1f}",
        f"{len(sizes) + 1}",
        f"{took:.2f} s",
        f"{read:.2f} s",
    )


def run(options: Options) -> int:
    """Measure, print and write the table; returns the exit code.

    Raises:
        InputError: an option is not accepted.
    """
    for name in ("seeds", "steps", "every", "updates"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}; accepted is 1 or more")
    rows = []
    for dynamics in options.dynamics:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(options, dynamics, Path(folder)))
    make_folder(options.out)
    title = f"Checkpoints of {options.task}, {options.seeds} runs"
    facts = {"threads": torch.get_num_threads(), "device": options.device}
    write_summary(options.out / "summary.md", title, (), [Table(title, HEADER, rows)], facts)
    return 0


if __name__ == "__main__":
    sys.exit(script_exit_code(lambda: run(tyro.cli(Options, description=__doc__)), resumes=False))
