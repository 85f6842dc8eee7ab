"""The ``mage-diffsim`` command: train, eval, list-tasks, check-task, check-model, doctor.

Exit codes: 0 done; 1 a check of ``check-task`` or ``check-model`` failed; 2 something given is not accepted, with one
sentence on stderr, or tyro's box where a flag cannot be read; 130 interrupted; 141 nobody reads the output any more, as
after ``| head``.
Everything heavy is imported after the arguments have been read.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mage_diffsim import __version__
from mage_diffsim.commands.arguments import PROGRAM, parse
from mage_diffsim.commands.ending import exit_code
from mage_diffsim.commands.evaluate import Eval, evaluate
from mage_diffsim.commands.models import CheckModel, check_model_command
from mage_diffsim.commands.output import check_writable, make_console, write_json
from mage_diffsim.commands.tasks import CheckTask, ListTasks, check_task_command, list_tasks
from mage_diffsim.commands.train import train_command
from mage_diffsim.errors import unknown_name


@dataclass(frozen=True)
class Doctor:
    """What is installed, and which physics backends and bridges work."""

    json: Path | None = None
    """Also write the report to this file."""


def doctor_command(options: Doctor) -> int:
    """Print what is installed and works; returns the exit code."""
    from mage_diffsim import doctor

    check_writable(options.json)
    report = doctor.report()
    make_console().print(doctor.render(report))
    write_json(options.json, report)
    return 0


@dataclass(frozen=True)
class Command:
    """One word after ``mage-diffsim``."""

    help: str
    run: Callable[..., int]
    """Takes the options; those of ``train`` depend on the task, so it takes its arguments unread, and when the command
    began."""
    options: type | None = None


COMMANDS = {
    "train": Command("train a method on a task, or go on with a training", train_command),
    "eval": Command("run the trained policies of a run folder", evaluate, Eval),
    "list-tasks": Command("the registered tasks and their physics backends", list_tasks, ListTasks),
    "check-task": Command("check a task of your own, gradients included", check_task_command, CheckTask),
    "check-model": Command(
        "what backends make of MJCF models: coverage, errors, speed", check_model_command, CheckModel
    ),
    "doctor": Command("what is installed and what works", doctor_command, Doctor),
}

USAGE = (
    f"usage: {PROGRAM} COMMAND [OPTIONS]\n\n"
    + "".join(f"  {name:<12}{command.help}\n" for name, command in COMMANDS.items())
    + f"\n{PROGRAM} COMMAND --help lists the options of a command; {PROGRAM} --version prints the version."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code (see the module's text). Arguments that tyro refuses raise SystemExit(2)."""
    began = time.monotonic()
    arguments = list(sys.argv[1:] if argv is None else argv)
    return exit_code(PROGRAM, lambda: _run(arguments[0] if arguments else "--help", arguments[1:], began))


def _run(first: str, arguments: list[str], began: float) -> int:
    if first in ("-h", "--help"):
        print(USAGE)
        return 0
    if first == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    if first not in COMMANDS:
        raise unknown_name("command", first, COMMANDS)
    command = COMMANDS[first]
    # Read before torch is imported, so that `eval --help` answers at once.
    given = (parse(command.options, first, arguments),) if command.options else (arguments, began)

    from mage_diffsim.display import show_log
    from mage_diffsim.memory import keep_freed_memory

    keep_freed_memory()
    with show_log(lambda text: print(text, file=sys.stderr, flush=True)):
        return command.run(*given)


if __name__ == "__main__":
    sys.exit(main())
