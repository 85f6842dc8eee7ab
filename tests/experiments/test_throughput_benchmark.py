"""The clock on functions of known duration, and the script end to end on a tiny task."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import throughput as script
import torch
from throughput_sections import bridges, page, physics, products, steps, variants
from throughput_sections.options import Options
from throughput_sections.rows import Row

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


def test_no_round_begins_when_the_time_is_over(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(timing.time, "monotonic", lambda: clock.now)
    for until, expected in ((25.0, 6), (0.0, 3)):  # two warm-ups before, of four seconds each
        clock.now = 0.0
        assert len(timing.interleaved({"four": clock.job(4.0)}, 6, CPU, until=until + 8.0)["four"].rounds) == expected


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


def test_wrong_results_are_not_timed(tmp_path, monkeypatch, capsys):
    class Wrong(variants.PublishedUpdate):
        def critic_gradient(self, *arguments):
            return 1.1 * super().critic_gradient(*arguments)

    monkeypatch.setattr(variants, "PublishedUpdate", Wrong)
    assert script.main(small(tmp_path, sections=("learner",), methods=("mage-td3",), runs=(1,))) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "learner failed (Failed): the critic gradients differ by" in shown
    assert not (tmp_path / "throughput.csv").exists()


def one_row(**fields):
    return Row(**dict(section="model", subject="Pendulum", variant="eager", runs=1, size=1, unit="batch", median_ms=2.0,
                      p95_ms=3.0, per_s=500.0, ratio=math.nan, against="", first_s=0.0, faults=0.0, peak_mib=1.0,
                      check="") | fields)  # fmt: skip


def test_a_section_that_fails_leaves_its_rows_and_the_others(tmp_path, monkeypatch, capsys):
    def broken(options, console):
        yield one_row()
        raise RuntimeError("the card fell off")

    def sound(options, console):
        yield one_row(section="env")

    monkeypatch.setitem(script.SECTIONS, "model", broken)
    monkeypatch.setitem(script.SECTIONS, "env", sound)
    assert script.main(small(tmp_path, sections=("model", "env"), quick=True)) == 1
    with (tmp_path / "throughput.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["section"] for r in rows] == ["model", "env"] and rows[0]["hardware"]
    sentence = "model failed (RuntimeError): the card fell off"
    assert sentence in capsys.readouterr().out and sentence in (tmp_path / "summary.md").read_text()


def test_sections_share_the_time_that_is_left(tmp_path, monkeypatch, capsys):
    now, allowed = [100.0], {}
    monkeypatch.setattr(script.time, "monotonic", lambda: now[0])

    def section(name, taken):
        def measured(options, console):
            allowed[name] = options.until - options.began
            assert not options.used_up(0.5)
            now[0] += taken
            assert options.used_up() == (taken > allowed[name])
            yield one_row(section=name)

        return measured

    for name, taken in (("steps", 140.0), ("physics", 10.0), ("bridges", 200.0)):
        monkeypatch.setitem(script.SECTIONS, name, section(name, taken))
    assert script.main(small(tmp_path, sections=("bridges", "physics", "steps"), minutes=4.0)) == 0
    assert allowed == pytest.approx({"steps": 240.0 * 5 / 8, "bridges": 100.0 / 3})
    assert "physics is left out for want of time" in capsys.readouterr().out


class TestSteps:
    """The section that looks at whole environment steps."""

    def test_parts_of_a_step_add_up(self, tmp_path, capsys):
        options = small(tmp_path, sections=("steps",), runs=(1, 2), repeats=2, quick=True)
        assert script.main(options) == 0
        with (tmp_path / "throughput.csv").open() as file:
            rows = list(csv.DictReader(file))
        by_part = {r["subject"].removeprefix("Pendulum learned "): r for r in rows if r["runs"] == "2"}
        assert {*by_part} >= {"update", "model batch", "collection", "step", "evaluation", "projected training"}
        ms = {part: float(r["median_ms"]) for part, r in by_part.items()}
        assert ms["step"] == pytest.approx(ms["collection"] + 2 * ms["update"], rel=1e-6)
        assert ms["step with models"] == pytest.approx(ms["step"] + 30 / 25 * ms["model batch"], rel=0.5, abs=1.0)
        expected = 100_000 * ms["step with models"] + 100 * ms["evaluation"]
        assert ms["projected training"] == pytest.approx(expected)
        update = by_part["update"]
        gflop, gbytes = (float(update["check"].split()[i]) for i in (0, 3))
        assert float(update["tflop_s"]) == pytest.approx(2 * gflop / ms["update"], rel=1e-2)
        assert float(update["gb_s"]) == pytest.approx(2e3 * gbytes / ms["update"], rel=1e-2)
        assert len(capsys.readouterr().out.splitlines()) < 60

    def test_products_are_counted(self):
        a, b, bias = torch.ones(3, 4, 5), torch.ones(3, 5, 6), torch.ones(3, 1, 6)
        one, two = products.products_of(lambda: (torch.bmm(a, b), torch.baddbmm(bias, a, b)))
        assert one.flop == two.flop == 2 * 3 * 4 * 5 * 6
        assert one.bytes == two.bytes == 4 * (3 * 4 * 5 + 3 * 5 * 6 + 3 * 4 * 6)

    def test_what_fails_or_has_no_time_is_named_and_the_rest_measured(self, tmp_path, monkeypatch, capsys):
        def measured(options, case, work, *, project):
            if case.runs == 2:
                raise RuntimeError("CUDA out of memory")
            yield one_row(section="steps", subject=str(case), unit="training" if project else "step")

        monkeypatch.setattr(steps, "measure_case", measured)
        monkeypatch.setattr(steps, "work_of_update", lambda *_: (1.0, 1.0))
        monkeypatch.setattr(Options, "used_up", lambda self, share=1.0: share < 1.0)
        assert script.main(small(tmp_path, sections=("steps",), runs=(1, 2, 3), compile=True)) == 1
        shown = " ".join(capsys.readouterr().out.split())
        assert "Pendulum learned eager, float32 R=2 failed (RuntimeError): CUDA out of memory" in shown
        assert "left out for want of time: Pendulum learned compiled, float32 R=2;" in shown
        with (tmp_path / "throughput.csv").open() as file:
            units = {r["subject"]: r["unit"] for r in csv.DictReader(file)}
        assert units == {f"Pendulum learned eager, float32 R={r}": u for r, u in ((1, "training"), (3, "step"))}

    def test_a_gpu_measures_what_is_expected_of_one(self, monkeypatch):
        monkeypatch.setattr(Options, "on_a_gpu", True)
        cases = {(c.subject, c.variant, c.runs) for c in steps.cases_of(Options(device="cuda", quick=True))}
        fused, plain = "compiled + captured", "captured"
        assert cases >= {("HalfCheetah learned", f"{fused}, TF32", r) for r in (1, 5)}
        assert cases >= {("HalfCheetah learned", f"{plain}, float32", r) for r in (1, 5, 20)}
        assert cases >= {("Pendulum learned", f"{plain}, float32", r) for r in (1, 8, 32)}
        assert cases >= {
            ("HalfCheetah learned", f"{fused}, float32", 5),
            ("HalfCheetah warp oracle", f"{fused}, TF32", 5),
        }
        assert ("HalfCheetah learned", "eager, float32", 1) in cases
        assert Options(device="cuda", quick=True).seconds() == 300.0


class TestPhysicsOnAGpu:
    """How --quick measures physics there, tried on a CPU."""

    def shown(self, tmp_path, monkeypatch, capsys, **settings):
        monkeypatch.setattr(Options, "on_a_gpu", True)
        code = script.main(small(tmp_path, sections=("physics",), quick=True, batches=(8, 2048), **settings))
        rows = []
        if (tmp_path / "throughput.csv").exists():
            with (tmp_path / "throughput.csv").open() as file:
                rows = [(r["subject"], r["variant"], int(r["size"])) for r in csv.DictReader(file)]
        return code, rows, " ".join(capsys.readouterr().out.split())

    def test_every_backend_is_measured_alone_at_its_default_source(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(physics.LARGEST, "jax", 8)
        code, rows, _ = self.shown(tmp_path, monkeypatch, capsys, backends=("torch", "jax"))
        torch_rows = [(f"Pendulum {w}", "torch autograd float32", n) for n in (8, 2048) for w in ("forward", "VJP")]
        assert code == 0
        assert rows == torch_rows + [(f"Pendulum {w}", "jax vjp float32", 8) for w in ("forward", "VJP")]

    def test_what_fails_or_has_no_time_is_named(self, tmp_path, monkeypatch, capsys):
        def broken(options, task, sources, n):
            raise RuntimeError("too many worlds")

        monkeypatch.setattr(physics, "measure_sources", broken)
        monkeypatch.setattr(physics, "SLOW_TO_COMPILE", ("jax",))
        monkeypatch.setattr(Options, "used_up", lambda self, share=1.0: share < 1.0)
        code, rows, shown = self.shown(tmp_path, monkeypatch, capsys, backends=("torch", "jax"))
        assert code == 1 and not rows
        assert "Pendulum torch failed (RuntimeError): too many worlds" in shown
        assert "left out for want of time: Pendulum jax" in shown

    def test_tasks_and_worlds(self, monkeypatch):
        monkeypatch.setattr(Options, "on_a_gpu", True)
        options = Options(device="cuda", quick=True).of("physics")
        assert options.task_names() == ("HalfCheetah", "Ant") and options.batch_sizes() == (1024, 8192, 65536)
        assert not options.jacobians
        assert Options(device="cuda", quick=True, tasks=("Ant",)).of("physics").task_names() == ("Ant",)
        options = Options(device="cuda", quick=True).of("kernels")
        assert options.task_names() == ("HalfCheetah",) and options.methods == ("mage-td3",)
        assert list(Options(device="cuda", quick=True).section_names()) == ["steps", "bridges", "physics", "kernels"]


def test_every_source_and_number_of_worlds_gets_the_same_states():
    state, action = physics.visited("Pendulum")
    assert state.shape == (1024, 2) and action.shape == (1024, 1) and state.std(dim=0).min() > 0.1
    assert physics.visited("Pendulum")[0] is state


class TestPage:
    def test_every_section_stays_on_a_page(self):
        many = [one_row(subject=f"thing {n}") for n in range(100)]
        worlds = [one_row(section="physics", subject=f"Ant {w}", size=n) for n in range(20) for w in ("forward", "VJP")]
        shown = page.page("a card", [("model", many), ("physics", worlds), ("env", many[:3])], ["model failed: why"])
        lines = shown.splitlines()
        assert len(lines) == page.LINES and lines[0] == "a card" and lines[-1] == "model failed: why"
        (cut,) = (line for line in lines if line.startswith("..."))
        left = int(cut.split()[1])
        assert left + sum(line.startswith("thing") for line in lines) == 103

    def test_a_line_holds_a_training_and_a_line_holds_a_size(self):
        parts = {"update": 0.8, "collection": 0.5, "step": 8.5, "projected training": 3.6e6}
        rows = [one_row(subject=f"Ant learned {k}", runs=5, median_ms=ms, peak_mib=500.0) for k, ms in parts.items()]
        header, line = page.block_of("steps", rows)
        found = dict(zip(re.split(" {2,}", header), re.split(" {2,}", line), strict=True))
        assert found["steps, ms"] == "Ant learned" and found["MiB/run"] == "100"
        assert [found[k] for k in ("update", "batch", "step", "100k h")] == ["0.8", "-", "8.5", "1"]
        rows = [one_row(subject=f"Ant {part}", size=64, median_ms=ms) for part, ms in (("forward", 1.0), ("VJP", 3.0))]
        assert page.block_of("physics", rows)[1].split() == ["Ant", "eager", "64", "1", "3", "-", "500"]
        rows = [one_row(section="kernels", variant="critic", check="36 products, 50 other kernels")]
        assert page.block_of("kernels", rows)[1].split(maxsplit=3)[3] == "36 products, 50 other kernels"


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
        ({"minutes": 0.0}, "--minutes is 0.0; accepted is a number above 0"),
        ({"batches": (8, 8)}, "--batches is"),
        ({"device": "cuda:99"}, "device 'cuda:99' was asked for"),
        ({"json": Path("/no/such/folder/x.json")}, "there is no folder /no/such/folder"),
        ({"json": Path("/tmp")}, "cannot write /tmp: it is a folder; accepted is a file"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        script.main(small(tmp_path, **settings))
