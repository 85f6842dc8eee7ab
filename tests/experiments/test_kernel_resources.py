"""The table of kernels' resources: reading of reports, and the refusals. NVIDIA's tools are not needed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import kernel_resources as script
import pytest

pytest.importorskip("warp")
pytest.importorskip("mujoco")

REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Function properties for forward
    1632 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 242 registers, used 0 barriers, 1632 bytes cumulative stack size
"""


def test_a_row_has_the_numbers_of_the_report_and_of_the_instructions():
    counts = Counter({"FFMA": 60, "FADD": 4, "LDL": 3, "STL": 2, "BRA": 1, "MOV": 1, "EXIT": 57})
    assert script.row(REPORT, 1216, counts) == ["242", "1632", "1216", "2", "64", "5", "1"]
    assert script.row(REPORT, 1216, None) == ["242", "1632", "1216", "-", "-", "-", "-"]


def test_without_ptxas_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(script, "tool", lambda name: None)
    assert script.main(script.Options) == 2
    assert "there is no ptxas on the PATH: pip install nvidia-cuda-nvcc brings a new one" in (capsys.readouterr().err)


FALSE_TOOL = "#!/bin/sh\necho 'ptxas kernel.ptx, line 9; fatal   : Unsupported .version 9.4' >&2\nexit 255\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in for ptxas is a shell script")
def test_what_ptxas_refuses_is_one_sentence(tmp_path, monkeypatch, capsys):
    """As an older ptxas does."""
    ptxas = tmp_path / "ptxas"
    ptxas.write_text(FALSE_TOOL)
    ptxas.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.main(lambda: script.Options(tasks=("InvertedPendulum",))) == 2
    sentence = f"{ptxas} does not compile InvertedPendulum's forward (ptxas kernel.ptx, line 9; fatal   : Unsupported"
    shown = capsys.readouterr().err
    assert sentence in shown and "pip install nvidia-cuda-nvcc" in shown


def test_a_task_without_a_model_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(script, "tool", lambda name: name)
    assert script.main(lambda: script.Options(tasks=("Pendulum",))) == 2
    assert "task Pendulum has no MuJoCo model" in capsys.readouterr().err


def test_help_names_the_flags():
    command = [sys.executable, Path(script.__file__), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(flag in shown for flag in ("--tasks", "--dtype", "--arch"))
