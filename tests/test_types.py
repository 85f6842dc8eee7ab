"""What type checkers see of the installed package, from a user's script outside the repository."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

SCRIPT = """
from mage_diffsim import BatchedEnv, Task, from_jax, make_config, make_physics, train
import mage_diffsim
import mage_diffsim.envs

reveal_type(train)
reveal_type(make_config)
reveal_type(Task)
reveal_type(make_physics)
reveal_type(from_jax)
reveal_type(BatchedEnv)
reveal_type(mage_diffsim.envs.rollout)
train(1, 2, nonsense=3)
mage_diffsim.nonsense
"""
REVEALED = [
    r"TrainConfig.*Path.*TrainResult",
    r"Task.*TrainConfig",
    r"Task",
    r"Task.*device.*Physics",
    r"residuals.*Op",
    r"BatchedEnv",
    r"Physics.*initial_state: (torch._tensor.)?Tensor.*Rollout",
]
"""What each line shows of its type, in either checker's words."""


@pytest.fixture(params=["editable", "wheel"])
def interpreter(request, tmp_path) -> Path:
    """A Python that has the package: this one after the README's install, or a new one with the wheel's files."""
    if request.param == "editable":
        return Path(sys.executable)
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", "venv", {"base": tmp_path / "venv", "platbase": tmp_path / "venv"}))
    request.getfixturevalue("wheel").extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["pyright", "mypy"])
def test_a_users_type_checker_resolves_the_public_names(checker, interpreter, tmp_path):
    user = tmp_path / "project" / "user.py"
    (user.parent / "envs").mkdir(parents=True)  # a user's own folder of that name
    user.write_text(SCRIPT)
    option = "--pythonpath" if checker == "pyright" else "--python-executable"
    command = [sys.executable, "-m", checker, option, str(interpreter), user.name]
    done = subprocess.run(command, cwd=user.parent, capture_output=True, text=True, timeout=500)
    lines = [re.sub(r"^\S+?:(\d+)", r"\1", line.strip()) for line in done.stdout.splitlines()]
    revealed = [line for line in lines if "Type of" in line or "Revealed type" in line]
    assert len(revealed) == len(REVEALED), done.stdout + done.stderr
    for line, words in zip(revealed, REVEALED, strict=True):
        assert re.search(words, line), line
    rejected = {int(line.split(":")[0]) for line in lines if re.match(r"\d+:.*error", line)}
    assert rejected == {13, 14}, done.stdout
