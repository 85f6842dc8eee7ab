"""What tests of the ``mage-diffsim`` command share: a small task, its flags, and exit codes."""

from __future__ import annotations

import re
from pathlib import Path

from mage_diffsim.cli import main
from tests.tiny import RUN, flags

TASK_FILE = """
from mage_diffsim.envs.tasks.pendulum import Pendulum

class Short(Pendulum):
    name = "Short"
    horizon = 6
"""
TINY = flags(RUN | {"eval_episodes": 3})


def run(*argv: object) -> int:
    """Exit code of the command, whichever way it ends."""
    try:
        return main([str(a) for a in argv])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def assert_one_sentence(capsys, pattern: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"mage-diffsim: {pattern}\n", err), err
    assert "\n" not in err[:-1]
