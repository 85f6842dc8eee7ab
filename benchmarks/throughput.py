"""How fast is it? Updates, model training, the whole loop, environments, bridges and physics, on this machine.

    python benchmarks/throughput.py                                 # everything, Pendulum and HalfCheetah sizes
    python benchmarks/throughput.py --quick                         # small sizes, few repeats: under three minutes
    python benchmarks/throughput.py --sections learner --tasks Pendulum --threads 1   # on a busy machine
    python benchmarks/throughput.py --sections oracles --tasks HalfCheetah   # one MAGE-TD3 update on every oracle

``published`` is the published formulation (benchmarks/published.py) in the same process: undetached, all ensemble
members, losses read back after every update. Variants of one group are called in turn, so that drift of the machine
hits all of them; a ratio is the median over rounds. Nothing is printed whose results are wrong: critic gradients and
model losses are compared with the published formulation, compiled updates with eager ones, one of several runs with
that run alone, gradients of bridges with closed forms, pull-backs of physics with their Jacobians.
The process keeps freed memory (mage_diffsim/memory.py), as training does, so the published formulation pays no page
faults either; with an empty ``GLIBC_TUNABLES`` in the environment both run by glibc's defaults.
Writes throughput.csv, summary.md and a figure per section. Columns: R runs side by side; size, rows of a batch,
environments or episodes; ms and p95, median and 95th percentile over rounds (of ten, the largest); per s, units per
second; speed-up, how many times faster than the variant under "against"; first s, what the first call took beyond a
warm one; faults, page faults per unit; peak MiB, on a CPU the process's largest so far; checked, what was verified.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
import tyro
from published import PublishedDraws, PublishedModelTraining, PublishedUpdate
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from mage_diffsim.agent import Draws
from mage_diffsim.bridges import from_jax, from_warp
from mage_diffsim.bridges.jax import load_jax
from mage_diffsim.bridges.warp import kernel, load_warp
from mage_diffsim.config import METHODS, make_config
from mage_diffsim.display import show_log
from mage_diffsim.doctor import versions
from mage_diffsim.dynamics import OracleDynamics
from mage_diffsim.envs.batched import BatchedEnv
from mage_diffsim.envs.physics import BACKENDS, Physics, backends_of, load, make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import InputError, MissingExtra, unknown_name
from mage_diffsim.experiments.command import provenance
from mage_diffsim.experiments.figures import DASHES, PALETTE, failures_kept, not_drawn, write_figure
from mage_diffsim.experiments.quality import jacobian_of
from mage_diffsim.experiments.report import markdown_table, rich_table, write_csv
from mage_diffsim.experiments.timing import Times, interleaved, memory_growth, percentile
from mage_diffsim.memory import keep_freed_memory
from mage_diffsim.runs import make_folder, write_atomically
from mage_diffsim.training import Trainer, torch_device

Section = Literal["learner", "model", "loop", "runs", "env", "bridges", "physics", "oracles"]
STEPS = 300
"""Environment steps of a warm trainer: transitions in its buffer."""
CALLS = 5000
"""Calls of a bridge over which memory is watched."""
LEAK_MIB = 32.0
"""More growth than this over them is a leak; an allocator's own comings and goings stay below."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    sections: tuple[Section, ...] = get_args(Section)
    """learner: one update of critic, targets and (every second time) actor. model: one batch of the ensemble. loop: one
    environment step with its updates and its share of model training. runs: one update of R runs side by side against R
    times one run. env: one step of environments, one evaluation. bridges: JAX and Warp as torch functions. physics:
    environment steps per second. oracles: one MAGE-TD3 update on every oracle."""
    tasks: tuple[str, ...] | None = None
    """Tasks, which decide sizes with the preset; by default Pendulum and HalfCheetah (with --quick Pendulum)."""
    methods: tuple[str, ...] = ("mage-td3", "mage-ddpg", "dyna-td3")
    """Methods of section learner, each on the learned ensemble; the first is that of section runs."""
    runs: tuple[int, ...] | None = None
    """Numbers of runs of section runs, by default 1, 5 and 20 (with --quick 1 and 5; on a CPU 1 and 5 for tasks of full
    size)."""
    batches: tuple[int, ...] | None = None
    """Numbers of environments of section physics and env, by default 1, 64 and 1024 (with --quick 64)."""
    backends: tuple[str, ...] | None = None
    """Physics backends of sections physics and oracles; by default all that the task has."""
    dtypes: tuple[Literal["float32", "float64"], ...] = ("float32",)
    """Precisions of section physics."""
    jacobians: Annotated[bool, tyro.conf.FlagCreatePairsOff] = True
    """Section physics measures whole action-Jacobians, too, which takes minutes on MJX, unless --no-jacobians."""
    preset: str = "paper"
    """Sizes: the preset's for the task (paper, Pendulum: 8x2x128 ensemble, 2x128 actor and critic, batch 512; else
    8x4x512, 2x384, batch 1024)."""
    repeats: int | None = None
    """Rounds; the median and 95th percentile over them are reported. By default 20, or 10 for tasks of full size on a
    CPU (with --quick 5)."""
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = True
    """Compiled updates and model batches (and, on CUDA, captured ones) are measured, too, unless --no-compile; with
    --quick, which would mostly compile, in section model only."""
    device: str = "cpu"
    """Torch device: cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """Torch threads on the CPU; by default torch's own choice."""
    out: Path | None = None
    """Folder for results; by default runs/throughput (runs/throughput-quick with --quick)."""
    json: Path | None = None
    """Also write all rows and the hardware to this file."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Pendulum only, few repeats and sizes."""

    @property
    def folder(self) -> Path:
        """The out folder."""
        return self.out or Path("runs") / ("throughput-quick" if self.quick else "throughput")

    def check(self) -> None:
        """Refuse what cannot be measured.

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

    def task_names(self) -> tuple[str, ...]:
        """Tasks in force."""
        return self.tasks or (("Pendulum",) if self.quick else ("Pendulum", "HalfCheetah"))

    def rounds(self, task: str) -> int:
        """Repeats in force."""
        return self.repeats or (5 if self.quick else 10 if self.heavy(task) else 20)

    def run_counts(self, task: str) -> tuple[int, ...]:
        """Numbers of runs in force."""
        return self.runs or ((1, 5) if self.quick or self.heavy(task) else (1, 5, 20))

    def batch_sizes(self) -> tuple[int, ...]:
        """Numbers of environments in force."""
        return self.batches or ((64,) if self.quick else (1, 64, 1024))

    def heavy(self, task: str) -> bool:
        """Whether an update takes this device long."""
        return self.device == "cpu" and make_task(task).network_size == "full"

    def trainer(self, task: str, **settings: Any) -> Trainer:
        """A trainer with transitions in its buffer, nothing learned yet, and nothing compiled; eager unless settings
        say otherwise."""
        settings = {"graphs": "off"} | settings
        hyper = {"warmup_steps": STEPS + 1, "model_every": 10 * STEPS}
        config = make_config(
            task, preset=self.preset, steps=STEPS, device=self.device, shared={"hyper": hyper} | settings
        )
        trainer = Trainer(config)
        for _ in range(STEPS):
            trainer.step()
        if trainer.ensemble is not None:
            trainer.ensemble.adopt_statistics(trainer.agent.obs, trainer.action_statistics, trainer.delta_statistics)
        return trainer


@dataclass(frozen=True)
class Row:
    """One measurement."""

    section: str
    subject: str
    """Task, method or operation."""
    variant: str
    """How it is done."""
    runs: int
    """Runs side by side (R)."""
    size: int
    """Rows of a batch, or environments."""
    unit: str
    """What one time is of."""
    median_ms: float
    p95_ms: float
    per_s: float
    """Units per second, of all runs or environments together."""
    ratio: float
    """How many times faster than the variant named next, median over rounds; NaN where there is none."""
    against: str
    first_s: float
    """What the first call took beyond a warm one: compilation and loading."""
    faults: float
    """Page faults per unit, mean over rounds: memory touched for the first time since the system handed it out."""
    peak_mib: float
    """CUDA: memory at the peak of a call. CPU: largest resident size of the process so far."""
    check: str
    """What was verified of the results that were timed."""


FIELDS = tuple(Row.__dataclass_fields__)


def row(
    section: str, subject: str, variant: str, times: Times, *, unit: str, runs: int = 1, size: int = 0, calls: int = 1,
    count: int = 1, against: tuple[str, Times] | None = None, check: str = "",
) -> Row:  # fmt: skip
    """A row of one function's times, which did ``calls`` units, each worth ``count`` for the rate."""
    ratio = times.speed_against(against[1]) if against else math.nan
    return Row(
        section, subject, variant, runs, size, unit, 1e3 * times.median_s / calls, 1e3 * times.p95_s / calls,
        count * calls / times.median_s, ratio, against[0] if against else "", times.first_s, times.faults / calls,
        times.peak_mib, check,
    )  # fmt: skip


class Failed(RuntimeError):
    """What was to be timed gives wrong results."""


# --- learner ---------------------------------------------------------------------------------------------------------


def variants_of(options: Options, section: Section) -> dict[str, dict[str, Any]]:
    """Name to settings of the learner's forms that a section measures."""
    found = {"eager": {"graphs": "off"}}
    compiles = options.compile and (section == "model" or not options.quick)
    if compiles:
        found["compiled"] = {"compile": "on", "graphs": "off"}
    if options.device != "cpu":
        found["captured"] = {"graphs": "on"}
        if compiles:
            found["compiled + captured"] = {"compile": "on", "graphs": "on"}
    return found


def updates_per_call(options: Options, task: str) -> int:
    """Updates that one measured call does: even, as every second one includes the actor."""
    return 2 if options.quick or options.heavy(task) else 10


def measure_learner(options: Options) -> Iterator[Row]:
    """Updates: the published formulation against the learner's forms, and how fast their matrix products alone are."""
    device = torch_device(options.device)
    for task, method in itertools.product(options.task_names(), options.methods):
        rounds, updates = options.rounds(task), updates_per_call(options, task)
        # Trainers of one seed start with equal parameters and have seen the same transitions.
        forms = {
            name: options.trainer(task, method=method, **kw) for name, kw in variants_of(options, "learner").items()
        }
        eager = forms["eager"]
        size, drawn = eager.hyper.batch_size, eager.agent.draw(updates, eager.buffer.size)
        run_published, error = published_updates(eager, drawn)
        functions: dict[str, Callable[[], object]] = {"published": run_published}
        functions |= {name: lambda t=t, d=drawn: t.agent.improve(t.buffer, d) for name, t in forms.items()}
        spare = options.trainer(task, method=method)  # to be recorded, which trains it
        functions["products"], ours = matrix_products(functools.partial(spare.agent.improve, spare.buffer, drawn))
        theirs = matrix_products(run_published)[1]
        found = interleaved(functions, rounds, device)
        apart = max(
            float((getattr(t.agent, name) - getattr(eager.agent, name)).abs().max())
            for t, name in itertools.product(forms.values(), ("actor", "critic", "critic_target"))
        )
        if not apart <= 1e-5:
            raise Failed(f"{task} {method}: forms are {apart:.1e} apart after {eager.agent.critic_updates} updates")
        check = f"critic gradient {error:.0e} from published"
        if len(forms) > 1:
            check += f"; forms {apart:.0e} apart"
        products = found.pop("products")
        for name, times in found.items():
            against = ("published", found["published"]) if name != "published" else None
            yield row("learner", f"{task} {method}", name, times, unit="update", size=size, calls=updates,
                      against=against, check=check)  # fmt: skip
        yield row("learner", f"{task} {method}", "matrix products of eager", products, unit="update", size=size,
                  calls=updates, against=("eager", found["eager"]),
                  check=f"{ours / updates:.3g} GFLOP, published {theirs / updates:.3g}")  # fmt: skip


PRODUCTS = [getattr(torch.ops.aten, name) for name in ("mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_")]


def matrix_products(function: Callable[[], object]) -> tuple[Callable[[], None], float]:
    """The matrix products of a call, one after the other on the operands that they had, and how many billion
    floating-point operations they are. In the call itself operands may still be in a cache; here none is."""
    calls: list[tuple[Callable[..., object], tuple, dict]] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> object:
            if func.overloadpacket in PRODUCTS:
                calls.append((func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Record():
        function()
    operands = (args[-2:] for _, args, _ in calls)

    def run() -> None:
        with torch.no_grad():
            for func, args, kwargs in calls:
                func(*args, **kwargs)

    return run, sum(2 * a.numel() * b.shape[-1] for a, b in operands) / 1e9


def published_updates(trainer: Trainer, drawn: Sequence[Draws]) -> tuple[Callable[[], None], float]:
    """The published updates on these draws, and the relative difference of the first one's critic gradient to ours.

    Raises:
        Failed: it is large.
    """
    size, members = trainer.hyper.batch_size, trainer.hyper.ensemble_members
    member = torch.arange(size, device=trainer.device) // (size // members)
    batches = [trainer.buffer.gather(draws.index) for draws in drawn]
    theirs = [PublishedDraws(member, d.imagine[0], d.target[0]) for d in drawn if d.imagine is not None]
    published, batch = PublishedUpdate(trainer), batches[0]
    expected = published.critic_gradient(batch.obs[0], batch.state[0], theirs[0])
    _, gradient = trainer.agent.critic_gradient(batch, trainer.agent.target(batch, drawn[0]), drawn[0])
    error = float((gradient[0] - expected).norm() / expected.norm())
    if not error < 1e-3:
        raise Failed(f"the critic gradients differ by {error:.1e}; a timing would mean nothing")

    def run() -> None:
        for batch, draws in zip(batches, theirs, strict=True):
            published.update(batch.obs[0], batch.state[0], draws)

    return run, error


# --- model training --------------------------------------------------------------------------------------------------


def measure_model(options: Options) -> Iterator[Row]:
    """One batch of maximum likelihood."""
    device, calls = torch_device(options.device), 2
    for task in options.task_names():
        forms = {name: options.trainer(task, **settings) for name, settings in variants_of(options, "model").items()}
        eager = forms["eager"]
        assert eager.ensemble is not None
        size = eager.hyper.model_batch_size
        losses: dict[str, float] = {}
        run_published, index = published_batches(eager, losses, calls)

        def run_ours(name: str, trainer: Trainer, index=index, losses=losses) -> None:
            for _ in range(calls):
                loss = trainer.batch_steps["loss/model"](index)
            losses[name] = float(loss[0])

        functions: dict[str, Callable[[], object]] = {"published": run_published}
        functions |= {name: lambda n=name, t=trainer, f=run_ours: f(n, t) for name, trainer in forms.items()}
        found = interleaved(functions, options.rounds(task), device)
        apart = max(losses.values()) - min(losses.values())
        if not apart < 1e-3 * max(1.0, abs(losses["published"])):
            raise Failed(f"{task}: after the same batches the model losses are {losses}")
        for name, times in found.items():
            against = ("published", found["published"]) if name != "published" else None
            yield row("model", task, name, times, unit="batch", size=size, calls=calls, against=against,
                      check=f"losses {apart:.0e} apart")  # fmt: skip


def published_batches(
    trainer: Trainer, losses: dict[str, float] | None = None, calls: int = 2
) -> tuple[Callable[[], None], torch.Tensor]:
    """Published steps of the model on one batch, whose loss goes into ``losses``; and the batch's indices."""
    assert trainer.ensemble is not None
    members, size = trainer.hyper.ensemble_members, trainer.hyper.model_batch_size
    index = trainer.streams.integers("model", trainer.buffer.size, members, size)
    batch = trainer.buffer.gather(index)
    rows = [x[0].view(members, size, -1) for x in (batch.obs, batch.action, batch.next_obs)]
    published, kept = PublishedModelTraining(trainer), {} if losses is None else losses

    def run() -> None:
        for _ in range(calls):
            kept["published"] = published.update(*rows)

    return run, index


# --- the whole loop --------------------------------------------------------------------------------------------------


def measure_loop(options: Options) -> Iterator[Row]:
    """Algorithm 2 per environment step, over one period of model training; the published loop is a sum.

    That sum is of the published updates and model batches that a step has, timed in the same rounds. Collection,
    normalisation and logging of the published loop are counted as nothing.

    Raises:
        InputError: the preset trains models by whole epochs, whose number of batches grows with the buffer.
    """
    device = torch_device(options.device)
    for task in options.task_names():
        hyper = make_config(task, preset=options.preset).hyper
        if hyper.model_epochs:
            raise InputError(f"--preset {options.preset} trains by whole epochs: leave section loop out, or use paper")
        period, rounds = hyper.model_every, max(3, min(5, options.rounds(task) // 2))
        warm = options.trainer(task)
        run_updates, error = published_updates(warm, warm.agent.draw(2, warm.buffer.size))
        run_batches, _ = published_batches(warm)
        functions: dict[str, Callable[[], object]] = {"updates": run_updates, "batches": run_batches}
        trainers = {}
        for name, settings in variants_of(options, "loop").items():
            steps = (2 + rounds) * period
            trainers[name] = Trainer(
                make_config(task, preset=options.preset, steps=steps, device=options.device,
                            hyper={"warmup_steps": 2}, **settings)
            )  # fmt: skip

            def run(trainer: Trainer = trainers[name], period: int = period) -> None:
                for _ in range(period):
                    trainer.step()

            functions[name] = run
        found = interleaved(functions, rounds, device)
        shares = hyper.updates_per_step / 2, hyper.model_batches / period / 2  # both were called twice
        sums = [shares[0] * u + shares[1] * b for u, b in zip(found["updates"].rounds, found["batches"].rounds,
                                                              strict=True)]  # fmt: skip
        published = Times(percentile(sums, 0.5), percentile(sums, 0.95), 0.0, tuple(sums), math.nan, math.nan)
        yield row("loop", task, "published, sum", published, unit="env step", size=1,
                  check=f"critic gradient {error:.0e}; a sum of updates and batches")  # fmt: skip
        per_period = published._replace(rounds=tuple(period * x for x in sums))
        apart = max(float((t.agent.critic - trainers["eager"].agent.critic).abs().max()) for t in trainers.values())
        check = (
            f"critics of the forms {apart:.0e} apart after {(2 + rounds) * period} steps" if len(trainers) > 1 else ""
        )
        for name in trainers:
            yield row("loop", task, name, found[name], unit="env step", size=1, calls=period,
                      against=("published, sum", per_period),
                      check=check)  # fmt: skip


# --- runs side by side -----------------------------------------------------------------------------------------------


def measure_runs(options: Options) -> Iterator[Row]:
    """Updates of R runs side by side against R times one run."""
    method = options.methods[0]
    for task in options.task_names():
        counts = tuple(dict.fromkeys((1, *options.run_counts(task))))
        if counts == (1,):
            continue
        updates = updates_per_call(options, task)
        for name, settings in variants_of(options, "learner").items():
            functions: dict[str, Callable[[], object]] = {}
            trainers = {n: options.trainer(task, method=method, seeds=tuple(range(n)), **settings) for n in counts}
            for count, trainer in trainers.items():
                drawn = trainer.agent.draw(updates, trainer.buffer.size)
                functions[str(count)] = lambda t=trainer, d=drawn: t.agent.improve(t.buffer, d)
            found = interleaved(functions, options.rounds(task), torch_device(options.device))
            apart = max(float((t.agent.critic[0] - trainers[1].agent.critic[0]).abs().max()) for t in trainers.values())
            if not apart <= 1e-5:
                raise Failed(f"{task} {method}: the first of several runs is {apart:.1e} from that run alone")
            size = trainers[1].hyper.batch_size
            for count in counts:
                alone = found["1"]._replace(rounds=tuple(x * count for x in found["1"].rounds))
                yield row("runs", f"{task} {method}", name, found[str(count)], unit="update", runs=count, size=size,
                          calls=updates, count=count, against=(f"{count} x 1 run", alone),
                          check=f"first run {apart:.0e} from it alone")  # fmt: skip


# --- environments ----------------------------------------------------------------------------------------------------


def measure_env(options: Options) -> Iterator[Row]:
    """A step of N real environments with their resets, and a whole evaluation."""
    device = torch_device(options.device)
    for task in options.task_names():
        trainer = options.trainer(task)
        physics = trainer.physics
        for n in options.batch_sizes():
            env = BatchedEnv(trainer.task, physics, n, [torch.Generator(device).manual_seed(0)])
            env.reset()
            action = torch.rand(n, trainer.task.action_dim, dtype=physics.dtype, device=device) * 2.0 - 1.0

            def run(env=env, action=action) -> None:
                for _ in range(20):
                    env.step(action)

            times = interleaved({"step": run}, options.rounds(task), device)["step"]
            check = f"{int((~env.state.isfinite().all(1)).sum())} states not finite"
            yield row("env", f"{task} step", physics.backend, times, unit="step", size=n, calls=20, count=n,
                      check=check)  # fmt: skip
        for count in (1, 5):
            several = options.trainer(task, seeds=tuple(range(count)), gradient_episodes=0)
            times = interleaved({"evaluate": several.evaluate}, min(3, options.rounds(task)), device)["evaluate"]
            episodes = several.config.eval_episodes
            returns = several.evaluate()["return/mean"].tolist()
            yield row("env", f"{task} evaluation", physics.backend, times, unit="evaluation", runs=count, size=episodes,
                      count=count * episodes, check=f"mean return {statistics.mean(returns):.3g}")  # fmt: skip


# --- bridges ---------------------------------------------------------------------------------------------------------

ROWS, COLUMNS = 1024, 18


def measure_bridges(options: Options) -> Iterator[Row]:
    """JAX and Warp as torch functions at (1024, 18), against the pure calls, an empty Function, a bridge un-jitted."""
    device = torch_device(options.device)
    x = torch.randn(ROWS, COLUMNS, device=device)
    for measure in (measure_jax_bridge, measure_warp_bridge):
        try:
            yield from measure(x, options)
        except MissingExtra as error:
            print(f"{measure.__name__} is left out: {error}")


class Empty(torch.autograd.Function):
    """What any bridge pays to torch: one autograd Function each way."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> torch.Tensor:
        return cotangents[0]


def forward_backward(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A call with its pull-back of ones."""
    ones = torch.ones_like(x)

    def run() -> torch.Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, ones)[0]

    return run


def times_100(function: Callable[[], object]) -> Callable[[], None]:
    """A hundred calls."""

    def run() -> None:
        for _ in range(100):
            function()

    return run


def bridge_rows(
    name: str, functions: dict[str, Callable[[], object]], options: Options, device: torch.device, check: str
) -> Iterator[Row]:
    """Rows of a bridge's variants, the overhead among them, and of the ratio to the un-jitted bridge."""
    rounds = options.repeats or (5 if options.quick else 20)
    found = interleaved({k: times_100(f) for k, f in functions.items()}, rounds, device)
    for variant, times in found.items():
        against = ("bridge", found["bridge, forward + backward"]) if variant.startswith("un-jitted") else None
        yield row("bridges", name, variant, times, unit="call", size=ROWS, calls=100, against=against, check=check)
    bridge, pure, empty = (found[k] for k in ("bridge, forward + backward", "pure, forward + backward",
                                              "empty torch Function"))  # fmt: skip
    rounds_of_it = tuple(b - p for b, p in zip(bridge.rounds, pure.rounds, strict=True))
    ratio = statistics.median(rounds_of_it) / statistics.median(empty.rounds)
    check = f"{ratio:.1f} times an empty Function; {check}"
    overhead = Times(
        percentile(rounds_of_it, 0.5),
        percentile(rounds_of_it, 0.95),
        0.0,
        rounds_of_it,
        bridge.faults - pure.faults,
        bridge.peak_mib,
    )
    yield row("bridges", name, "overhead (bridge - pure)", overhead, unit="call", size=ROWS, calls=100,
              against=("empty torch Function", empty), check=check)  # fmt: skip


def growth_mib(function: Callable[[], object]) -> float:
    """MiB by which memory grew over CALLS calls; NaN where the system does not say."""
    return memory_growth(function, CALLS) / 2**20 if sys.platform.startswith("linux") else math.nan


def measure_jax_bridge(x: torch.Tensor, options: Options) -> Iterator[Row]:
    """tanh(sin(x) * x) through the bridge, in JAX alone, and through a bridge without jit."""
    jax = load_jax()

    def f(x: Any) -> Any:
        return jax.numpy.tanh(jax.numpy.sin(x) * x)

    op = from_jax(f, name="f")
    jitted = jax.jit(f)
    pull_back = jax.jit(lambda x, ct: jax.vjp(f, x)[1](ct)[0])
    array = jax.dlpack.from_dlpack(x)
    ones = jax.numpy.ones_like(array)

    class Unjitted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            y, ctx.pull_back = jax.vjp(f, jax.dlpack.from_dlpack(x.detach()))
            return torch.from_dlpack(y)

        @staticmethod
        def backward(ctx: Any, *cotangents: torch.Tensor) -> torch.Tensor:
            (gradient,) = ctx.pull_back(jax.dlpack.from_dlpack(cotangents[0].contiguous()))
            return torch.from_dlpack(gradient)

    functions: dict[str, Callable[[], object]] = {
        "pure, forward": lambda: jitted(array).block_until_ready(),
        "pure, forward + backward": lambda: (jitted(array), pull_back(array, ones).block_until_ready()),
        "bridge, forward": lambda: op(x),
        "bridge, forward + backward": forward_backward(op, x),
        "un-jitted jax.vjp bridge": forward_backward(lambda x: Unjitted.apply(x), x),
        "empty torch Function": forward_backward(lambda x: Empty.apply(x), x),
    }
    leaf = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(torch.tanh(leaf.sin() * leaf).sum(), leaf)
    error = float((functions["bridge, forward + backward"]() - expected).abs().max())  # type: ignore[operator]
    if not error < 1e-5:
        raise Failed(f"the gradient of the JAX bridge is off by {error:.1e}")
    compilations: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: compilations.append(event) if "backend_compile" in event else None
    )
    grown = growth_mib(functions["bridge, forward + backward"])
    if compilations or grown > LEAK_MIB:
        raise Failed(f"the JAX bridge compiled {len(compilations)} times and grew by {grown:.1f} MiB in {CALLS} calls")
    check = f"gradient {error:.0e}; {grown:+.1f} MiB and no compilation in {CALLS} calls"
    yield from bridge_rows("JAX", functions, options, x.device, check)


def measure_warp_bridge(x: torch.Tensor, options: Options) -> Iterator[Row]:
    """sin(x) through the bridge, and its two kernels launched alone."""
    wp = load_warp()

    @kernel
    def forward(x: wp.array2d(dtype=float), y: wp.array2d(dtype=float)):  # type: ignore[valid-type]
        i = wp.tid()
        for j in range(x.shape[1]):
            y[i, j] = wp.sin(x[i, j])

    @kernel
    def adjoint(x: wp.array2d(dtype=float), ct: wp.array2d(dtype=float), g: wp.array2d(dtype=float)):  # type: ignore[valid-type]
        i = wp.tid()
        for j in range(x.shape[1]):
            g[i, j] = ct[i, j] * wp.cos(x[i, j])

    op = from_warp(forward, adjoint, dtype=torch.float32, output_dim=COLUMNS)
    output, ones, gradient = torch.empty_like(x), torch.ones_like(x), torch.empty_like(x)
    arrays = [wp.from_torch(t) for t in (x, output, ones, gradient)]
    device = wp.device_from_torch(x.device)

    def pure_forward() -> None:
        wp.launch(forward, dim=ROWS, inputs=arrays[:2], device=device)

    def pure_both() -> None:
        pure_forward()
        wp.launch(adjoint, dim=ROWS, inputs=[arrays[0], *arrays[2:]], device=device)

    functions: dict[str, Callable[[], object]] = {
        "pure, forward": pure_forward,
        "pure, forward + backward": pure_both,
        "bridge, forward": lambda: op(x),
        "bridge, forward + backward": forward_backward(op, x),
        "empty torch Function": forward_backward(lambda x: Empty.apply(x), x),
    }
    error = float((forward_backward(op, x)() - x.cos()).abs().max())
    if not error < 1e-5:
        raise Failed(f"the gradient of the Warp bridge is off by {error:.1e}")
    grown = growth_mib(functions["bridge, forward + backward"])
    if grown > LEAK_MIB:
        raise Failed(f"the Warp bridge grew by {grown:.1f} MiB in {CALLS} calls")
    check = f"gradient {error:.0e}; {grown:+.1f} MiB in {CALLS} calls"
    yield from bridge_rows("Warp", functions, options, x.device, check)


# --- physics and oracles ---------------------------------------------------------------------------------------------


def left_out(task: str, backend: str, error: Exception, console: Console) -> None:
    """Say why a backend is not measured."""
    console.print(f"{task}, {backend} is left out: {error}", highlight=False, markup=False)


def sources_of(task: str, options: Options, console: Console) -> Iterator[tuple[str, str, str]]:
    """(backend, derivative source, residual policy) of all that is chosen and offered for a task."""
    for backend in backends_of(make_task(task)):
        if backend not in (options.backends or BACKENDS):
            continue
        try:
            kind = load(BACKENDS[backend])
            sources = kind.derivatives_of(make_task(task))
        except MissingExtra as error:
            left_out(task, backend, error, console)
            continue
        for derivative, residuals in itertools.product(sources, kind.residual_policies):
            if residuals == "recompute" or derivative == sources[0]:  # what goes by columns keeps nothing
                yield backend, derivative, residuals


def measure_physics(options: Options, console: Console) -> Iterator[Row]:
    """One step of N visited states on every source, in turns: alone, with the pull-back to the action, with the whole
    action-Jacobian (by as many pull-backs as the state has components)."""
    device = torch_device(options.device)
    for task in options.task_names():
        sources: dict[str, tuple[Physics, float]] = {}
        for backend, derivative, residuals in sources_of(task, options, console):
            for dtype in options.dtypes:
                settings: dict[str, Any] = dict(derivative=derivative, residuals=residuals, device=device)
                start = time.perf_counter()
                try:
                    physics = make_physics(make_task(task), backend, dtype=getattr(torch, dtype), **settings)
                except (InputError, MissingExtra) as error:
                    left_out(task, backend, error, console)
                    continue
                sources[f"{name_of(physics)} {dtype}"] = physics, time.perf_counter() - start
        for n in options.batch_sizes():
            yield from measure_sources(options, task, sources, n)


def name_of(physics: Physics) -> str:
    """Backend, derivative source and, if it is not the default, residual policy."""
    return f"{physics.backend} {physics.derivative}" + (" keep" if physics.residuals == "keep" else "")


def visited(task: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States after up to 40 random actions, and further actions, in float64: some touch, some fly."""
    physics = make_physics(make_task(task), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    state, rows = physics.task.reset(n, generator).double(), torch.arange(n)
    found = state.clone()
    for t in range(40):
        action = 2.0 * torch.rand(n, physics.task.action_dim, dtype=torch.float64, generator=generator) - 1.0
        state = physics.step(state, action)
        found = torch.where((rows % 40 == t)[:, None], state, found)
    return found, action


def measure_sources(options: Options, task: str, sources: Mapping[str, tuple[Physics, float]], n: int) -> Iterator[Row]:
    """All sources at one size, compared with the first. Making a physics counts as its first call."""
    states, actions = visited(task, n)
    functions: dict[str, Callable[[], torch.Tensor]] = {}
    for name, (physics, _) in sources.items():
        state = states.to(physics.device, physics.dtype)
        action = actions.to(state)

        def forward(physics=physics, state=state, action=action) -> torch.Tensor:
            with torch.no_grad():
                return physics.step(state, action)

        def pull_back(physics=physics, state=state, action=action) -> torch.Tensor:
            leaf = action.clone().requires_grad_()
            return torch.autograd.grad(physics.step(state, leaf).sum(), leaf)[0]

        def jacobian(physics=physics, state=state, action=action) -> torch.Tensor:
            return jacobian_of(lambda a: physics.step(state, a), action)

        functions |= {f"{name}: forward": forward, f"{name}: VJP": pull_back}
        if options.jacobians:
            functions[f"{name}: action-Jacobian"] = jacobian
    found = interleaved(functions, options.rounds(task), torch_device(options.device))
    first = next(iter(sources), "")
    for key, times in found.items():
        name, what = key.split(": ")
        value = functions[key]()
        if not value.isfinite().all():
            raise Failed(f"{task} {key}: not finite")
        check = "finite"
        if what == "action-Jacobian":  # the pull-back of ones is its sum over outputs
            whole, pulled = value.sum(dim=1), functions[f"{name}: VJP"]()
            apart = float((whole - pulled).abs().max() / whole.abs().max().clamp(min=1e-8))
            if not apart < 1e-3:
                raise Failed(f"{task} {name}: VJP and Jacobian are {apart:.1e} apart")
            check = f"finite; VJP and Jacobian {apart:.0e} apart"
        if what == "forward":
            times = times._replace(first_s=times.first_s + sources[name][1])
        against = (first, found[f"{first}: {what}"]) if name != first else None
        yield row("physics", f"{task} {what}", name, times, unit="batch", size=n, count=n, against=against, check=check)


def measure_oracles(options: Options, console: Console) -> Iterator[Row]:
    """One MAGE-TD3 update on the learned ensemble and on every oracle, in turns, and the physics' share of it."""
    for task in options.task_names():
        trainers = {"learned": options.trainer(task)}
        for backend, derivative, residuals in sources_of(task, options, console):
            source = dict(backend=backend, derivative=derivative, residuals=residuals)
            try:
                trainer = options.trainer(task, dynamics="oracle", **source)
            except (InputError, MissingExtra) as error:
                left_out(task, backend, error, console)
                continue
            assert isinstance(trainer.agent.dynamics, OracleDynamics)
            trainers[name_of(trainer.agent.dynamics.physics)] = trainer
        functions: dict[str, Callable[[], object]] = {}
        for name, trainer in trainers.items():
            drawn = trainer.agent.draw(2, trainer.buffer.size)  # an update with the actor and one without make a pair
            functions[f"{name}: update"] = lambda t=trainer, d=drawn: t.agent.improve(t.buffer, d)
            dynamics = trainer.agent.dynamics
            if isinstance(dynamics, OracleDynamics):
                batch = trainer.buffer.gather(drawn[0].index)
                state, action = batch.state.flatten(0, 1), batch.action.flatten(0, 1).requires_grad_()

                def step_and_pull_back(physics=dynamics.physics, state=state, action=action) -> None:
                    torch.autograd.grad(physics.step(state, action).sum(), action)

                functions[f"{name}: its physics"] = step_and_pull_back
        found = interleaved(functions, options.rounds(task), torch_device(options.device))
        for name, trainer in trainers.items():
            agent = trainer.agent
            masked = int(agent.nonfinite.sum())
            if agent.restarts.any() or not agent.critic.isfinite().all() or masked:
                raise Failed(f"{task} {name}: {masked} targets are not finite, or the critic diverged")
        for key, times in found.items():
            name, what = key.split(": ")
            against = ("learned", found["learned: update"]) if what == "update" and name != "learned" else None
            calls = 2 if what == "update" else 1
            yield row("oracles", f"{task} {what}", name, times, unit=what.split()[-1], against=against, calls=calls,
                      size=trainers[name].hyper.batch_size, check="all finite")  # fmt: skip


# --- reporting -------------------------------------------------------------------------------------------------------

HEADER = (
    "what",
    "how",
    "R",
    "size",
    "ms",
    "p95",
    "per s",
    "speed-up",
    "against",
    "first s",
    "faults",
    "peak MiB",
    "checked",
)


class Part(NamedTuple):
    """One section's table."""

    title: str
    rows: list[list[str]]


def part_of(section: str, rows: Sequence[Row]) -> Part:
    """The section's rows as text."""

    def number(x: float) -> str:
        return "-" if math.isnan(x) else f"{x:.3g}" if abs(x) < 1e4 else f"{x:,.0f}"

    cells = [
        [r.subject, r.variant, str(r.runs), str(r.size), *map(number, (r.median_ms, r.p95_ms, r.per_s, r.ratio)),
         r.against, *map(number, (r.first_s, r.faults, r.peak_mib)), r.check]
        for r in rows
    ]  # fmt: skip
    units = " or ".join(dict.fromkeys(r.unit for r in rows))
    return Part(f"{section}: ms per {units}", cells)


def draw(path: Path, section: str, rows: Sequence[Row]) -> None:
    """Rate over size where a section sweeps sizes, else one bar of median time (whisker: p95) per row.

    Raises:
        InputError: the file cannot be written.
    """
    sweeps = section in ("physics", "env") and len({r.size for r in rows if r.unit != "evaluation"}) > 1

    def paint(page: Any) -> None:
        axis = page.subplots()
        if sweeps:
            lines: dict[str, list[Row]] = {}
            for r in rows:
                if r.unit != "evaluation":
                    lines.setdefault(f"{r.subject}, {r.variant}", []).append(r)
            for i, (name, points) in enumerate(lines.items()):
                look = dict(color=PALETTE[i % len(PALETTE)], linestyle=DASHES[i // len(PALETTE) % len(DASHES)])
                sizes, rates = [r.size for r in points], [r.per_s for r in points]
                axis.plot(sizes, rates, marker="o", markersize=3, label=name, **look)
            axis.set(xscale="log", yscale="log", xlabel="states side by side", ylabel="environment steps per second")
            axis.legend(fontsize="x-small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            names = [f"{r.subject}, {r.variant}" + (f", R={r.runs}" if r.runs > 1 else "") for r in rows]
            times = [max(r.median_ms, 1e-6) for r in rows]
            axis.barh(range(len(rows)), times, color=PALETTE[0])
            late = [max(r.p95_ms - r.median_ms, 0.0) if not math.isnan(r.p95_ms) else 0.0 for r in rows]
            ends = [[0.0] * len(rows), late]
            axis.errorbar(times, range(len(rows)), xerr=ends, fmt="none", color="black", linewidth=0.8)
            axis.set_yticks(range(len(rows)), names, fontsize="x-small")
            axis.set(xscale="log", xlabel="ms (median; whisker: 95th percentile)")
            axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.25)
        axis.set_title(section)

    write_figure(path, 9.0, 5.0 if sweeps else 1.2 + 0.28 * len(rows), paint)


def measure(options: Options, console: Console) -> Iterator[tuple[str, list[Row]]]:
    """Every chosen section's name and rows, in the order of :data:`Section`."""
    measures: dict[str, Callable[[], Iterator[Row]]] = {
        "learner": lambda: measure_learner(options),
        "model": lambda: measure_model(options),
        "loop": lambda: measure_loop(options),
        "runs": lambda: measure_runs(options),
        "env": lambda: measure_env(options),
        "bridges": lambda: measure_bridges(options),
        "physics": lambda: measure_physics(options, console),
        "oracles": lambda: measure_oracles(options, console),
    }
    for section in (s for s in measures if s in options.sections):
        console.print(f"{section} ...", highlight=False)
        rows = list(measures[section]())
        if rows:
            yield section, rows


def main(options: Options) -> None:
    """Measure, print and write."""
    options.check()
    make_folder(options.folder)
    for left in ("throughput.csv", "summary.md"):
        (options.folder / left).unlink(missing_ok=True)  # another measurement's must not pass for this one's
    for task in options.task_names():
        make_config(task, preset=options.preset)  # refuses what is unknown before anything is measured
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    console = Console()
    found = versions()
    device = torch_device(options.device)
    hardware = found["cpu"] if device.type == "cpu" else torch.cuda.get_device_name(device)
    facts = {"hardware": hardware, "torch threads": threads, "preset": options.preset}
    facts["freed memory"] = "kept" if keep_freed_memory() else "as the C library does by default"
    console.print(", ".join(f"{k} {v}" for k, v in facts.items()), f"torch {found['torch']}", highlight=False)
    every: list[Row] = []
    lines = ["# Throughput", "", f"{hardware}, {threads} torch threads, preset {options.preset}", ""]
    for section, rows in measure(options, console):
        every += rows
        part = part_of(section, rows)
        console.print(rich_table(console, part.title, HEADER, part.rows))
        lines += [f"## {part.title}", "", markdown_table(HEADER, part.rows)]
        with failures_kept() as undrawn:
            draw(options.folder / f"{section}.png", section, rows)
        for sentence in not_drawn(undrawn):
            console.print(sentence, highlight=False)
            lines += [sentence, ""]
        write_csv(options.folder / "throughput.csv", FIELDS, [vars(r) for r in every])
        write_atomically(options.folder / "summary.md", "\n".join([*lines, *provenance(facts)]) + "\n")
    if not every:
        raise InputError("nothing was measured: none of the chosen tasks has one of the chosen backends here")
    if options.json is not None:
        rows_of_json = [{k: None if v != v else v for k, v in vars(r).items()} for r in every]
        content = {"versions": found, **facts, "rows": rows_of_json}
        write_atomically(options.json, json.dumps(content, indent=1) + "\n")
    console.print(f"Written to {options.folder}", highlight=False)


if __name__ == "__main__":
    try:
        with show_log(lambda text: print(text, file=sys.stderr, flush=True)):
            main(tyro.cli(Options, description=__doc__))
    except (InputError, MissingExtra, Failed) as error:
        print(f"throughput.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("throughput.py: interrupted", file=sys.stderr)
        sys.exit(130)
