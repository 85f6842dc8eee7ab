"""Where compiled code is kept when the user's folder is missing, is a file, or cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mage_diffsim.bridges.cache import usable_folder, user_cache


@pytest.fixture(autouse=True)
def _forget():
    usable_folder.cache_clear()


def test_a_missing_folder_is_made_and_nothing_is_left_in_it(tmp_path, caplog):
    wanted = tmp_path / "a" / "b"
    assert usable_folder(wanted, "what X compiles", "X_CACHE") == wanted
    assert wanted.is_dir() and not list(wanted.iterdir())
    assert not caplog.records


def places(tmp_path: Path) -> dict[str, tuple[Path | None, str]]:
    file = tmp_path / "file"
    file.touch()
    return {
        "a file": (file, f"in {file} (it is a file)"),
        "under a file": (file / "below", f"in {file}/below (Not a directory)"),
        "a file system that takes none": (Path("/proc/mage_diffsim"), "in /proc/mage_diffsim (No such file or dir"),
        "no home folder": (None, "kept (there is no home folder)"),
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses /proc")
@pytest.mark.parametrize("place", ["a file", "under a file", "a file system that takes none", "no home folder"])
def test_what_cannot_be_written_is_replaced_with_one_warning(place, tmp_path, caplog):
    wanted, said = places(tmp_path)[place]
    instead = usable_folder(wanted, "what X compiles", "X_CACHE")
    assert usable_folder(wanted, "what X compiles", "X_CACHE") == instead
    (instead / "kept").write_text("written")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert message.startswith("what X compiles cannot be kept") and said in message
    assert message.endswith(f"{instead} serves until this process ends; set X_CACHE to a folder that can be written")


def test_permissions_are_found_out_by_writing(tmp_path, monkeypatch):
    """As root everything is allowed, so the refusal is made here."""

    def refuse(*_: object, **__: object):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert usable_folder(tmp_path, "what X compiles", "X_CACHE") != tmp_path


def test_the_temporary_folder_goes_with_the_process(tmp_path):
    code = (
        "from mage_diffsim.bridges.cache import usable_folder; import os\n"
        "folder = usable_folder(None, 'x', 'X'); (folder / 'kept').touch(); print(folder, flush=True)\n"
        "if not os.fork(): raise SystemExit\n"
        "os.wait(); assert (folder / 'kept').exists()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).exists()


def test_the_users_folder_is_the_one_of_the_xdg_specification(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert user_cache() == tmp_path / "x"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert user_cache() == tmp_path / ".cache"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert user_cache() is None


WARP = """
import torch
from mage_diffsim.envs import make_physics, make_task
task = make_task("Pendulum")
physics = make_physics(task, "warp", dtype=torch.float64)
state, action = torch.tensor([[0.5, -1.0]], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)
torch.testing.assert_close(physics.step(state, action), task.step(state, action))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["WARP_CACHE_PATH", "XDG_CACHE_HOME", "HOME"])
def test_warp_compiles_wherever_its_folder_is(place, tmp_path):
    pytest.importorskip("warp")
    (tmp_path / "file").touch()
    environment = {k: v for k, v in os.environ.items() if k not in ("WARP_CACHE_PATH", "XDG_CACHE_HOME", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", WARP],
        capture_output=True,
        text=True,
        timeout=600,
        env={**environment, place: str(tmp_path / "file")},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"what Warp compiles cannot be kept in {tmp_path}/file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not done.stdout
