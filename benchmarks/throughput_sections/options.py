"""The flags of ``benchmarks/throughput.py``."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from mage_diffsim.devices import torch_device
from mage_diffsim.envs.physics import BACKENDS
from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import InputError, unknown_name
from mage_diffsim.hyper import Preset
from mage_diffsim.methods import METHODS
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer

Section = Literal["steps", "learner", "model", "loop", "runs", "env", "bridges", "physics", "oracles", "kernels"]
ALL: tuple[Section, ...] = get_args(Section)
ON_A_GPU: tuple[Section, ...] = ("steps", "bridges", "physics", "kernels")
"""Sections of --quick on a GPU."""
STEPS = 300
"""Environment steps of a warm trainer, which are the transitions in its buffer."""


@dataclass(frozen=True)
class Options:
    """What to measure, and how often."""

    sections: tuple[Section, ...] | None = None
    """steps: an environment step of R runs with its updates, model training, evaluation and memory, and the time of the
    paper's training. learner: one update of critic, targets and (every second time) actor. model: one batch of the
    ensemble. loop: one environment step with its updates and its share of model training. runs: one update of R runs
    side by side against R times one run. env: one step of environments, one evaluation. bridges: JAX and Warp as torch
    functions. physics: environment steps per second. oracles: one MAGE-TD3 update on every oracle. kernels: kernels of
    the compiled parts of an update. By default all; with --quick on a GPU steps, bridges, physics and kernels."""
    tasks: tuple[str, ...] | None = None
    """Tasks; by default Pendulum and HalfCheetah (with --quick on a CPU Pendulum). Task and preset decide the sizes."""
    methods: tuple[str, ...] = ("mage-td3", "mage-ddpg", "dyna-td3")
    """Methods of sections learner and kernels, each on the learned ensemble; section runs takes the first."""
    runs: tuple[int, ...] | None = None
    """Numbers of runs of sections runs and steps. By default 1, 5 and 20 on a GPU, 1, 8 and 32 for tasks of small size;
    on a CPU 1, 5 and 20, and 1 and 5 with --quick or for tasks of full size."""
    batches: tuple[int, ...] | None = None
    """Numbers of environments of section physics and env, by default 1, 64 and 1024; with --quick 64, or on a GPU 1024,
    8192 and 65536."""
    backends: tuple[str, ...] | None = None
    """Physics backends of sections physics and oracles; by default all that the task has."""
    dtypes: tuple[Literal["float32", "float64"], ...] = ("float32",)
    """Precisions of section physics."""
    jacobians: Annotated[bool, tyro.conf.FlagCreatePairsOff] = True
    """Section physics measures whole action-Jacobians, too, which takes minutes on MJX. --no-jacobians leaves
    them out."""
    preset: Preset = "paper"
    """Hyper-parameter set, which gives the sizes. paper on Pendulum: 8x2x128 ensemble, 2x128 actor and critic, batch
    512; on larger tasks 8x4x512, 2x384, batch 1024."""
    repeats: int | None = None
    """Rounds, over which median and 95th percentile are taken; by default 20, or 10 for tasks of full size on a CPU
    (with --quick 5)."""
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = True
    """Compiled updates and model batches are measured, too; with --quick in section model only. --no-compile leaves
    them out."""
    device: str = "cpu"
    """Torch device: cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """Torch threads on the CPU; by default torch's own choice."""
    out: Path | None = None
    """Folder for results; by default runs/throughput (runs/throughput-quick with --quick)."""
    json: Path | None = None
    """Also write all rows and the hardware to this file."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Few repeats and sizes, on a CPU of Pendulum only, and one page instead of a table per section."""
    minutes: float | None = None
    """Minutes that all measurements may take. Every section gets a share; what does not fit is left out, and said. By
    default 5 with --quick on a GPU."""
    began: Annotated[float, tyro.conf.Suppress] = 0.0
    """When this section began [s]."""
    until: Annotated[float, tyro.conf.Suppress] = math.inf
    """When it is to end [s]."""

    @property
    def folder(self) -> Path:
        """The out folder."""
        return self.out or Path("runs") / ("throughput-quick" if self.quick else "throughput")

    def check(self) -> None:
        """Refuses what cannot be measured.

        Raises:
            InputError: names the flag, what was given and what is accepted.
        """
        imagining = [name for name, entry in METHODS.items() if entry.imagines]
        for method in self.methods:
            if method not in imagining:
                raise unknown_name("method that imagines", method, imagining)
        for backend in self.backends or ():
            if backend not in BACKENDS:
                raise unknown_name("backend", backend, BACKENDS)
        for flag in ("sections", "tasks", "methods", "runs", "batches", "backends", "dtypes"):
            given = getattr(self, flag)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise InputError(f"--{flag} is {given}; accepted is one or more different values")
        if self.minutes is not None and not 0.0 < self.minutes < math.inf:
            raise InputError(f"--minutes is {self.minutes}; accepted is a number above 0")
        numbers = [("repeats", self.repeats), ("threads", self.threads)]
        numbers += [(flag, n) for flag in ("runs", "batches") for n in getattr(self, flag) or ()]
        if self.json is not None:
            if not self.json.parent.is_dir():
                raise InputError(f"cannot write {self.json}: there is no folder {self.json.parent}")
            if self.json.is_dir():
                raise InputError(f"cannot write {self.json}: it is a folder; accepted is a file")
        for flag, value in numbers:
            if value is not None and value < 1:
                raise InputError(f"--{flag} is {value}; accepted is 1 or more")
        torch_device(self.device)

    @property
    def on_a_gpu(self) -> bool:
        """Whether the device is a CUDA device."""
        return torch_device(self.device).type == "cuda"

    def section_names(self) -> tuple[Section, ...]:
        """Returns the sections in force."""
        return self.sections or (ON_A_GPU if self.quick and self.on_a_gpu else ALL)

    def of(self, section: Section) -> Options:
        """Returns what a section measures where these options leave it open."""
        if section == "kernels" and self.quick:
            largest = self.tasks or (("HalfCheetah",) if self.on_a_gpu else self.task_names())
            return replace(self, tasks=largest, methods=self.methods[:1])
        if section == "physics" and self.quick and self.on_a_gpu:
            worlds, tasks = self.batches or (1024, 8192, 65536), self.tasks or ("HalfCheetah", "Ant")
            return replace(self, tasks=tasks, batches=worlds, jacobians=False)
        return self

    def seconds(self) -> float:
        """Returns how long all measurements may take."""
        return 60.0 * (self.minutes or (5.0 if self.quick and self.on_a_gpu else math.inf))

    def used_up(self, share: float = 1.0) -> bool:
        """Whether this share of the section's time is over."""
        return self.until < math.inf and time.monotonic() > self.began + share * (self.until - self.began)

    def task_names(self) -> tuple[str, ...]:
        """Returns the tasks in force."""
        return self.tasks or (("Pendulum",) if self.quick and not self.on_a_gpu else ("Pendulum", "HalfCheetah"))

    def rounds(self, task: str) -> int:
        """Returns the rounds in force."""
        return self.repeats or (5 if self.quick else 10 if self.heavy(task) else 20)

    def run_counts(self, task: str) -> tuple[int, ...]:
        """Returns the numbers of runs in force."""
        if self.on_a_gpu:
            return self.runs or ((1, 5, 20) if make_task(task).network_size == "full" else (1, 8, 32))
        return self.runs or ((1, 5) if self.quick or self.heavy(task) else (1, 5, 20))

    def batch_sizes(self) -> tuple[int, ...]:
        """Returns the numbers of environments in force."""
        return self.batches or ((64,) if self.quick else (1, 64, 1024))

    def heavy(self, task: str) -> bool:
        """Returns whether an update takes this device long."""
        return self.device == "cpu" and make_task(task).network_size == "full"

    def trainer(self, task: str, *, updates: int | None = None, **settings: Any) -> Trainer:
        """Returns a trainer with transitions in its buffer and nothing learned yet, eager unless settings say
        otherwise. Its ``improve`` does so many ``updates``, or those of an environment step."""
        settings = {"graphs": "off"} | settings
        hyper = {"warmup_steps": STEPS + 1, "model_every": 10 * STEPS}
        hyper |= {} if updates is None else {"updates_per_step": updates}
        config = make_config(
            task, preset=self.preset, steps=STEPS, device=self.device, shared={"hyper": hyper} | settings
        )
        trainer = Trainer(config)
        for _ in range(STEPS):
            trainer.step()
        if trainer.ensemble is not None:
            trainer.ensemble.adopt_statistics(trainer.agent.obs, trainer.action_statistics, trainer.delta_statistics)
        return trainer
