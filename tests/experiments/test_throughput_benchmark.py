"""The clock on functions of known duration, and the script end to end on a tiny task."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import throughput as script
import torch
from throughput_sections import bridges, variants
from throughput_sections.options import Options
from throughput_sections.rows import Failed

from mage_diffsim.errors import InputError
from mage_diffsim.experiments import timing

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


class Clock:
    """A clock that only moves when told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def job(self, *seconds):
        """A function that takes these times, the last one from then on."""
        left = list(seconds)

        def run():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_times_are_warm_medians_and_the_first_call_is_apart(monkeypatch):
    clock = Clock(monkeypatch)
    found = timing.interleaved({"slow": clock.job(9.0, 1.0, 4.0, 2.0, 3.0), "fast": clock.job(0.5)}, 3, CPU)
    assert found["slow"].rounds == pytest.approx((4.0, 2.0, 3.0))
    assert found["slow"].median_s == pytest.approx(3.0) and found["slow"].p95_s == pytest.approx(4.0)
    assert found["slow"].first_s == pytest.approx(8.0) and found["fast"].first_s == pytest.approx(0.0)
    assert found["fast"].speed_against(found["slow"]) == pytest.approx(6.0)
    assert found["slow"].peak_mib > 10.0


def test_functions_take_turns(monkeypatch):
    order = []
    timing.interleaved({name: lambda n=name: order.append(n) for name in "ab"}, 2, CPU)
    assert "".join(order) == "aabb" + "abab"


def test_percentiles():
    assert timing.percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.5 and timing.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert timing.percentile([float(n) for n in range(1, 101)], 0.95) == 95.0 and math.isnan(timing.percentile([], 0.5))


def small(tmp_path, **settings):
    defaults = dict(tasks=("Pendulum",), preset="cpu", repeats=1, compile=False, threads=torch.get_num_threads())
    return Options(**(defaults | settings), out=tmp_path)


def test_the_learner_sections_measure_both_formulations(tmp_path, capsys):
    options = small(
        tmp_path,
        sections=("learner", "model", "loop", "runs"),
        methods=("mage-td3",),
        runs=(2,),
        json=tmp_path / "all.json",
    )
    script.main(options)
    with (tmp_path / "throughput.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [(r["section"], r["subject"], r["variant"], r["runs"]) for r in rows]
    assert found == [
        ("learner", "Pendulum mage-td3", "published", "1"),
        ("learner", "Pendulum mage-td3", "eager", "1"),
        ("learner", "Pendulum mage-td3", "matrix products of eager", "1"),
        ("model", "Pendulum", "published", "1"),
        ("model", "Pendulum", "eager", "1"),
        ("loop", "Pendulum", "published, sum", "1"),
        ("loop", "Pendulum", "eager", "1"),
        ("runs", "Pendulum mage-td3", "eager", "1"),
        ("runs", "Pendulum mage-td3", "eager", "2"),
    ]
    by_section = {(r["section"], r["variant"]): float(r["median_ms"]) for r in rows}
    assert all(ms > 0.0 for ms in by_section.values())
    assert by_section["learner", "matrix products of eager"] < by_section["learner", "eager"]
    # cpu preset: 2 updates an environment step, 30 batches every 25; timed again, so roughly
    expected = 2 * by_section["learner", "published"] + 30 / 25 * by_section["model", "published"]
    assert 0.1 < by_section["loop", "published, sum"] / expected < 10.0
    loop = next(r for r in rows if (r["section"], r["variant"]) == ("loop", "eager"))
    assert float(loop["ratio"]) > 0.1 and loop["against"] == "published, sum"
    written = json.loads((tmp_path / "all.json").read_text())
    assert len(written["rows"]) == len(rows) and written["hardware"]
    for name in ("summary.md", "learner.png", "model.png", "loop.png"):
        assert (tmp_path / name).stat().st_size > 500
    assert "critic gradient" in capsys.readouterr().out


@pytest.mark.slow
def test_the_other_sections_run(tmp_path, monkeypatch):
    monkeypatch.setattr(bridges, "CALLS", 3)
    options = small(tmp_path, sections=("env", "bridges", "physics", "oracles"), batches=(1, 8))
    script.main(options)
    with (tmp_path / "throughput.csv").open() as file:
        rows = list(csv.DictReader(file))
    sections = [r["section"] for r in rows]
    pytest.importorskip("jax")
    pytest.importorskip("warp")
    assert set(sections) == {"env", "bridges", "physics", "oracles"}
    assert {r["subject"] for r in rows if r["section"] == "bridges"} == {"JAX", "Warp"}
    assert "jax vjp keep" in {r["variant"] for r in rows if r["section"] == "oracles"}
    steps = [r for r in rows if r["subject"] == "Pendulum forward" and r["variant"] == "torch autograd float32"]
    assert [r["size"] for r in steps] == ["1", "8"]
    for r in steps:
        assert float(r["per_s"]) == pytest.approx(1e3 * int(r["size"]) / float(r["median_ms"]))


def test_wrong_results_are_not_timed(tmp_path, monkeypatch):
    class Wrong(variants.PublishedUpdate):
        def critic_gradient(self, *arguments):
            return 1.1 * super().critic_gradient(*arguments)

    monkeypatch.setattr(variants, "PublishedUpdate", Wrong)
    with pytest.raises(Failed, match="the critic gradients differ by"):
        script.main(small(tmp_path, sections=("learner",), methods=("mage-td3",), runs=(1,)))
    assert not (tmp_path / "throughput.csv").exists()


@pytest.mark.parametrize("name", ["throughput.py", "gradient_quality.py"])
def test_a_reader_that_goes_away_ends_a_script_quietly(name):
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, str(ROOT / "benchmarks" / name), "--help"]
    done = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True, timeout=200)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("td3",)}, "unknown method that imagines 'td3'"),
        ({"runs": (0,)}, "--runs is 0; accepted is 1 or more"),
        ({"repeats": 0}, "--repeats is 0; accepted is 1 or more"),
        ({"batches": (8, 8)}, "--batches is"),
        ({"device": "cuda:99"}, "device 'cuda:99' was asked for"),
        ({"json": Path("/no/such/folder/x.json")}, "there is no folder /no/such/folder"),
        ({"json": Path("/tmp")}, "cannot write /tmp: it is a folder; accepted is a file"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        script.main(small(tmp_path, **settings))
