"""The script to run first on a GPU, with an interpreter that only notes what it is asked, and its page."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gpu_report
import pytest
from throughput_sections import steps
from throughput_sections.options import Options
from throughput_sections.rows import FIELDS, Row

ROOT = Path(__file__).resolve().parents[2]
STUB = """#!/bin/sh
echo "$*" >> {calls}
echo "$OMP_NUM_THREADS" >> {calls}.threads
case "$*" in
  *gpu_report.py*) exec {python} "$@" ;;
  *"import xdist"*) exit 1 ;;
  *"import pytest"*) exit ${{PYTEST:-0}} ;;
  *throughput.py*) sleep ${{SLOW:-0}}; exit ${{THROUGHPUT:-0}} ;;
  *size*paper*) mkdir -p {runs}/half_cheetah; echo a > {runs}/half_cheetah/curves.csv ;;
esac
echo "29 passed"
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs the script with the stub; returns what it ended with, and what the interpreter was asked."""
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(STUB.format(calls=calls, python=sys.executable, runs=tmp_path / "runs"))
    stub.chmod(0o755)

    def run(*folder: str, **variables: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        settings = os.environ | {"PYTHON": str(stub), "RUNS": str(tmp_path / "runs")} | variables
        command = [ROOT / "benchmarks" / "gpu_check.sh", *folder]
        done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=200)
        return done, calls.read_text().splitlines()

    return run


def test_everything_runs_within_its_time_and_leaves_its_tables(check, tmp_path):
    done, calls = check("out folder", TESTS="tests/bridges tests/envs")
    assert done.returncode == 0, done.stderr
    _, _, tests, throughput, comparison, half_cheetah, _ = calls
    assert tests == "-m pytest -q -m gpu --tb=line tests/bridges tests/envs"
    assert "--quick --device cuda" in throughput and 3.0 < float(throughput.split()[-1]) < 5.0
    assert "--device cuda --workers 4 --size smoke" in comparison
    assert "--device cuda --workers 4 --tasks HalfCheetah" in half_cheetah and "--size paper" in half_cheetah
    assert 5.0 < float(half_cheetah.split("--stop-after ")[1]) < 8.0
    assert (tmp_path / "out folder" / "half_cheetah" / "curves.csv").exists()
    page = (tmp_path / "out folder" / "summary.md").read_text()
    assert page.count(" passed ") >= 4 and "29 passed" in page and page.splitlines()[4] in done.stdout


def test_a_step_that_fails_does_not_stop_the_others(check):
    done, calls = check(THROUGHPUT="3")
    assert done.returncode == 1 and len(calls) == 7
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("throughput  "))
    assert "FAILED, exit code 3" in line


def test_without_the_extra_dev_the_tests_are_skipped_which_is_said_and_no_failure(check):
    done, calls = check(PYTEST="1")
    assert done.returncode == 0 and not any("-m pytest" in call for call in calls)
    lines = [line for line in done.stdout.splitlines() if line.startswith("tests")]
    assert len(lines) == 2 and "skipped" in lines[1]
    assert all(line.endswith("the extra dev is not installed: pip install -e '.[dev,cuda]'") for line in lines)


def test_a_rehearsal_takes_one_thread_and_writes_beside_the_runs(check, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    check(DEVICE="cpu")
    assert set((tmp_path / "calls.threads").read_text().split()) == {"1"}
    assert (tmp_path / "runs" / "report" / "cpu" / "summary.md").exists()
    check(DEVICE="cpu", OMP_NUM_THREADS="2")
    assert set((tmp_path / "calls.threads").read_text().split()) == {"1", "2"}


def test_what_an_earlier_call_measured_is_not_shown_again(check, tmp_path):
    table = tmp_path / "out folder" / "throughput" / "throughput.csv"
    table.parent.mkdir(parents=True)
    with table.open("w") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerow(vars(row("physics", "Ant VJP", "warp adjoint float32", 1, 1.0)))
    done, _ = check("out folder", THROUGHPUT="1")
    assert done.stdout.count("not measured") == len(gpu_report.TARGETS)


def test_a_step_that_hangs_is_cut(check):
    done, calls = check(MINUTES="0.1", SLOW="60")
    assert done.returncode == 1 and len(calls) == 7
    assert "cut at its time limit" in done.stdout


def row(section: str, subject: str, variant: str, runs: int, median_ms: float) -> Row:
    values = dict.fromkeys(FIELDS, 0.0) | dict(check="", against="", unit="", hardware="a card", size=65536)
    values |= dict(section=section, subject=subject, variant=variant, runs=runs, median_ms=median_ms, per_s=2e7)
    return Row(**values)


def test_every_target_is_found_in_what_is_measured_on_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Options, "on_a_gpu", True)
    parts = {"update": 0.5, "model batch": 0.5, "step with models": 9.0}
    rows = [row("physics", "Ant VJP", "warp adjoint float32", 1, 1.0)] + [
        row("steps", f"{case.subject} {part}", case.variant, case.runs, ms)
        for case in steps.cases_of(Options(device="cuda", quick=True))
        for part, ms in parts.items()
    ]
    rows.append(replace(rows[-1], unit="training", median_ms=7.2e6, size=100_000))
    (tmp_path / "throughput").mkdir()
    with (tmp_path / "throughput" / "throughput.csv").open("w") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(vars(r) for r in rows)
    (tmp_path / "status.tsv").write_text("tests\t0\t80\t29 passed\nthroughput\t0\t240\tWritten\n")
    assert gpu_report.report(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = {t.what: line.split()[-1] for t in gpu_report.TARGETS for line in lines if line.startswith(t.what)}
    assert list(verdicts.values()) == ["missed"] + 4 * ["reached"] + ["missed"] + 2 * ["reached"]
    assert "a card" in lines[0] and lines[-1].endswith("2 h for 100000 steps")


def test_what_was_not_measured_is_said(tmp_path, capsys):
    (tmp_path / "status.tsv").write_text("tests\t124\t120\t12 passed\n")
    assert gpu_report.report(tmp_path) == 1
    shown = capsys.readouterr().out
    assert shown.count("not measured") == len(gpu_report.TARGETS) and "cut at its time limit" in shown
