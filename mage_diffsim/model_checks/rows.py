"""The check of one model: a row per backend. Nothing that a model does to a process ends the check."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from mage_diffsim import columns
from mage_diffsim.doctor import versions
from mage_diffsim.model_checks.apart import Ended, Worker
from mage_diffsim.model_checks.coverage import CHECKED, Coverage, coverage_of, model_facts
from mage_diffsim.model_checks.facts import FIELDS as FACTS
from mage_diffsim.model_checks.finding import Model, one_line
from mage_diffsim.model_checks.measuring import Settings, measure

FIELDS = tuple(columns.MODELS)


class Looked(NamedTuple):
    """What is known of a model before anything is compiled."""

    facts: dict[str, Any]
    """See :func:`.model_facts`; empty if they could not be had."""
    coverage: dict[str, Coverage | str]
    """By backend, in the order of :data:`.coverage.CHECKED`; text says why it could not be told."""


class Limits(NamedTuple):
    """What one model may take on one backend."""

    seconds: float
    mebibytes: float


def look(model: Model, looking: Worker) -> Looked:
    """Looks at a model in a process that goes on to the next one."""

    def asked(function: Any, *arguments: Any) -> Any:
        try:
            return looking.call(function, model.path, *arguments)
        except Ended as error:
            return one_line(error, model.path)

    facts = asked(model_facts)
    if isinstance(facts, str):
        return Looked({}, dict.fromkeys(CHECKED, facts))
    return Looked(facts, {backend: asked(coverage_of, backend) for backend in CHECKED})


def rows_of(
    model: Model, looked: Looked, measured: Collection[str], settings: Settings, limits: Limits
) -> Iterator[dict[str, Any]]:
    """Yields a row per backend, by the names of :data:`FIELDS`.

    Args:
        model: the model.
        looked: what :func:`look` found.
        measured: backends that are measured if they cover the model, each in a process of its own.
        settings: how much is measured.
        limits: limits of a measurement.
    """
    blank = dict.fromkeys(FIELDS) | {"model": model.name, "commit": versions().get("commit")}
    blank |= {name: looked.facts.get(name) for name in (*FACTS, "solver_gap")}
    for backend, coverage in looked.coverage.items():
        began, row = time.perf_counter(), blank | {"backend": backend, "status": "covered"}
        if isinstance(coverage, str):
            row["status"] = f"failed: {coverage}"
        elif coverage.reason:
            row["status"] = f"refused: {coverage.reason}"
            row["in_the_way"] = "; ".join(f"{o.feature} ({o.count})" for o in coverage.obstacles)
        elif backend in measured:
            row |= {"dtype": settings.dtype, "threads": settings.threads}
            try:
                with Worker(limits.seconds, limits.mebibytes) as worker:
                    for part in worker.each(measure, model.path, backend, settings):
                        row |= part
            except Ended as error:
                row["status"] = f"failed: {one_line(error, model.path)}"
        row["seconds"] = round(time.perf_counter() - began, 1)
        yield {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def is_bad(row: Mapping[str, Any]) -> bool:
    """Whether a backend is wrong about a model that it covers, or did not get through."""
    return row["status"].startswith(("wrong", "failed"))
