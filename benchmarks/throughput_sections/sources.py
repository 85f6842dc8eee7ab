"""The physics backends and derivative sources that sections physics and oracles measure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rich.console import Console

from mage_diffsim.envs.physics import BACKENDS, Physics, backends_of, load
from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import MissingExtra
from throughput_sections.options import Options


def left_out(task: str, backend: str, error: Exception, console: Console) -> None:
    """Says why a backend is not measured."""
    console.print(f"{task}, {backend} is left out: {error}", highlight=False, markup=False)


def sources_of(task: str, options: Options, console: Console) -> Iterator[tuple[str, str, str]]:
    """Yields (backend, derivative source, residual policy) for all that the flags choose and the task has."""
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
            if residuals == "recompute" or derivative != "fd":  # differences keep nothing
                yield backend, derivative, residuals


def name_of(physics: Physics) -> str:
    """Returns the backend, the derivative source and, if it is not the default, the residual policy."""
    return f"{physics.backend} {physics.derivative}" + (" keep" if physics.residuals == "keep" else "")
