"""How good are the gradients of one environment step, of every simulator backend and of the learned model?

    python benchmarks/gradient_quality.py --quick                      # three tasks, a few minutes on a CPU
    python benchmarks/gradient_quality.py --backends mujoco --states 128
    python benchmarks/gradient_quality.py --sweep                      # which step finite differences should take
    python benchmarks/gradient_quality.py --soak 100000                # is anything not finite in so many states?

Truth is central differences of the task's reference physics in float64, each state at the step size on its plateau. The
error of a state is max|J - J_fd| / max|J_fd|, apart for the derivatives by action, position and velocity. States where
the truth has a kink (the set of active constraints changes) are unclean: counted and reported apart. Every finished
part is kept in the out folder and not measured again there. Writes gradient_quality.csv, figure.png and summary.md.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from mage_diffsim.display import show_log
from mage_diffsim.doctor import versions
from mage_diffsim.envs.differences import TrueJacobian, jacobian_of, true_jacobians, value_error
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import BACKENDS, Physics, backends_of, load, make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.sampling import WAYS, Policy
from mage_diffsim.errors import InputError, MissingExtra, unknown_name
from mage_diffsim.experiments import quality
from mage_diffsim.experiments.command import exit_code, provenance
from mage_diffsim.experiments.figures import PALETTE, failures_kept, not_drawn, write_figure
from mage_diffsim.experiments.report import markdown_table, rich_table, write_csv
from mage_diffsim.experiments.sweep_display import SweepDisplay, make_sweep_display
from mage_diffsim.files import make_folder, write_atomically
from mage_diffsim.run_folder import load_trainer
from mage_diffsim.training import device_text, torch_device

TASKS = (
    "Pendulum",
    "CartPole",
    "InvertedPendulum",
    "InvertedDoublePendulum",
    "Reacher",
    "Swimmer",
    "HalfCheetah",
    "Hopper",
    "Walker2d",
    "Ant",
    "Pusher",
)
QUICK: dict[str, tuple[str, ...] | None] = {"Pendulum": None, "InvertedPendulum": None, "HalfCheetah": ("mujoco",)}
"""Tasks of --quick and their backends; None is all."""
QUICK_LEARNED = ("HalfCheetah",)
"""Where --quick trains an ensemble."""
ROLLOUTS = ("uniform", "sinusoidal")
DTYPES = {"float64": torch.float64, "float32": torch.float32}
SWEEP_STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)

FIELDS = (
    *("task", "backend", "derivative", "dtype", "device", "transitions"),
    *("block", "states", "kind", "n"),
    *("error_median", "error_p90", "error_p99", "error_max"),
    *("cosine_median", "cosine_p10", "cosine_min", "nonfinite"),
    *("value_error_median", "value_error_max", "value_r2"),
    *("step_ms", "step_vjp_ms", "vjp_ratio", "compile_s", "status"),
)
"""Columns of gradient_quality.csv, one row per source, block, group of states and kind (clean or unclean).

``backend`` is ``learned`` for the ensemble: ``derivative`` then says whether each member is a sample of its own, as a
critic update sees them, or their mean is taken; its derivative is that of the observation by the action. ``states`` is
all, contact, free (of contact and joint limits), or where the states come from. ``value_error`` is max|y - y_ref| /
max(1, |y_ref|) of the next state, of the ensemble max|d - d_ref| / max|d_ref| of the change d of the observation, whose
R^2 is ``value_r2``. Times are of one batch of all states; ``step_vjp_ms`` is a step with its pull-back to the action;
``compile_s`` is what building and first calls take beyond warm ones (less where JAX has kept the compilation on disk).
``status`` is ok, refused or failed, with the reason."""

SOAK_FIELDS = ("task", "backend", "derivative", "dtype", "device", *quality.Visits._fields, "seconds", "status")
"""Columns of soak.csv, see :class:`.quality.Visits`."""
SOAK_ROWS = 256
"""Environments side by side of --soak."""

SWEEP_FIELDS = ("task", "block", "step", "n", "unresolved", "error_median", "error_p90", "error_max", "share_above")
"""Columns of sweep.csv, see :func:`.quality.sweep_steps`."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    tasks: tuple[str, ...] | None = None
    """Registered tasks, path/to/file.py:Class or module:Class; by default Pendulum, CartPole and the MuJoCo tasks."""
    backends: tuple[str, ...] | None = None
    """Physics backends; by default all that the task has."""
    derivatives: tuple[str, ...] | None = None
    """Derivative sources; by default all that the backend offers (with --quick its first)."""
    dtypes: tuple[str, ...] | None = None
    """float64, float32 or both, the default (with --quick float64)."""
    states: int | None = None
    """States per task, at least 4; by default 256 (with --quick 64)."""
    rollouts: tuple[str, ...] = ROLLOUTS
    """How the rollouts act that states come from, in equal shares: uniform, bang-bang, constant, sinusoidal or small.
    One state in 32 is a reset state."""
    policy: Path | None = None
    """A run folder whose trained policy gives another share of the states of its task."""
    learned: bool = True
    """Also measure the learned ensemble, trained on random transitions with the preset cpu."""
    transitions: tuple[int, ...] | None = None
    """How many transitions it was trained on when it is measured; by default 1000 and 5000 (with --quick 1000)."""
    repeats: int = 5
    """Warm repeats of every timing; the median is reported."""
    seed: int = 0
    """Of states, actions and the ensemble."""
    device: str = "cpu"
    """Torch device of the sources: cpu, cuda, cuda:1, ... The truth is computed on the CPU."""
    out: Path | None = None
    """Folder for results; by default runs/gradient_quality (runs/gradient_quality-quick with --quick)."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Pendulum and InvertedPendulum on all their backends, HalfCheetah on mujoco and learned; float64, 64 states."""
    sweep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Instead measure the error of central differences of MuJoCo C over steps from 1e-3 to 1e-8; writes sweep.csv and
    sweep.md."""
    soak: int | None = None
    """Instead visit so many states per source on its own physics and count what is not finite; writes soak.csv and
    soak.md. Sources: the first derivative source of every backend unless --derivatives says otherwise."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Forget what is finished in the out folder."""

    @property
    def folder(self) -> Path:
        """The out folder."""
        return self.out or Path("runs") / ("gradient_quality" + ("-quick" if self.quick else ""))

    @property
    def settings(self) -> dict[str, Any]:
        """What all results in one folder have in common."""
        return {
            "states": self.states or (64 if self.quick else 256),
            "rollouts": list(self.rollouts),
            "policy": None if self.policy is None else str(self.policy),
            "seed": self.seed,
        }

    def check(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            InputError: names the flag, what was given and what is accepted.
        """
        for kind, given, accepted in (
            ("backend", self.backends, BACKENDS),
            ("dtype", self.dtypes, DTYPES),
            ("rollout", self.rollouts, WAYS),
        ):
            for name in given or ():
                if name not in accepted:
                    raise unknown_name(kind, name, accepted)
        for flag in ("tasks", "backends", "derivatives", "dtypes", "rollouts", "transitions"):
            given = getattr(self, flag)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise InputError(f"--{flag} is {given}; accepted is one or more different values")
        numbers = [("states", self.settings["states"], 4), ("repeats", self.repeats, 1), ("seed", self.seed, 0)]
        numbers += [("transitions", n, 25) for n in self.transitions or ()]
        numbers += [("soak", self.soak, 1)] if self.soak is not None else []
        for flag, value, least in numbers:
            if value < least:
                raise InputError(f"--{flag} is {value}; accepted is {least} or more")
        if self.soak is not None and self.sweep:
            raise InputError("--soak and --sweep are two measurements: give one of them")
        torch_device(self.device)


@dataclass(frozen=True)
class Source:
    """One thing to measure: a physics with a derivative source in a dtype, or the ensemble after some transitions."""

    task: str
    backend: str
    derivative: str = ""
    dtype: str = "float32"
    device: str = "cpu"
    transitions: int | None = None

    @property
    def name(self) -> str:
        """Of its file and its line of progress."""
        device = "" if self.device == "cpu" else self.device.replace(":", "")
        parts = (self.task, self.backend, self.derivative, self.dtype, device, str(self.transitions or ""))
        return "_".join(part for part in parts if part)


@dataclass
class Subject:
    """One task with its states and the truth there, computed when first needed."""

    reference: str
    """What --tasks names it."""
    options: Options
    sources: list[Source] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.task = make_task(self.reference)
        self.blocks = quality.blocks_of(self.task)

    @cached_property
    def truth_physics(self) -> Physics:
        """The reference."""
        return make_physics(self.task, backends_of(self.task)[0], dtype=torch.float64)

    @cached_property
    def points(self) -> quality.Points:
        """The states, with their actions."""
        settings = self.options.settings
        return quality.gather_points(
            self.truth_physics, settings["states"], seed=settings["seed"], rollouts=self.options.rollouts,
            policy=self._policy(),
        )  # fmt: skip

    def _policy(self) -> Policy | None:
        if self.options.policy is None:
            return None
        trainer = load_trainer(self.options.policy, device="cpu")
        if trainer.task.name != self.task.name:
            return None

        def policy(obs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return trainer.agent.policy(obs.to(trainer.dtype).expand(len(trainer.config.runs), -1, -1))[0]

        return policy

    @cached_property
    def truth(self) -> dict[str, TrueJacobian]:
        """Of every block of the next state."""
        return true_jacobians(quality.step_of(self.truth_physics), self.points.x, self.blocks)

    @cached_property
    def observed_truth(self) -> TrueJacobian:
        """d next_obs / d action."""
        step = quality.step_of(self.truth_physics, observed=True)
        return true_jacobians(step, self.points.x, {"action": self.blocks["action"]})["action"]


def subjects_of(options: Options) -> list[Subject]:
    """The tasks with their sources.

    Raises:
        InputError: an unknown task; a derivative source that no chosen backend has; or a policy of none of the tasks.
    """
    options.check()
    names = options.tasks or tuple(QUICK if options.quick else TASKS)
    offered: set[str] = set()
    subjects = []
    for name in names:
        subject = Subject(name, options)
        of_task = QUICK.get(name) if options.quick else None
        for backend in options.backends or of_task or backends_of(subject.task):
            try:
                sources = load(BACKENDS[backend]).derivatives_of(subject.task)
            except MissingExtra:
                sources = ("default",)  # measuring it will say what is missing
            offered.update(sources)
            chosen = [s for s in sources if s in options.derivatives] if options.derivatives else sources
            first_only = (options.quick or options.soak is not None) and not options.derivatives
            for derivative in chosen[:1] if first_only else chosen:
                for dtype in options.dtypes or (("float64",) if options.quick else tuple(DTYPES)):
                    subject.sources.append(Source(subject.task.name, backend, derivative, dtype, options.device))
        if options.learned and not (options.quick and name not in QUICK_LEARNED and options.transitions is None):
            for count in sorted(options.transitions or ((1000,) if options.quick else (1000, 5000))):
                subject.sources.append(Source(subject.task.name, "learned", device=options.device, transitions=count))
        subjects.append(subject)
    for derivative in options.derivatives or ():
        if derivative not in offered:
            raise unknown_name("derivative source", derivative, offered)
    if options.policy is not None:
        trained_on = load_trainer(options.policy, device="cpu").task.name
        if trained_on not in (s.task.name for s in subjects):
            raise InputError(f"--policy {options.policy} was trained on {trained_on}, which is not among the tasks")
    return subjects


# --- measuring -----------------------------------------------------------------------------------------------------


def measure(subject: Subject, source: Source, repeats: int) -> dict[str, Any]:
    """A physics against the truth: its ``rows`` and, for the figure, the ``errors`` of clean states by block.

    Raises:
        InputError, MissingExtra: the backend refuses the task, the dtype or the device.
    """
    dtype, device = DTYPES[source.dtype], torch_device(source.device)
    x = subject.points.x.to(device, dtype)

    def make() -> Physics:
        return make_physics(subject.task, source.backend, dtype=dtype, device=device, derivative=source.derivative)

    physics, times = quality.measure_times(make, x, repeats)
    step = quality.step_of(physics)
    with torch.no_grad():
        value = step(x).cpu()
        expected = quality.step_of(subject.truth_physics)(subject.points.x)
    jacobian = jacobian_of(step, x).cpu()
    truth = subject.truth
    errors = {
        block: quality.compare(jacobian[..., columns.start : columns.stop], truth[block].jacobian)
        for block, columns in subject.blocks.items()
    }
    clean, groups = {block: t.clean for block, t in truth.items()}, subject.points.groups()
    return _result(source, errors, clean, groups, value_error(value, expected), times._asdict())


def measure_learned(subject: Subject, counts: Sequence[int], options: Options) -> Iterator[dict[str, Any]]:
    """The ensemble against the truth after each number of transitions, as :func:`measure` gives it."""
    task, points, truth = subject.task, subject.points, subject.observed_truth
    state, action = points.x[:, : task.state_dim], points.x[:, task.state_dim :]
    with torch.no_grad():
        obs = task.observe(state)
        change = quality.step_of(subject.truth_physics, observed=True)(points.x) - obs
    ensembles = quality.trained_ensembles(subject.reference, counts, seed=options.seed, device=options.device)
    for count, trainer in ensembles:
        learned = quality.ask_ensemble(trainer, obs, action)
        result: dict[str, Any] = {"rows": [], "errors": {}}
        # Each member is a sample of its own, as in a critic update; then their mean.
        for how, jacobian, next_obs in (
            ("member", learned.jacobian, learned.next_obs),
            ("mean", learned.jacobian.mean(0, keepdim=True), learned.next_obs.mean(0, keepdim=True)),
        ):
            n = len(jacobian)
            source = Source(task.name, "learned", how, "float32", options.device, count)
            errors = {"action": quality.compare(jacobian.flatten(0, 1), truth.jacobian.repeat(n, 1, 1))}
            delta, expected = (next_obs - obs).flatten(0, 1), change.repeat(n, 1)
            groups = {name: mask.repeat(n) for name, mask in points.groups().items()}
            clean, value_error = {"action": truth.clean.repeat(n)}, quality.change_error(delta, expected)
            part = _result(source, errors, clean, groups, value_error, {})
            for row in part["rows"]:
                members_of = groups[row["states"]]
                row["value_r2"] = quality.explained_variance(delta[members_of], expected[members_of])
            result["rows"] += part["rows"]
            if how == "member":
                result["errors"] = part["errors"]
        yield result


def _result(
    source: Source,
    errors: dict[str, quality.Errors],
    clean: dict[str, torch.Tensor],
    groups: dict[str, torch.Tensor],
    value_error: torch.Tensor,
    times: dict[str, float],
) -> dict[str, Any]:
    rows = quality.summary_rows(errors, clean, groups, value_error)
    return {
        "rows": [_row(source, "ok") | times | row for row in rows],
        "errors": {block: e.error[clean[block]].tolist() for block, e in errors.items()},
    }


def _row(source: Source, status: str) -> dict[str, Any]:
    return dict.fromkeys(FIELDS) | vars(source) | {"status": status}


def measure_all(subjects: Sequence[Subject], options: Options, display: SweepDisplay) -> list[dict[str, Any]]:
    """Measure every source that is not finished and write each into the out folder; rows of those that broke."""
    cells = options.folder / "cells"
    names = [source.name for subject in subjects for source in subject.sources]
    finished = {name for name in names if (cells / f"{name}.json").exists()}
    broken: list[dict[str, Any]] = []

    def save(source: Source, result: dict[str, Any]) -> None:
        write_atomically(cells / f"{source.name}.json", json.dumps(result))
        display.update(source.name, 1)
        worst = [f"{row['block']} {row['error_median']:.1e}" for row in result["rows"] if _is_main(row)]
        display.finish(source.name, f"median error {', '.join(worst)}")

    def learn(subject: Subject, sources: list[Source]) -> None:
        """One training serves them all, paused at each."""
        counts = [source.transitions for source in sources if source.transitions is not None]
        for i, result in enumerate(measure_learned(subject, counts, options)):
            save(sources[i], result)
            if sources[i + 1 :]:
                display.start(sources[i + 1].name)

    def attempt(source: Source, work: Callable[[], None]) -> None:
        display.start(source.name)
        try:
            work()
        except (InputError, MissingExtra) as error:
            broken.append(_row(source, f"refused: {error}"))
            display.finish(source.name, broken[-1]["status"])
        except Exception as error:  # hours of other results must not depend on one backend
            message = " ".join(str(error).split())
            broken.append(_row(source, f"failed: {type(error).__name__}: {message}"))
            display.finish(source.name, broken[-1]["status"])

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


def forget_models() -> None:
    """Let go of what MJX has compiled for a task that is finished."""
    if "mage_diffsim.envs.mjx" in sys.modules:
        load("mage_diffsim.envs.mjx:forget_compilations")()


def open_folder(options: Options) -> None:
    """Make the out folder, or go on in it.

    Raises:
        InputError: it holds results of other settings, or cannot be written.
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


# --- reporting -----------------------------------------------------------------------------------------------------

HEADER = ("task", "source", "block", "clean", "median", "p90", "p99", "max", "cosine min", "max in contact",
          "unclean", "unclean median", "unclean max", "non-finite")  # fmt: skip
TIME_HEADER = ("task", "source", "step ms", "step + VJP ms", "ratio", "compile s", "value error median", "max")
LEARNED_HEADER = ("task", "transitions", "states", "gradient error median", "p90", "cosine median", "p10", "min",
                  "value error median", "value R²")  # fmt: skip


def _is_main(row: dict[str, Any]) -> bool:
    return row["states"] == "all" and row["kind"] == "clean"


def _source_name(row: dict[str, Any]) -> str:
    device = "" if row["device"] == "cpu" else f" {row['device']}"
    return f"{row['backend']}/{row['derivative']} {row['dtype']}{device}"


def _number(value: float | None, form: str = ".1e") -> str:
    return "-" if value is None or value != value else f"{value:{form}}"


def tables(rows: Sequence[dict[str, Any]]) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """(title, header, rows) of every table of the summary; those without rows are left out."""
    found = {(_source_name(r), r["task"], r["transitions"], r["block"], r["states"], r["kind"]): r for r in rows}
    accuracy, times, learned = [], [], []
    for row in rows:
        if row["kind"] != "clean" or row["status"] != "ok":
            continue
        if row["backend"] == "learned":
            if row["derivative"] == "member":
                learned.append(
                    [row["task"], str(row["transitions"]), row["states"], _number(row["error_median"], ".3f"),
                     _number(row["error_p90"], ".3f"), _number(row["cosine_median"], ".4f"),
                     _number(row["cosine_p10"], ".4f"), _number(row["cosine_min"], ".4f"),
                     _number(row["value_error_median"], ".3f"), _number(row["value_r2"], ".4f")]
                )  # fmt: skip
        elif row["states"] == "all":
            key = (_source_name(row), row["task"], row["transitions"], row["block"])
            unclean, contact = found[(*key, "all", "unclean")], found.get((*key, "contact", "clean"))
            accuracy.append(
                [row["task"], _source_name(row), row["block"], str(row["n"])]
                + [_number(row[f"error_{k}"]) for k in ("median", "p90", "p99", "max")]
                + [
                    _number(row["cosine_min"], ".6f"),
                    _number(contact["error_max"] if contact else None),
                    str(unclean["n"]),
                ]
                + [_number(unclean["error_median"]), _number(unclean["error_max"])]
                + [str(row["nonfinite"] + unclean["nonfinite"])]
            )
            if row["block"] == "action":
                numbers = [_number(row[k], ".2f") for k in ("step_ms", "step_vjp_ms", "vjp_ratio", "compile_s")]
                numbers += [_number(row[k]) for k in ("value_error_median", "value_error_max")]
                times.append([row["task"], _source_name(row), *numbers])
    every = [
        ("Jacobians against central differences: clean states, then unclean ones", HEADER, accuracy),
        ("Times of one batch, and next states against the reference", TIME_HEADER, times),
        ("d next_obs / d action of the learned ensemble (one sample per member and clean state)", LEARNED_HEADER,
         learned),
    ]  # fmt: skip
    return [table for table in every if table[2]]


def findings(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    """What the numbers say and how to read them."""
    main = [r for r in rows if r["status"] == "ok" and r["backend"] != "learned" and r["states"] == "all"]
    clean = [r for r in main if r["kind"] == "clean" and r["n"]]
    found = [
        f"{settings['states']} states per task, in equal shares from {' and '.join(settings['rollouts'])} rollouts"
        f"{' and the policy ' + settings['policy'] if settings['policy'] else ''}, and a few reset states; seed "
        f"{settings['seed']}. Times are of one batch of that many."
    ]
    for dtype, column, bound in (("float64", "error_max", 1e-6), ("float32", "error_median", 1e-3)):
        mine = [r for r in clean if r["dtype"] == dtype]
        over = [f"{r['task']} {_source_name(r)} {r['block']} ({r[column]:.1e})" for r in mine if not r[column] <= bound]
        if mine:
            what = "largest error" if column == "error_max" else "median error"
            found.append(
                f"{dtype}: the {what} of clean states is at most {bound:.0e} in {len(mine) - len(over)} of {len(mine)} "
                f"source x block combinations" + (f"; above in {', '.join(over)}." if over else ".")
            )
    if main:
        found.append(f"Jacobians with an entry that is not finite: {sum(r['nonfinite'] for r in main)}.")
    if any(r["backend"] == "mujoco" for r in main):
        found.append(
            "The mujoco sources differ from the truth by their one step size only: both are differences of MuJoCo C."
        )
    for r in rows:
        if (r["backend"], r["derivative"], r["kind"], r["states"]) == ("learned", "member", "clean", "all"):
            gradient, value = _number(r["error_median"], ".0%"), _number(r["value_error_median"], ".0%")
            found.append(
                f"{r['task']}, ensemble after {r['transitions']} random transitions: its action-gradient is off by "
                f"{gradient} in the median (cosine {_number(r['cosine_median'], '.3f')}, in the worst tenth below "
                f"{_number(r['cosine_p10'], '.3f')}), the change that it predicts by {value} "
                f"(R² {_number(r['value_r2'], '.3f')})."
            )
    broken = [f"{r['task']}, {r['backend']} {r['status']}" for r in rows if r["status"] != "ok"]
    return [*found, *dict.fromkeys(broken)]


def draw_errors(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """One row of axes per block: the errors of clean states, a box (quartiles; whiskers to the extremes) per source.

    Errors below 1e-13 are drawn there.

    Raises:
        InputError: the file cannot be written.
    """
    boxes: dict[tuple[str, str, str], list[float]] = {}
    for result in results:
        row = result["rows"][0]
        name = f"learned, {row['transitions']} transitions" if row["backend"] == "learned" else _source_name(row)
        boxes |= {(block, row["task"], name): errors for block, errors in result["errors"].items() if errors}
    blocks, _, names = (list(dict.fromkeys(keys)) for keys in zip(*boxes, strict=True))
    tasks = {block: list(dict.fromkeys(task for b, task, _ in boxes if b == block)) for block in blocks}
    width = max(5.0, 1.5 * max(map(len, tasks.values())))

    def paint(page: Any) -> None:
        from matplotlib.patches import Patch

        page.suptitle("Error of one-step Jacobians, clean states")
        colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
        hatches = {name: ("", "////", "....")[i // len(PALETTE) % 3] for i, name in enumerate(names)}
        axes = page.subplots(len(blocks), 1, squeeze=False, sharey=True)[:, 0]
        for axis, block in zip(axes, blocks, strict=True):
            for (i, task), (j, name) in itertools.product(enumerate(tasks[block]), enumerate(names)):
                errors = [min(max(e, 1e-13), 1e3) for e in boxes.get((block, task, name), [])]
                if errors:
                    box = axis.boxplot(
                        [errors], positions=[i + 0.8 * ((j + 0.5) / len(names) - 0.5)], widths=0.7 / len(names),
                        whis=(0, 100), patch_artist=True, manage_ticks=False, medianprops={"color": "black"},
                    )  # fmt: skip
                    box["boxes"][0].set(facecolor=colours[name], hatch=hatches[name])
            axis.set(yscale="log", ylabel=f"by {block}", xlim=(-0.6, len(tasks[block]) - 0.4))
            axis.set_xticks(range(len(tasks[block])), tasks[block])
            axis.tick_params(axis="x", labelsize="small")
            axis.grid(axis="y", alpha=0.25)
        legend = [Patch(facecolor=colours[name], hatch=hatches[name], label=name) for name in names]
        page.legend(handles=legend, loc="outside right center", frameon=False, fontsize="small")

    write_figure(path, width + 3.0, 2.6 * len(blocks) + 0.6, paint)


def _write_summary(options: Options, name: str, title: str, parts: Sequence[Any], sentences: Sequence[str]) -> None:
    """Tables and sentences to the screen and, with the command and the versions, into a Markdown file."""
    console = Console()
    lines = [f"# {title}", ""]
    for heading, header, rows in parts:
        console.print(rich_table(console, heading, header, rows))
        lines += [f"## {heading}", "", markdown_table(header, rows)]
    for sentence in sentences:
        print(f"- {sentence}")
        lines.append(f"- {sentence}")
    lines += provenance({"device": device_text(options.device), "torch threads": torch.get_num_threads()})
    write_atomically(options.folder / name, "\n".join(lines) + "\n")
    print(f"Written to {options.folder}")


# --- the three modes -------------------------------------------------------------------------------------------------


def run(options: Options) -> int:
    """Measure what is not finished, then report everything in the out folder; 1 if something failed, else 0."""
    subjects = subjects_of(options)
    open_folder(options)
    broken = measure_all(subjects, options, make_sweep_display())
    order = {name: i for i, name in enumerate(TASKS)}
    results = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((options.folder / "cells").glob("*.json"))
    ]
    results.sort(key=lambda result: order.get(result["rows"][0]["task"], len(order)))
    rows = [row for result in results for row in result["rows"]] + broken
    write_csv(options.folder / "gradient_quality.csv", FIELDS, rows)
    with failures_kept() as undrawn:
        if results:
            draw_errors(options.folder / "figure.png", results)
    sentences = findings(rows, options.settings) + not_drawn(undrawn)
    _write_summary(options, "summary.md", "Quality of one-step gradients", tables(rows), sentences)
    return int(bool(undrawn) or any(row["status"].startswith("failed") for row in broken))


def run_sweep(options: Options) -> int:
    """Error of central differences of MuJoCo C over the step."""
    options.check()
    names = options.tasks or tuple(QUICK if options.quick else TASKS)
    subjects = [s for s in (Subject(name, options) for name in names) if isinstance(s.task, MujocoTask)]
    if not subjects:
        raise InputError(f"--sweep is about MuJoCo tasks, and {', '.join(names)} is none")
    rows, sentences = [], []
    header = ("task", "block", *(f"{h:.0e}" for h in SWEEP_STEPS), "unresolved", "plateau", "the task's step")
    table = []
    make_folder(options.folder)
    display = make_sweep_display()
    with display:
        display.begin({s.task.name: 0 for s in subjects}, {s.task.name: 1 for s in subjects})
        for subject in subjects:
            assert isinstance(subject.task, MujocoTask)
            name = subject.task.name
            own_steps: dict[str, float] = dict(
                zip(("position", "velocity", "action"), subject.task.difference_steps, strict=True)
            )
            display.start(name)
            step = quality.step_of(subject.truth_physics)
            found = quality.sweep_steps(step, subject.points.x, subject.blocks, SWEEP_STEPS)
            rows += [{"task": name} | row for row in found]
            for block in subject.blocks:
                mine = [row for row in found if row["block"] == block]
                own, steps = own_steps[block], quality.plateau(mine)
                cells = [f"{r['error_p90']:.0e} ({r['share_above']:.0%})" for r in mine]
                flat = f"{max(steps):.0e} to {min(steps):.0e}"
                table.append([name, block, *cells, str(mine[0]["unresolved"]), flat, f"{own:.0e}"])
                if own not in steps:
                    sentences.append(f"{name}, {block}: the task's step {own:.0e} is off the plateau, {flat}.")
            display.update(name, 1)
            display.finish(name, f"{len(subject.points.x)} states")
    write_csv(options.folder / "sweep.csv", SWEEP_FIELDS, rows)
    explanation = (
        "90th percentile of the relative error of central differences (share of states above 1e-3) at each step, "
        "against Richardson's extrapolation at each state's best step; states without one are unresolved. The plateau "
        f"holds the steps within a factor of ten of the best, or below {quality.NEGLIGIBLE:.0e}."
    )
    parts = [("Central differences of MuJoCo C over the step", header, table)]
    _write_summary(options, "sweep.md", "Step of finite differences", parts, [explanation, *sentences])
    return 0


def run_soak(options: Options, states: int) -> int:
    """Visit many states with every source; 1 if one gave something that is not finite or failed, else 0."""
    subjects = subjects_of(options)
    sources = [(s, source) for s in subjects for source in s.sources if source.transitions is None]
    rows, cells, commit = [], options.folder / "soak", versions().get("commit", "")
    if options.fresh:
        shutil.rmtree(cells, ignore_errors=True)
    make_folder(cells)
    display = make_sweep_display()
    with display:
        names = [source.name for _, source in sources]
        display.begin(dict.fromkeys(names, 0), dict.fromkeys(names, states))
        for subject, source in sources:
            cell = cells / f"{source.name}_{states}_{options.seed}_{commit}.json"
            display.start(source.name)
            before = cell.exists()
            if before:
                row = json.loads(cell.read_text(encoding="utf-8"))
            else:
                try:
                    row = _soak_one(subject, source, states, options.seed, display)
                except Exception as error:  # hours of other results must not depend on one source
                    message = " ".join(str(error).split())
                    row = dict.fromkeys(SOAK_FIELDS) | {"task": source.task, "backend": source.backend}
                    row["status"] = f"failed: {type(error).__name__}: {message}"
                if row["status"] == "ok":
                    write_atomically(cell, json.dumps(row))  # the next source may take an hour
            rows.append(row)
            forget_models()
            display.finish(source.name, f"{row['status']}{', measured before' if before else ''}")
    write_csv(options.folder / "soak.csv", SOAK_FIELDS, rows)
    ok = [row for row in rows if row["status"] == "ok"]
    header = ("task", "source", "states", "episodes", "values not finite", "gradients not finite", "largest gradient")
    table = [
        [r["task"], _source_name(r), *(str(r[k]) for k in quality.Visits._fields[:-1]), _number(r["largest_gradient"])]
        for r in ok
    ]
    bad = sum(row["nonfinite_values"] + row["nonfinite_gradients"] for row in ok)
    sentences = [
        f"At every visited state a random vector was pulled back through the step to state and action; {SOAK_ROWS} "
        "environments, half with uniform actions, half with sinusoidal ones; a quarter start at rest in the model's "
        f"initial configuration. Seed {options.seed}.",
        f"Not finite in all: {bad}.",
        *(f"{r['task']}, {r['backend']} {r['status']}" for r in rows if r["status"] != "ok"),
    ]
    parts = [("Values and gradients that are not finite", header, table)]
    _write_summary(options, "soak.md", "Soak", parts, list(dict.fromkeys(sentences)))
    return int(bad > 0 or not ok or any(r["status"].startswith("failed") for r in rows))


def _soak_one(subject: Subject, source: Source, states: int, seed: int, display: SweepDisplay) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SOAK_FIELDS)
    row |= {k: v for k, v in vars(source).items() if k in SOAK_FIELDS}
    began = time.perf_counter()
    try:
        physics = make_physics(
            subject.task, source.backend, dtype=DTYPES[source.dtype], device=torch_device(source.device),
            derivative=source.derivative,
        )  # fmt: skip
    except (InputError, MissingExtra) as error:
        return row | {"status": f"refused: {error}"}
    visits = quality.visit(
        physics, states, rows=min(SOAK_ROWS, states), seed=seed,
        progress=lambda n: display.update(source.name, min(n, states)),
    )  # fmt: skip
    return row | visits._asdict() | {"seconds": round(time.perf_counter() - began, 1), "status": "ok"}


def main(options: Options) -> int:
    """Run the chosen mode; returns the exit code."""

    def body() -> int:
        with show_log(lambda text: print(text, file=sys.stderr, flush=True)):
            if options.soak is not None:
                return run_soak(options, options.soak)
            return run_sweep(options) if options.sweep else run(options)

    return exit_code(body)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
