"""``mage-diffsim train``: a new training, or one that goes on."""

# No `from __future__ import annotations`: tyro reads the annotations of a dataclass that is local to a function.

import argparse
import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from mage_diffsim.commands.arguments import PROGRAM, flag_of, given, parse
from mage_diffsim.errors import InputError, unknown_name

NAMED = ("task", "method", "dynamics", "reward", "loss", "preset", "ensemble")
"""Flags of ``train`` that choose among names. They are read first: they decide the defaults of all the others."""

WITH_RESUME = ("steps", "stop-after", "device", "compile", "graphs", "matmul", "tensorboard", "quiet")
"""What may stand beside ``--resume``: a run goes on with the settings it began with."""


@dataclass(frozen=True)
class Resume:
    """Go on from the newest checkpoint of a run folder, with the settings it began with."""

    resume: Path
    """The run folder."""
    steps: int | None = None
    """Environment steps per run in all; None is what the run was started with."""
    stop_after: float | None = None
    """Minutes after which the training is saved and ends again, with exit code 0; None is no limit."""
    device: str | None = None
    """Torch device from now on; None is as before. On another kind of device numbers differ in rounding."""
    compile: Literal["off", "on"] | None = None
    """Whether to compile the updates from now on; None is as before."""
    graphs: Literal["auto", "on", "off"] | None = None
    """Whether to replay updates as CUDA graphs from now on; None is as before."""
    matmul: Literal["highest", "high"] | None = None
    """Float32 matrix products from now on; None is as before."""
    tensorboard: bool = False
    """Also write TensorBoard event files to RUN_DIR/tensorboard (extra: log)."""
    quiet: bool = False
    """Print nothing but errors."""


def train_command(arguments: list[str], began: float) -> int:
    """Train anew, or go on with ``--resume``.

    Args:
        arguments: of the command.
        began: when the command began, by the monotonic clock.

    Returns:
        the exit code: 0, or 130 if it was interrupted.

    Raises:
        InputError, MissingExtra: what the flags ask for cannot be trained.
    """
    flags = {flag_of(a) for a in arguments if a.startswith("--")}
    if "resume" in flags:
        extra = sorted(flag for flag in flags - {"resume", "help"} if flag.removeprefix("no-") not in WITH_RESUME)
        if extra:
            *accepted, last = (f"--{name}" for name in WITH_RESUME)
            raise InputError(
                f"--{extra[0]} was given with --resume, which goes on with the settings of the run: "
                f"accepted beside it are {', '.join(accepted)} and {last}"
            )
        options = parse(Resume, "train", arguments)
        return _train_or_resume(options.resume, options, began, resumes=True)
    return _train_new(arguments, flags, began)


def _train_new(arguments: list[str], flags: set[str], began: float) -> int:
    from mage_diffsim.config import TrainConfig
    from mage_diffsim.display import describe
    from mage_diffsim.effects import require_effect
    from mage_diffsim.envs.physics import BACKENDS, load, require_backend
    from mage_diffsim.validation import validate

    @dataclass(frozen=True)
    class Train:
        """Train runs (seeds x lambdas) of one method on one task into a run folder.

        The values below are those of the chosen preset, task and ensemble; a flag overrides one of them.
        """

        config: TrainConfig
        out: Path | None = None
        """Run folder to create; None is runs/<task>_<method>_<dynamics>_<timestamp>."""
        resume: Path | None = None
        """Go on with this run folder instead; only --steps, --stop-after, --device, --compile, --graphs, --matmul,
        --tensorboard and --quiet may stand beside it."""
        stop_after: float | None = None
        """Minutes after which the training is saved and ends, with exit code 0; --resume goes on. None is no limit."""
        tensorboard: bool = False
        """Also write TensorBoard event files to RUN_DIR/tensorboard (extra: log)."""
        quiet: bool = False
        """Print nothing but errors."""

    options = parse(Train, "train", arguments, default=Train(_defaults(arguments)))
    config = options.config
    task = config.make_task()
    validate(config)
    # Only an oracle uses backend and derivative, but a name that means nothing is a mistake in any case.
    of_oracle = config.backend if flags & {"backend", "derivative"} else None
    for backend in (of_oracle, config.environment):
        if backend is not None:
            require_backend(task, backend)
    sources = load(BACKENDS[config.backend]).derivatives_of(task) if "derivative" in flags else ()
    if sources and config.derivative not in (None, *sources):
        raise unknown_name(f"derivative source of backend {config.backend}", config.derivative, sources)
    unused = require_effect(config, [flag.removeprefix("no-").replace("-", "_") for flag in sorted(flags)])
    notes = [f"note: --{name.replace('_', '-')} has no effect, as {reason}" for name, reason in unused.items()]
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    out = options.out or Path("runs") / f"{task.name}_{config.method}_{config.dynamics}_{now}"
    return _train_or_resume(out, options, began, config, banner=[*describe(config, task), *notes])


def _defaults(arguments: list[str]) -> Any:
    """The configuration that the named flags alone amount to.

    Raises:
        InputError: one of the names is unknown, or they do not go together.
    """
    from mage_diffsim.envs.identity.options import parse_options
    from mage_diffsim.settings import make_config

    found: dict[str, Any] = given(NAMED, arguments)
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--task-options", "--task_options", nargs="*")
    if (options := scan.parse_known_args(arguments)[0].task_options) is not None:
        found["task_options"] = parse_options(options)
    return make_config(found.pop("task", "Pendulum"), shared=found)  # what has no effect is told of all flags together


def _minutes_left(stop_after: float | None, began: float) -> float | None:
    """What is left of a limit that counts from ``began``, by the monotonic clock: a moment where it has passed.

    Raises:
        InputError: ``stop_after`` is no number of minutes.
    """
    from mage_diffsim.validation import require_minutes

    require_minutes(stop_after)
    return None if stop_after is None else max(stop_after - (time.monotonic() - began) / 60.0, 1e-9)


def _train_or_resume(
    run_dir: Path, options: Any, began: float, config: Any = None, resumes: bool = False, banner: Sequence[str] = ()
) -> int:
    """Train ``config`` into the folder, or go on with what is there."""
    from mage_diffsim.checkpoints import newest_checkpoint, step_of
    from mage_diffsim.display import TrainingDisplay, describe
    from mage_diffsim.files import as_path
    from mage_diffsim.run_folder import checkpoint_to_resume
    from mage_diffsim.session import CHANGEABLE, Progress, Sink, resume, resumed_config, train

    run_dir = as_path(run_dir)
    if resumes:
        changed = {name: getattr(options, name) for name in CHANGEABLE}
        config = resumed_config(run_dir, **changed)
        if checkpoint_to_resume(run_dir) is None:
            print(f"{PROGRAM}: {run_dir} has no checkpoint yet and starts over", file=sys.stderr)
        with contextlib.suppress(InputError):  # which resume reports
            banner = describe(config, config.make_task())
    console = Console(quiet=options.quiet)
    if options.quiet:
        logging.getLogger("mage_diffsim").setLevel(logging.WARNING)
    warmup = config.hyper.warmup_steps
    if config.steps < warmup:
        text = (
            f"note: nothing is learned in {config.steps} steps, as the first {warmup} are the warm-up (--warmup-steps)"
        )
        console.print(text, highlight=False, soft_wrap=True)
    sinks: list[Sink] = []
    told = False

    def tell_saved(step: int) -> None:
        nonlocal told
        told = True
        print(f"{PROGRAM}: saved at step {step}: {PROGRAM} train --resume {run_dir}", file=sys.stderr, flush=True)

    def follow(progress: Progress) -> None:
        display.progress(progress)
        if progress.saved:  # told here, as a SIGTERM that came ends the process next
            tell_saved(progress.env_step)

    left = _minutes_left(options.stop_after, began)
    try:
        with contextlib.ExitStack() as stack:
            if options.tensorboard:
                from mage_diffsim.tensorboard import TensorBoardSink

                sinks.append(stack.enter_context(contextlib.closing(TensorBoardSink(run_dir / "tensorboard"))))
            display = stack.enter_context(TrainingDisplay(console, run_dir, config.steps, banner))
            sinks.append(display.evaluation)
            if resumes:
                result = resume(run_dir, **changed, progress=follow, sinks=sinks, stop_after=left)
            else:
                result = train(config, run_dir, progress=follow, sinks=sinks, stop_after=left)
    except KeyboardInterrupt:
        if not (run_dir / "config.json").is_file():
            print(f"{PROGRAM}: interrupted before the run folder was written", file=sys.stderr)
        elif not told:
            saved = newest_checkpoint(run_dir)
            tell_saved(step_of(saved) if saved else 0)
        return 130
    if result.finished:
        console.print(f"trained to step {config.steps}: {run_dir}", highlight=False, markup=False, soft_wrap=True)
    return 0
