"""Makes a :class:`.config.TrainConfig` of what a caller gives."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict, Unpack

from mage_diffsim.config import (
    CudaGraphs,
    DynamicsName,
    Matmul,
    OnOff,
    RewardName,
    TrainConfig,
    refuse_unknown,
    typed,
    with_tuples,
)
from mage_diffsim.effects import LABELS, MISLEADING, require_effect
from mage_diffsim.envs.definition import require_task
from mage_diffsim.envs.identity.options import options_of, plain
from mage_diffsim.envs.identity.reference import absolute, reference_of
from mage_diffsim.envs.identity.reproducible import require_reproducible
from mage_diffsim.envs.physics import Residuals, Solver, backends_of
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError, require_kind
from mage_diffsim.hyper import EnsembleName, Hyper, HyperSettings, Preset
from mage_diffsim.methods import CriticLoss, MethodName
from mage_diffsim.validation import validate


class Settings(TypedDict, total=False):
    """What :func:`make_config` takes beside the task: the other fields of :class:`TrainConfig`."""

    task_options: dict[str, Any]
    method: MethodName
    dynamics: DynamicsName
    backend: str | None
    derivative: str | None
    residuals: Residuals
    environment: str | None
    solver: Solver
    reward: RewardName
    loss: CriticLoss | None
    preset: Preset
    ensemble: EnsembleName
    seeds: tuple[int, ...]
    lambdas: tuple[float, ...]
    steps: int
    eval_every: int
    eval_episodes: int
    gradient_episodes: int
    gradient_horizon: int
    freeze_actor: bool
    checkpoint_every: int
    device: str
    float64: bool
    compile: OnOff
    graphs: CudaGraphs
    matmul: Matmul
    hyper: Hyper | HyperSettings


def make_config(
    task: str | Task = "Pendulum", *, shared: Mapping[str, Any] | None = None, **settings: Unpack[Settings]
) -> TrainConfig:
    """A :class:`TrainConfig` whose hyper-parameters come from its preset, task and ensemble.

    Args:
        task: a task's name, or the object itself, whose options are recorded.
        shared: settings of a whole sweep, which may have no effect in this one of its configurations; those in
            ``settings`` stand before them.
        **settings: other fields of :class:`TrainConfig`; ``hyper`` may be a dict of single overrides.

    Raises:
        InputError: an unknown task, preset, method, dynamics, loss, ensemble or setting, a value out of range, one that
            has no effect beside the others (:data:`.effects.USES`), or a task object that cannot be made again.
    """
    require_kind("task", task, str | Task, "a task's name, or a task object, as make_task gives it")
    if isinstance(task, Task):
        require_task(task)
    given = [name for name, value in settings.items() if value is not None]
    given += hyper if isinstance(hyper := settings.get("hyper"), Mapping) else []
    values: dict[str, Any] = {**(shared or {}), **settings}
    overrides = values.pop("hyper", {})
    refuse_unknown(values, TrainConfig)
    if not isinstance(overrides, Mapping | Hyper):
        raise InputError(f"hyper is {overrides!r}; accepted is a dict from hyper-parameters to values, or a Hyper")
    if isinstance(overrides, Mapping):
        refuse_unknown(overrides, Hyper)
    try:
        options = values["task_options"] = plain(values.get("task_options", {}))
    except TypeError as error:
        raise InputError(f"task_options cannot be recorded with a run: {error}") from error
    if not isinstance(options, dict):
        raise InputError(f"task_options is {options!r}; accepted is a dict from names to values")
    if isinstance(task, str):
        name, made = absolute(task), make_task(task, **options)
        values["task_options"] = options_of(made)  # without those that are the default anyway
    else:
        name, made = reference_of(type(task)), task
        values["task_options"] = recorded_options(task, options)
    try:
        config = TrainConfig(task=name, **typed(with_tuples(values), TrainConfig()))
        if isinstance(overrides, Mapping):
            overrides = typed(with_tuples(dict(overrides)), Hyper())
    except TypeError as error:
        raise InputError(f"the settings are not a training's: {error}") from error
    hyper = Hyper.preset(config.preset, made.network_size, config.ensemble)
    if isinstance(overrides, Hyper):
        hyper = overrides
    elif overrides:
        hyper = replace(hyper, **overrides)
    config = replace(config, hyper=hyper, backend=config.backend or backends_of(made)[0])
    validate(config)
    for unused, reason in require_effect(config, given, MISLEADING - LABELS).items():
        _warn_once(f"{unused} was given and has no effect, as {reason}")
    return config


def recorded_options(task: Task, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a task object was made with, which a configuration's own ``options`` must not contradict.

    Raises:
        InputError: they do; or its options do not make the task again (see :func:`.require_reproducible`).
    """
    require_reproducible(task)
    own = options_of(task)
    if options and options != own:
        try:
            same = options_of(type(task)(**options)) == own  # a default may have been spelt out
        except TypeError:
            same = False
        if not same:
            raise InputError(
                f"task_options are {options}, and the task object given beside them was made with {own or 'none'}: "
                "leave task_options out"
            )
    return own


@functools.cache
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)
