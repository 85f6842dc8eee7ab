"""The reference pages of the documentation as Markdown, made from the code."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import itertools
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest import mock

from mage_diffsim import cli, columns
from mage_diffsim.config import TrainConfig
from mage_diffsim.envs.physics import backends_of
from mage_diffsim.envs.registry import make_task, task_names
from mage_diffsim.hyper import Hyper, Preset
from mage_diffsim.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent

SCRIPTS = (
    "benchmarks/oracle_vs_learned.py",
    "benchmarks/paper.py",
    "benchmarks/paper.py performance",
    "benchmarks/gradient_quality.py",
    "benchmarks/against_mujoco.py",
    "benchmarks/model_coverage.py",
    "benchmarks/contact_agreement.py",
    "benchmarks/throughput.py",
)
"""Commands beside ``mage-diffsim`` whose flags are listed."""

PRESETS: dict[str, tuple[Preset, Literal["small", "full"]]] = {
    "paper": ("paper", "full"),
    "paper, small tasks": ("paper", "small"),
    "authors": ("authors", "full"),
    "cpu": ("cpu", "full"),
    "cpu, small tasks": ("cpu", "small"),
}
"""Heading of a column to the name and network size of a preset."""

BENCHMARKS = {
    "gradient_quality.csv": "jacobian_checks.accuracy",
    "soak.csv": "jacobian_checks.soak",
    "sweep.csv": "jacobian_checks.sweep",
    "results.csv": "mujoco_agreement.measuring",
    "throughput.csv": "throughput_sections.rows",
}
"""CSV file of a benchmark to the module that names its columns."""

LINK = re.compile(r'\[([^\]]+)\]\((?!http|#)([^)#\s]+)(#[^)\s]*)?(?:\s+"(mage_diffsim[\w.]*)")?\)')
"""A link to a file of the clone: text, file, anchor, and as title the name of an object in the file."""

ROLE = re.compile(r":\w+:`[~.]*([\w.]+)`")

PACKAGES = {"learner": "mage_diffsim", "envs": "envs", "bridges": "bridges"}
"""Name of an API page to the folder whose modules it lists."""

ELSEWHERE = {"benchmarks/RESULTS.md": "results.md", "envs/warp/compiler/README.md": "warp_compiler.md"}
"""Pages that lie beside what they describe: file to address below docs/."""

WIDTH = 110
"""Characters per line of the help texts."""


def pages() -> dict[str, str]:
    """Address of each page below docs/ to its Markdown."""
    made = {"cli": command_line(), "configuration": configuration(), "columns": csv_columns(), "tasks": tasks()}
    made |= {name: api(name, folder) for name, folder in PACKAGES.items()}
    found = {f"reference/{name}.md": text for name, text in made.items()}
    beside = {address: path for path, address in addresses().items() if path.suffix == ".md"}
    return found | {address: in_the_site(path.read_text(), path, address) for address, path in beside.items()}


def addresses() -> dict[Path, str]:
    """Files that lie elsewhere and are part of the documentation, each with its address below docs/."""
    found = {ROOT / path: address for path, address in ELSEWHERE.items()}
    for path in sorted((ROOT / "benchmarks/results").rglob("*")):
        if path.suffix in (".md", ".png", ".csv"):
            found[path] = path.relative_to(ROOT / "benchmarks").as_posix()
    return found


def in_the_site(text: str, path: Path, address: str) -> str:
    """The Markdown of a file of the clone, with its links as they are at an address of the site.

    A link whose title is the name of an object leads to the object. A link to a folder leads to the Markdown in it. A
    link to a file that is not part of the documentation becomes the file's name.
    """
    known = addresses()

    def link(match: re.Match[str]) -> str:
        text, target, anchor, name = match.groups(default="")
        if name:
            return f"[{text}][{name}]"
        file = (path.parent / target).resolve()
        if file.is_relative_to(ROOT / "docs"):
            return f"[{text}]({os.path.relpath(file, (ROOT / 'docs' / address).parent)}{anchor})"
        if file.is_dir():
            file = next(iter(sorted(file.glob("*.md"))), file)
        if file in known:
            return f"[{text}]({os.path.relpath(known[file], Path(address).parent)}{anchor})"
        name = f"`{file.relative_to(ROOT)}`"
        return name if text.strip("`").endswith(file.name) else f"{text} ({name})"

    return LINK.sub(link, text)


# --- command line ----------------------------------------------------------------------------------------------------


def command_line() -> str:
    """The page of all commands and their flags."""
    parts = [
        "# Command line",
        "These are the help texts of the commands, as they print them.",
        "The values that `train` shows are those of Pendulum and the preset `paper`.",
    ]
    for command in cli.COMMANDS:
        parts += [f"## mage-diffsim {command}", _text(command_help(command))]
    for script in SCRIPTS:
        parts += [f"## python {script}", _text(script_help(script))]
    return "\n\n".join(parts) + "\n"


@functools.cache
def command_help(command: str) -> str:
    """What ``mage-diffsim COMMAND --help`` prints."""
    out = io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS=str(WIDTH))
    with wide, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    return out.getvalue()


@functools.cache
def script_help(script: str) -> str:
    """What ``python SCRIPT --help`` prints.

    Raises:
        RuntimeError: it fails; the message has what it wrote to stderr.
    """
    command = [sys.executable, *script.split(), "--help"]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"COLUMNS": str(WIDTH), "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def _text(content: str) -> str:
    lines = "\n".join(line.rstrip() for line in content.strip("\n").splitlines())
    return f"```text\n{lines}\n```"


# --- configuration ---------------------------------------------------------------------------------------------------


def described_fields(kind: type) -> Iterator[tuple[str, str]]:
    """(name, meaning) of each field of a dataclass, the meaning from the docstring below it.

    Raises:
        ValueError: a field has none.
    """
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in itertools.pairwise(definition.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    for field in dataclasses.fields(kind):
        if field.name not in found:
            raise ValueError(f"{kind.__name__}.{field.name} has no docstring")
        yield field.name, found[field.name]


def configuration() -> str:
    """The page of TrainConfig, Hyper and the presets."""
    parts = [
        "# Configuration",
        "Every setting of a training run, with its meaning, unit, symbol and source. [D.2], [B.2] and [B.3] are "
        "appendices of the paper. *Published code* is the authors' implementation. *Ours* is this project's choice.",
        "On the command line a setting is a flag of `mage-diffsim train`: `eval_every` is `--eval-every`. In Python, "
        '`make_config("Pendulum", eval_every=500, hyper={"batch_size": 256})` takes settings as arguments and '
        "hyper-parameters in `hyper`.",
        "## Settings",
        _fields(TrainConfig, skip=("hyper",)),
        "## Methods",
        "All methods are settings of one agent. A model-free method takes transitions from the replay buffer. The "
        "others imagine them with the dynamics.",
        _methods(),
        "## Hyper-parameters",
        "The defaults are those of the preset `paper` for the larger tasks.",
        _fields(Hyper),
        "## Presets",
        'Small tasks are those with `network_size = "small"`: Pendulum and CartPole. Values that no preset changes are '
        "left out.",
        _presets(),
    ]
    return "\n\n".join(parts) + "\n"


def _fields(kind: type, skip: Iterable[str] = ()) -> str:
    default, types = vars(kind()), get_type_hints(kind)
    rows = [
        (f"`{name}`", _value(default[name]), meaning + _choices(types[name]))
        for name, meaning in described_fields(kind)
        if name not in skip
    ]
    return table(("name", "default", "meaning"), rows)


def _choices(kind: Any) -> str:
    """The values that a ``Literal``, alone or in a union, accepts."""
    literals = [x for x in (kind, *get_args(kind)) if get_origin(x) is Literal]
    return f" One of {_names(get_args(literals[0]))}." if literals else ""


def _methods() -> str:
    header = ("method", "transitions", "loss", "critics", "critic updates per actor update", "updates per step")
    rows = []
    for name, method in METHODS.items():
        transitions = "imagined" if method.imagines else "replay buffer"
        updates = "1" if method.update_every_step_once else "`updates_per_step`"
        critics, delay = str(method.critics), str(method.policy_delay)
        rows.append((f"`{name}`", transitions, f"`{method.loss}`", critics, delay, updates))
    return table(header, rows)


def _presets() -> str:
    hypers = {heading: vars(Hyper.preset(*preset)) for heading, preset in PRESETS.items()}
    rows = []
    for field in dataclasses.fields(Hyper):
        values = [hyper[field.name] for hyper in hypers.values()]
        if any(value != values[0] for value in values):
            rows.append((f"`{field.name}`", *map(_value, values)))
    return table(("name", *hypers), rows)


def _value(value: Any) -> str:
    return f"`{value}`" if value != () else ""


# --- tables of the code ----------------------------------------------------------------------------------------------


def csv_columns() -> str:
    """The page of CSV columns."""
    of_runs = (
        ("eval.csv", "One row per evaluation and run.", columns.EVAL),
        ("metrics.csv", "One row per evaluation and run.", columns.METRICS),
    )
    of_sweeps = (
        ("summary.csv", "One row per run.", columns.SUMMARY),
        ("curves.csv", "One row per run and evaluation.", columns.CURVES),
        ("horizon.csv", "One row per run, trajectory and horizon.", columns.HORIZON),
    )
    parts = [
        "# CSV columns",
        "A cell is empty where there is no such number. ∇ₐ is the gradient by the action. A norm |.| of a gradient is "
        "its 2-norm per sample; the mean is over the batch.",
    ]
    of_models = (
        ("models.csv", "One row per model and backend: what `check-model --csv models.csv` writes.", columns.MODELS),
    )
    for heading, files in (("Run folders", of_runs), ("Sweeps", of_sweeps), ("Models", of_models)):
        parts.append(f"## {heading}")
        for name, rows, meanings in files:
            parts += [f"### {name}", rows, table(("column", "content"), [(f"`{k}`", v) for k, v in meanings.items()])]
    parts.append("## Benchmarks")
    for name, module in BENCHMARKS.items():
        names, text = benchmark_columns(module)
        parts += [f"### {name}", f"Written by `benchmarks/{module.replace('.', '/')}.py`.", _names(names), *text]
    return "\n\n".join(parts) + "\n"


def benchmark_columns(module: str) -> tuple[tuple[str, ...], list[str]]:
    """The columns that a module of benchmarks/ names in FIELDS, and the paragraphs that it says of them."""
    with mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
        found = importlib.import_module(module)
    text: list[str] = []
    for here, below in itertools.pairwise(ast.parse(inspect.getsource(found)).body):
        match here, below:
            case ast.Assign(targets=[ast.Name(id="FIELDS")]), ast.Expr(value=ast.Constant(value=str(said))):
                text = [" ".join(part.split()) for part in ROLE.sub(r"`\1`", said).split("\n\n")]
    return found.FIELDS, text


def tasks() -> str:
    """The page of registered tasks."""
    parts = [
        "# Tasks",
        "The tasks of this project. `mage-diffsim list-tasks` shows yours too. Actions are in [-1, 1]; the range below "
        "is what they stand for, in the unit of the actuator.",
    ]
    for name in task_names():
        task = make_task(name)
        bounds = zip(task.action_names, task.action_low, task.action_high, strict=True)
        rows = [
            ("backends", ", ".join(backends_of(task))),
            ("step and horizon", f"{task.dt:g} s, {task.horizon} steps"),
            (f"state ({task.state_dim})", _names(task.state_names)),
            (f"observation ({task.obs_dim})", _names(task.obs_names)),
            (f"action ({task.action_dim})", ", ".join(f"`{n}` {low:g} to {high:g}" for n, low, high in bounds)),
            ("source", task.source),
        ]
        if task.solved_return is not None:
            rows.append(("solved at", f"mean return {task.solved_return:g}"))
        parts += [f"## {name}", table(("", ""), rows)]
    return "\n\n".join(parts) + "\n"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [tuple(header), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- API -------------------------------------------------------------------------------------------------------------


def modules(folder: str) -> list[str]:
    """The modules of one of the three packages by name, sub-packages last; those with a leading underscore are left
    out."""
    package = "mage_diffsim" if folder == "mage_diffsim" else f"mage_diffsim.{folder}"
    found = []
    for path in sorted((ROOT / folder).rglob("*.py"), key=lambda p: (len(p.parts), p)):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        inside = folder != "mage_diffsim" or parts[0] not in ("envs", "bridges")  # links in mage_diffsim/
        if inside and not any(part.startswith("_") and part != "__init__" for part in parts):
            found.append(".".join((package, *(part for part in parts if part != "__init__"))))
    return found


def api(name: str, folder: str) -> str:
    """One page of the API: every module of a package."""
    package = "mage_diffsim" if folder == "mage_diffsim" else f"mage_diffsim.{folder}"
    parts = [f"# API of {'the learner' if name == 'learner' else name}", f"The modules of `{package}`."]
    parts += [f"::: {module}" for module in modules(folder)]
    return "\n\n".join(parts) + "\n"
