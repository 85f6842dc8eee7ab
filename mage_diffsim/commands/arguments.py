"""How a command's arguments are read: tyro reads them, after the names among them are checked."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import tyro

from mage_diffsim.choices import choices_of, require_choices

PROGRAM = "mage-diffsim"


def given(names: Iterable[str], arguments: Sequence[str]) -> dict[str, str]:
    """The values of those of the named flags that are given; None, and a missing value, are left to tyro."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        scan.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="?", dest=name)
    return {k: v for k, v in vars(scan.parse_known_args(arguments)[0]).items() if v not in (None, "None")}


def flag_of(argument: str) -> str:
    """The name of the flag in an argument such as ``--eval_every=5``, with hyphens and without its value."""
    return argument.partition("=")[0].removeprefix("--").replace("_", "-")


def parse(options: Any, command: str, arguments: list[str], default: Any = tyro.MISSING_NONPROP) -> Any:
    """The options that the arguments give.

    Raises:
        InputError: a value is not among its option's choices. Other mistakes are reported by tyro, with SystemExit(2).
    """
    require_choices(options, given(choices_of(options), arguments))
    return tyro.cli(
        options,
        prog=f"{PROGRAM} {command}",
        args=arguments,
        default=default,
        config=(tyro.conf.OmitArgPrefixes,),
    )
