"""Out of GPU memory: how many runs fit is measured, and said in one sentence."""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from mage_diffsim.config import TrainConfig
from mage_diffsim.devices import device_text, torch_device
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError
from mage_diffsim.training import Trainer

P = ParamSpec("P")
T = TypeVar("T")


def says_how_many_runs_fit(
    config_of: Callable[..., tuple[TrainConfig, Task | None]],
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a function that trains: where the device has too little memory, it raises an InputError instead.

    Args:
        config_of: the configuration and the task object, of the function's own arguments.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except RuntimeError as error:
                config, task = config_of(*args, **kwargs)
                if not _lacks_memory(error) or not on_gpu(config):
                    raise
            # Here the error is gone, and with it the frames that held the training's tensors.
            raise _too_many_runs(config, task)

        return wrapped

    return decorate


def on_gpu(config: TrainConfig) -> bool:
    """Whether it trains in the memory of a GPU, which alone tells how much of it is free."""
    return torch_device(config.device).type == "cuda"


def _lacks_memory(error: RuntimeError) -> bool:
    """Whether torch, XLA, Warp or CUDA itself found no memory on the device."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def _too_many_runs(config: TrainConfig, task: Task | None) -> InputError:
    asked = len(config.runs)
    _collect()
    free = _free(config)
    fitting = min(_fitting_runs(config, task, free), asked - 1)
    _collect()
    where = f"the {free / 2**30:.1f} GiB that are free on {device_text(config.device)}"
    if fitting < 1:
        return InputError(f"not even one run fits into {where}: give fewer steps, or a smaller batch_size or ensemble")
    return InputError(
        f"{asked} runs (seeds x lambdas) were asked for, and {fitting} fit into {where}: give fewer --seeds, and the "
        "others to another training"
    )


def _fitting_runs(config: TrainConfig, task: Task | None, free: int) -> int:
    """How many runs fit into ``free`` bytes, from what trainings of one and of two runs take."""
    taken: list[int] = []
    for runs in (1, 2):
        try:
            _collect()
            taken.append(_free(config) - _free_beside(config, task, runs))
        except RuntimeError as error:
            if not _lacks_memory(error):
                raise
            return runs - 1
    return 1 + (free - taken[0]) // max(taken[1] - taken[0], 1)


def _free_beside(config: TrainConfig, task: Task | None, runs: int) -> int:
    """Bytes that are free beside a training of so many runs, after steps with updates and model training."""
    hyper = dataclasses.replace(config.hyper, warmup_steps=1, model_every=1, model_batches=2)
    seeds, lambdas = tuple(range(runs)), config.lambdas[:1]
    trainer = Trainer(dataclasses.replace(config, seeds=seeds, lambdas=lambdas, hyper=hyper, compile="off"), task)
    for _ in range(min(3, config.steps)):
        trainer.step()
    return _free(config)


def _free(config: TrainConfig) -> int:
    """Bytes that are free on the device."""
    return torch.cuda.mem_get_info(torch_device(config.device))[0]


def _collect() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()
