"""How far are the Jacobians of every source from the truth?"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from jacobian_checks.accuracy_report import draw_errors, is_main, tables, verdict
from jacobian_checks.errors import Errors, compare, summary_rows
from jacobian_checks.learned import ask_ensemble, change_error, explained_variance, trained_ensembles
from jacobian_checks.options import DTYPES, Options
from jacobian_checks.subjects import Source, Subject, forget_models, subjects_of
from mage_diffsim.devices import torch_device
from mage_diffsim.envs.checks import error_text
from mage_diffsim.envs.differences import jacobian_of, value_error
from mage_diffsim.envs.physics import Physics, step_of
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments import timing
from mage_diffsim.experiments.figures import failures_kept, not_drawn
from mage_diffsim.experiments.summary import write_summary
from mage_diffsim.experiments.sweep_display import SweepDisplay, make_sweep_display
from mage_diffsim.experiments.tables import write_csv
from mage_diffsim.files import make_folder, write_atomically
from mage_diffsim.shapes import Bool, Float, Tensor

FIELDS = (
    *("task", "backend", "derivative", "dtype", "device", "transitions"),
    *("block", "states", "kind", "n"),
    *("error_median", "error_p90", "error_p99", "error_max"),
    *("cosine_median", "cosine_p10", "cosine_min", "nonfinite"),
    *("value_error_median", "value_error_max", "value_r2"),
    *("step_ms", "step_vjp_ms", "vjp_ratio", "compile_s", "status"),
)
"""Columns of gradient_quality.csv, one row per source, block, group of states and kind (clean or unclean).

``states`` is a group of :meth:`.Points.groups`. ``value_error`` is that of the next state, see :func:`.value_error`.
Times are of one batch of all states, see :class:`Times`. ``status`` is ok, refused or failed, with the reason.

``backend`` is ``learned`` for the ensemble. Then ``derivative`` says whether each member is a sample of its own, as in
a critic update, or their mean is taken. The Jacobian is that of the next observation by the action, ``value_error`` is
:func:`.change_error`, and ``value_r2`` is the R^2 of the change of the observation."""


class Times(NamedTuple):
    """Wall times of one batch: medians of warm repeats, and the extra time of the first calls."""

    step_ms: float
    step_vjp_ms: float
    """A step and its pull-back to the action, as in a critic update."""
    vjp_ratio: float
    compile_s: float
    """Building the physics, and first calls beyond warm ones; less where JAX has kept the compilation on disk."""


def measure_times(make: Callable[[], Physics], x: Float[Tensor, "N X"], repeats: int) -> tuple[Physics, Times]:
    """Makes a physics and times it on the points."""
    began = time.perf_counter()
    physics = make()
    built = time.perf_counter() - began
    width = physics.task.state_dim
    state, action = x[:, :width].contiguous(), x[:, width:].contiguous()

    def step() -> None:
        with torch.no_grad():
            physics.step(state, action)

    def step_vjp() -> None:
        leaf = action.clone().requires_grad_()
        torch.autograd.grad(physics.step(state, leaf).sum(), leaf)

    taken = timing.interleaved({"step": step, "step + VJP": step_vjp}, repeats, x.device)
    plain, with_vjp = taken["step"], taken["step + VJP"]
    ratio = with_vjp.median_s / plain.median_s
    compiling = built + plain.first_s + with_vjp.first_s
    return physics, Times(1e3 * plain.median_s, 1e3 * with_vjp.median_s, ratio, compiling)


def measure(subject: Subject, source: Source, repeats: int) -> dict[str, Any]:
    """Compares a physics with the truth.

    Returns:
        its ``rows``, and for the figure the ``errors`` of clean states by block.

    Raises:
        InputError, MissingExtra: the backend refuses the task, the dtype or the device.
    """
    x = subject.points.x.to(torch_device(source.device), DTYPES[source.dtype])
    physics, times = measure_times(lambda: source.make(subject.task), x, repeats)
    step = step_of(physics)
    with torch.no_grad():
        value = step(x).cpu()
        expected = step_of(subject.truth_physics)(subject.points.x)
    jacobian = jacobian_of(step, x).cpu()
    truth = subject.truth
    errors = {
        block: compare(jacobian[..., columns.start : columns.stop], truth[block].jacobian)
        for block, columns in subject.blocks.items()
    }
    clean, groups = {block: t.clean for block, t in truth.items()}, subject.points.groups()
    return _result(source, errors, clean, groups, value_error(value, expected), times._asdict())


def measure_learned(subject: Subject, counts: Sequence[int], options: Options) -> Iterator[dict[str, Any]]:
    """Compares the ensemble with the truth after each number of transitions; yields what :func:`measure` returns."""
    task, points, truth = subject.task, subject.points, subject.observed_truth
    state, action = points.x[:, : task.state_dim], points.x[:, task.state_dim :]
    with torch.no_grad():
        obs = task.observe(state)
        change = step_of(subject.truth_physics, observed=True)(points.x) - obs
    ensembles = trained_ensembles(subject.reference, counts, seed=options.seed, device=options.device)
    for count, trainer in ensembles:
        learned = ask_ensemble(trainer, obs, action)
        result: dict[str, Any] = {"rows": [], "errors": {}}
        # Each member is a sample of its own, as in a critic update; then their mean.
        for how, jacobian, next_obs in (
            ("member", learned.jacobian, learned.next_obs),
            ("mean", learned.jacobian.mean(0, keepdim=True), learned.next_obs.mean(0, keepdim=True)),
        ):
            n = len(jacobian)
            source = Source(task.name, "learned", how, "float32", options.device, count)
            errors = {"action": compare(jacobian.flatten(0, 1), truth.jacobian.repeat(n, 1, 1))}
            delta, expected = (next_obs - obs).flatten(0, 1), change.repeat(n, 1)
            groups = {name: mask.repeat(n) for name, mask in points.groups().items()}
            clean = {"action": truth.clean.repeat(n)}
            part = _result(source, errors, clean, groups, change_error(delta, expected), {})
            for row in part["rows"]:
                members_of = groups[row["states"]]
                row["value_r2"] = explained_variance(delta[members_of], expected[members_of])
            result["rows"] += part["rows"]
            if how == "member":
                result["errors"] = part["errors"]
        yield result


def _result(
    source: Source,
    errors: Mapping[str, Errors],
    clean: Mapping[str, Bool[Tensor, " N"]],
    groups: Mapping[str, Bool[Tensor, " N"]],
    value_errors: Float[Tensor, " N"],
    times: Mapping[str, float],
) -> dict[str, Any]:
    rows = summary_rows(errors, clean, groups, value_errors)
    return {
        "rows": [_row(source, "ok") | dict(times) | row for row in rows],
        "errors": {block: e.error[clean[block]].tolist() for block, e in errors.items()},
    }


def _row(source: Source, status: str) -> dict[str, Any]:
    return dict.fromkeys(FIELDS) | vars(source) | {"status": status}


def measure_all(subjects: Sequence[Subject], options: Options, display: SweepDisplay) -> list[dict[str, Any]]:
    """Measures every source that is not finished and writes each into the out folder.

    Returns:
        rows of the sources that were refused or failed; hours of other results do not depend on them.
    """
    cells = options.folder / "cells"
    names = [source.name for subject in subjects for source in subject.sources]
    finished = {name for name in names if (cells / f"{name}.json").exists()}
    broken: list[dict[str, Any]] = []

    def save(source: Source, result: dict[str, Any]) -> None:
        write_atomically(cells / f"{source.name}.json", json.dumps(result))
        display.update(source.name, 1)
        worst = [f"{row['block']} {row['error_median']:.1e}" for row in result["rows"] if is_main(row)]
        display.finish(source.name, f"median error {', '.join(worst)}")

    def learn(subject: Subject, sources: list[Source]) -> None:
        """One training serves all numbers of transitions."""
        counts = [source.transitions for source in sources if source.transitions is not None]
        for i, result in enumerate(measure_learned(subject, counts, options)):
            save(sources[i], result)
            if sources[i + 1 :]:
                display.start(sources[i + 1].name)

    def attempt(source: Source, work: Callable[[], None]) -> None:
        display.start(source.name)
        try:
            work()
            return
        except (InputError, MissingExtra) as error:
            status = f"refused: {error}"
        except Exception as error:
            status = f"failed: {error_text(error)}"
        broken.append(_row(source, status))
        display.finish(source.name, status)

    with display:
        display.begin({name: int(name in finished) for name in names}, dict.fromkeys(names, 1))
        for subject in subjects:
            todo = [source for source in subject.sources if source.name not in finished]
            learned = [source for source in todo if source.transitions is not None]
            for source in todo:
                if source not in learned:
                    attempt(source, lambda s=source, t=subject: save(s, measure(t, s, options.repeats)))
            if learned:
                attempt(learned[0], lambda s=learned, t=subject: learn(t, s))
            forget_models()
    return broken


def open_folder(options: Options) -> None:
    """Makes the out folder, or goes on in it.

    Raises:
        InputError: the folder holds results of other settings, or cannot be written.
    """
    cells, path = options.folder / "cells", options.folder / "settings.json"
    if options.fresh:
        shutil.rmtree(cells, ignore_errors=True)
    elif path.exists() and cells.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        different = [f"{k} {before.get(k)} and not {v}" for k, v in options.settings.items() if before.get(k) != v]
        if different:
            raise InputError(
                f"{options.folder} was measured with {', '.join(different)}: give the same flags, another --out, or "
                "--fresh to forget it"
            )
    make_folder(cells)
    write_atomically(path, json.dumps(options.settings))


def run_accuracy(options: Options) -> int:
    """Measures what is not finished and reports everything in the out folder; returns 1 if something failed, else 0."""
    subjects = subjects_of(options)
    open_folder(options)
    broken = measure_all(subjects, options, make_sweep_display())
    files = sorted((options.folder / "cells").glob("*.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    rows = [row for result in results for row in result["rows"]] + broken
    write_csv(options.folder / "gradient_quality.csv", FIELDS, rows)
    with failures_kept() as undrawn:
        if results:
            draw_errors(options.folder / "figure.png", results)
    for sentence in not_drawn(undrawn):
        print(sentence)
    title = "Accuracy of one-step Jacobians"
    write_summary(options.folder / "summary.md", title, verdict(rows), tables(rows), options.facts)
    return int(bool(undrawn) or any(row["status"].startswith("failed") for row in broken))
