"""Section steps: how long does an environment step of R runs take, and what of it?"""

from __future__ import annotations

import gc
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from rich.console import Console

from mage_diffsim.devices import torch_device, wait_for
from mage_diffsim.envs.physics import backends_of
from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import reason_of
from mage_diffsim.experiments.timing import Times, percentile
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from throughput_sections.options import Options
from throughput_sections.products import products_of
from throughput_sections.rows import Failed, Row, row

COMPILED_SHARE = 0.6
"""Part of the section's time after which no case that compiles begins."""
CYCLES = 3
"""Cycles of environment steps that are measured before the updates begin, and at least after that."""


class Case(NamedTuple):
    """What is trained, how, and how many times side by side."""

    task: str
    dynamics: str
    """learned, or the backend of the oracle."""
    form: str
    """eager, captured, compiled, or compiled + captured."""
    precision: str
    """Of the matrix products: float32 or TF32."""
    runs: int

    @property
    def subject(self) -> str:
        """Task and dynamics."""
        return f"{self.task} {self.dynamics}" + ("" if self.dynamics == "learned" else " oracle")

    @property
    def variant(self) -> str:
        """Form and precision."""
        return f"{self.form}, {self.precision}"

    def __str__(self) -> str:
        return f"{self.subject} {self.variant} R={self.runs}"

    @property
    def compiles(self) -> bool:
        """Whether torch.compile takes part."""
        return self.form.startswith("compiled")

    def settings(self) -> dict[str, Any]:
        """Fields of TrainConfig."""
        captured = "on" if self.form.endswith("captured") else "off"
        found = dict(compile="on" if self.compiles else "off", graphs=captured, seeds=tuple(range(self.runs)))
        found["matmul"] = "high" if self.precision == "TF32" else "highest"
        return found | ({} if self.dynamics == "learned" else dict(dynamics="oracle", backend=self.dynamics))


def measure_steps(options: Options, console: Console) -> Iterator[Row]:
    """Times whole environment steps by the trainer's own step, in cycles that end with a model training.

    An update is what a step takes beyond one before the updates begin, by the number of updates. A model batch is what
    a step with a model training takes beyond one without, by the number of batches.

    Raises:
        Failed: a case could not be trained, or a run of it diverged; the others are measured.
    """
    works: dict[str, tuple[float, float]] = {}
    projected: set[str] = set()
    skipped: list[Case] = []
    failed: list[Case] = []
    for case in cases_of(options):
        if options.used_up(COMPILED_SHARE if case.compiles else 1.0):
            skipped.append(case)
            continue
        try:
            if case.subject not in works:
                works[case.subject] = work_of_update(options, case)
            for r in measure_case(options, case, works[case.subject], project=case.subject not in projected):
                if r.unit == "training":
                    projected.add(case.subject)
                yield r
        except Exception as error:
            failed.append(case)
            console.print(f"{case} failed ({type(error).__name__}): {reason_of(error)}", highlight=False, markup=False)
            logging.getLogger("mage_diffsim").debug("case %s", case, exc_info=True)
    if skipped:
        console.print(f"left out for want of time: {'; '.join(map(str, skipped))}", highlight=False)
    if failed:
        raise Failed(f"{len(failed)} cases, the first {failed[0]}")


def cases_of(options: Options) -> list[Case]:
    """Returns what is measured. With little time the first ones count most."""
    cuda = options.on_a_gpu
    by_size = sorted(options.task_names(), key=lambda name: make_task(name).network_size != "full")
    fused, plain = ("compiled + captured", "captured") if cuda else ("compiled", "eager")
    fast = "TF32" if cuda else "float32"
    fusing: list[Case] = []
    simple: list[Case] = []
    eager: list[Case] = []
    for name in by_size:
        alone, *several = options.run_counts(name)
        usual = (several or [alone])[0]
        sources = ["learned", *[b for b in ("warp", "torch") if b in backends_of(make_task(name))][:1]]
        fusing += [Case(name, source, fused, fast, usual) for source in sources]
        fusing += [Case(name, "learned", fused, fast, alone), Case(name, "learned", fused, "float32", usual)]
        simple += [Case(name, "learned", plain, "float32", runs) for runs in (alone, *several)]
        simple += [Case(name, "learned", plain, fast, usual)]
        simple += [Case(name, source, plain, "float32", usual) for source in sources[1:]]
        if cuda:
            eager += [Case(name, "learned", "eager", precision, alone) for precision in ("float32", fast)]
    compiles = options.compile and (cuda or not options.quick)
    return list(dict.fromkeys([*(fusing if compiles else ()), *simple, *eager]))  # on a CPU some are the same


def work_of_update(options: Options, case: Case) -> tuple[float, float]:
    """Returns the GFLOP and GB of one run's matrix products in an update, counted from an eager step."""
    trainer = make_trainer(options, case._replace(form="eager", precision="float32", runs=1), period=4, steps=4)
    for _ in range(2):
        trainer.step()
    products = products_of(trainer.step)
    updates = trainer.config.updates_per_step
    return sum(p.flop for p in products) / updates / 1e9, sum(p.bytes for p in products) / updates / 1e9


def make_trainer(options: Options, case: Case, period: int, steps: int, **hyper: Any) -> Trainer:
    """Returns a trainer of the case at the preset's sizes that trains its models every ``period`` steps."""
    warm_up = {"warmup_steps": 1} | hyper | {"model_every": period}
    settings: dict[str, Any] = dict(preset=options.preset, device=options.device, steps=steps, hyper=warm_up)
    return Trainer(make_config(case.task, shared=settings | case.settings()))


def measure_case(options: Options, case: Case, work: tuple[float, float], *, project: bool) -> Iterator[Row]:
    """Times one case; ``project`` includes the evaluation and the time of a whole training, of several runs.

    On a CPU a step does fewer updates and a model training fewer batches. The times of steps and trainings are those of
    the preset's numbers.

    Raises:
        Failed: a run diverged or is not finite.
    """
    device, rounds = torch_device(options.device), options.rounds(case.task)
    hyper = make_config(case.task, preset=options.preset).hyper
    period = 20 if options.on_a_gpu else 4
    fewer = {} if options.on_a_gpu else {"model_batches": 4, "updates_per_step": 2}
    warm_up = (1 + CYCLES) * period
    gc.collect()
    held = reserved(device, start=True)
    trainer = make_trainer(options, case, period, warm_up + (1 + rounds) * period, warmup_steps=warm_up + 1, **fewer)

    def cycles(least: int, most: int) -> tuple[list[float], list[float], float]:
        """Seconds of a plain step and of one with model training, per cycle, and what the first cycle took beyond."""
        plain, trained = [], []
        for done in range(1 + most):
            if done > least and options.used_up():
                break
            plain.append(seconds(trainer.step, device, period - 1) / (period - 1))
            trained.append(seconds(trainer.step, device))
        first = (period - 1) * (plain[0] - plain[1]) + trained[0] - trained[1]
        return plain[1:], trained[1:], max(first, 0.0)

    collection, _, _ = cycles(CYCLES, CYCLES)
    plain, trained, first = cycles(CYCLES, rounds)
    agent, updates = trainer.agent, trainer.config.updates_per_step
    if agent.restarts.any() or not (agent.critic.isfinite().all() and agent.actor.isfinite().all()):
        raise Failed("a critic diverged or is not finite")
    peak = (reserved(device) - held) / 2**20 if device.type == "cuda" else math.nan
    collect = statistics.median(collection)
    update = [(x - collect) / updates for x in plain]
    step = [collect + hyper.updates_per_step * x for x in update]
    batch = [(y - x) / trainer.hyper.model_batches for x, y in zip(plain, trained, strict=True)]
    shared: dict[str, Any] = dict(runs=case.runs, size=trainer.hyper.batch_size, count=case.runs)

    def rows(what: str, unit: str, values: Sequence[float], **more: Any) -> Row:
        times = times_of(values, peak, first if unit == "step" else 0.0)
        return row("steps", f"{case.subject} {what}", case.variant, times, unit=unit, **(shared | more))

    median = statistics.median(update)
    speed = dict(tflop_s=1e-3 * case.runs * work[0] / median, gb_s=case.runs * work[1] / median)
    check = f"{work[0]:.3g} GFLOP and {work[1]:.3g} GB of products per run"
    yield rows("update", "update", update, check=check, **speed)
    if trainer.ensemble is not None:
        yield rows("model batch", "batch", batch, size=trainer.hyper.model_batch_size)
    yield rows("collection", "step", collection, size=1)
    done = f"{hyper.updates_per_step} updates" + ("" if updates == hyper.updates_per_step else f", from {updates}")
    yield rows("step", "step", step, size=1, check=done)
    batches = hyper.model_batches / hyper.model_every if trainer.ensemble is not None else 0.0
    share = [x + batches * b for x, b in zip(step, batch, strict=True)]
    yield rows("step with models", "step", share, size=1, check=f"{done}; {batches:.3g} model batches")
    if project and case.runs > 1 and not options.used_up():
        _, evaluation = (seconds(trainer.evaluate, device) for _ in range(2))
        yield rows("evaluation", "evaluation", [evaluation], size=trainer.config.eval_episodes)
        whole = STEPS * statistics.median(share) + STEPS / EVAL_EVERY * evaluation
        yield rows("projected training", "training", [whole], size=STEPS, check=f"{whole / 3600:.2f} h")


STEPS, EVAL_EVERY = 100_000, 1000
"""Environment steps of the paper's trainings, and between two evaluations [D.2]."""


def seconds(function: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Returns the time of so many calls."""
    wait_for(device)
    began = time.perf_counter()
    for _ in range(times):
        function()
    wait_for(device)
    return time.perf_counter() - began


def reserved(device: torch.device, *, start: bool = False) -> int:
    """Returns the most bytes that torch has held on a CUDA device since the last ``start``; CUDA graphs count."""
    if device.type != "cuda":
        return 0
    if start:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_reserved(device)


def times_of(values: Sequence[float], peak_mib: float, first_s: float) -> Times:
    """Returns times that were measured one by one."""
    return Times(percentile(values, 0.5), percentile(values, 0.95), first_s, tuple(values), math.nan, peak_mib)
