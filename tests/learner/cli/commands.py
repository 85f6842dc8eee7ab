"""What tests of the ``mage-diffsim`` command share: a small task, its flags, and exit codes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from mage_diffsim.cli import main

TASK_FILE = """
from mage_diffsim.envs.tasks.pendulum import Pendulum

class Short(Pendulum):
    name = "Short"
    horizon = 6
"""
TINY = shlex.split("""
    --preset cpu --steps 60 --eval-every 20 --eval-episodes 3 --gradient-episodes 1 --checkpoint-every 20
    --warmup-steps 30 --batch-size 16 --updates-per-step 1 --actor-hidden 8 --critic-hidden 8 --ensemble-hidden 8
    --model-batches 2 --model-batch-size 16
""")


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
