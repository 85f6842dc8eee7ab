"""Too many runs for a GPU's memory: the number that fits is measured and named. The GPU is made up."""

from __future__ import annotations

import weakref

import pytest
import torch

from mage_diffsim import device_memory
from mage_diffsim.errors import InputError
from mage_diffsim.session import resume, train
from mage_diffsim.training import Trainer
from tests.learner.short_task import Short, settings

GIB = 2**30


class Card:
    """A GPU that tells how much of its memory trainings leave free, and runs out of it."""

    def __init__(self, monkeypatch, free: float, fixed: float, per_run: float, error=torch.OutOfMemoryError) -> None:
        self.free, self.fixed, self.per_run, self.error = free, fixed, per_run, error
        self.trainers: list[weakref.ref[Trainer]] = []
        step = Trainer.step

        def limited(trainer: Trainer) -> None:
            if trainer not in [ref() for ref in self.trainers]:
                self.trainers.append(weakref.ref(trainer))
            if self._left() < 0:
                raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB.")
            step(trainer)

        monkeypatch.setattr(Trainer, "step", limited)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(self._left() * GIB), 80 * GIB))
        monkeypatch.setattr(device_memory, "on_gpu", lambda config: True)

    def _left(self) -> float:
        alive = [trainer for ref in self.trainers if (trainer := ref()) is not None]
        return self.free - sum(self.fixed + self.per_run * len(trainer.config.runs) for trainer in alive)


def test_the_number_of_runs_that_fit_is_named(tmp_path, monkeypatch):
    Card(monkeypatch, free=20.0, fixed=1.0, per_run=2.0)
    message = r"12 runs \(seeds x lambdas\) were asked for, and 9 fit into the 20.0 GiB that are free on cpu: give few"
    with pytest.raises(InputError, match=message):
        train(settings("Pendulum", seeds=tuple(range(6)), lambdas=(0.2, 0.5)), tmp_path / "run")
    train(settings("Pendulum", seeds=tuple(range(9))), tmp_path / "fits")


def test_a_task_object_is_measured_itself(tmp_path, monkeypatch):
    Card(monkeypatch, free=20.0, fixed=1.0, per_run=8.0)
    task = Short()
    with pytest.raises(InputError, match=r"3 runs .* 2 fit"):
        train(settings(task, seeds=(0, 1, 2)), tmp_path / "run", task=task)


def test_not_even_one_run(tmp_path, monkeypatch):
    Card(monkeypatch, free=4.0, fixed=3.0, per_run=2.0)
    for runs in (1, 3):
        with pytest.raises(InputError, match=r"not even one run fits into the 4.0 GiB that are free on cpu: give"):
            train(settings("Pendulum", seeds=tuple(range(runs))), tmp_path / str(runs))


def test_an_estimate_is_below_what_did_not_fit(tmp_path, monkeypatch):
    """Memory that is in pieces, or that an evaluation takes."""
    Card(monkeypatch, free=20.0, fixed=1.0, per_run=2.0)
    monkeypatch.setattr(device_memory, "_fitting_runs", lambda *_: 50)
    with pytest.raises(InputError, match=r"12 runs .* 11 fit"):
        train(settings("Pendulum", seeds=tuple(range(12))), tmp_path / "run")


def test_a_resumed_run_is_told_so_too(tmp_path, monkeypatch):
    config = settings("Pendulum", seeds=(0, 1, 2), steps=4)
    train(config, tmp_path / "run")
    Card(monkeypatch, free=6.0, fixed=1.0, per_run=2.0)
    with pytest.raises(InputError, match=r"3 runs .* 2 fit"):
        resume(tmp_path / "run", steps=6)


def test_a_resumed_run_is_measured_on_the_device_that_is_given(tmp_path, monkeypatch):
    train(settings("Pendulum", seeds=(0, 1, 2), steps=4), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda:99"'))
    Card(monkeypatch, free=6.0, fixed=1.0, per_run=2.0)
    with pytest.raises(InputError, match=r"3 runs .* 2 fit into the 6.0 GiB that are free on cpu: give"):
        resume(tmp_path / "run", steps=6, device="cpu")


def test_a_training_on_a_cpu_ends_with_the_error_itself(tmp_path, monkeypatch):
    def step(trainer):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        train(settings("Pendulum"), tmp_path / "run")


@pytest.mark.parametrize("text", ["CUDA error: out of memory", "RESOURCE_EXHAUSTED: Out of memory while trying to"])
def test_other_libraries_run_out_of_memory_too(tmp_path, monkeypatch, text):
    Card(monkeypatch, free=6.0, fixed=1.0, per_run=2.0, error=lambda _: RuntimeError(text))
    with pytest.raises(InputError, match=r"3 runs .* 2 fit"):
        train(settings("Pendulum", seeds=(0, 1, 2)), tmp_path / "run")


def test_other_errors_pass(tmp_path, monkeypatch):
    Card(monkeypatch, free=2.0, fixed=1.0, per_run=2.0, error=lambda _: RuntimeError("a kernel failed"))
    with pytest.raises(RuntimeError, match="a kernel failed"):
        train(settings("Pendulum", seeds=(0, 1)), tmp_path / "run")
