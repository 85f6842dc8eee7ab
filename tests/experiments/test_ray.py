"""Sweeps as Ray tasks, on a Ray started by the test, against the same sweeps in processes of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time

import pytest

from mage_diffsim.checkpoints import newest_checkpoint
from mage_diffsim.errors import InputError
from mage_diffsim.experiments import ray_launcher
from mage_diffsim.experiments.cells import Cell
from mage_diffsim.experiments.launchers import LocalLauncher
from mage_diffsim.experiments.ray_launcher import RayLauncher
from mage_diffsim.experiments.rows import curve_rows, summary_rows
from mage_diffsim.experiments.sweep import check, run_cells
from mage_diffsim.experiments.sweep_display import PlainSweepDisplay
from mage_diffsim.run_folder import is_finished
from mage_diffsim.settings import make_config
from tests.experiments.sweeps import cell, without_clock
from tests.tiny import SWEPT

ray = pytest.importorskip("ray", reason="the extra sweep is not installed")
psutil = pytest.importorskip("psutil")

TASKS = """
import os, signal
from pathlib import Path
from mage_diffsim.envs.tasks.pendulum import Pendulum

class Broken(Pendulum):
    name = "Broken"
    def reset(self, n, generator):
        raise RuntimeError("the pendulum fell off")

resets = []

class Fatal(Pendulum):
    '''Kills its process in the middle of the first training.'''
    name = "Fatal"
    def reset(self, n, generator):
        resets.append(n)
        mark = Path(__file__).with_name("killed")
        if len(resets) == 15 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset(n, generator)
"""


class Recorder(PlainSweepDisplay):
    """Keeps its lines."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of one machine with two CPUs."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    file = tmp_path_factory.mktemp("tasks") / "tasks.py"
    file.write_text(TASKS)
    return file


@pytest.mark.slow
def test_a_cluster_gives_the_results_of_this_machine_after_losing_a_worker(cluster, tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tasks.parent)
    relative = {**SWEPT, "dynamics": "oracle", "backend": "torch"}
    fatal = Cell("fatal", make_config("tasks.py:Fatal", **relative))
    cells = [
        cell(SWEPT, "learned", dynamics="learned"),
        fatal,
        Cell("broken", make_config("tasks.py:Broken", **relative)),
    ]
    display = Recorder()
    launcher = RayLauncher(address=cluster.address)
    *found, fell = run_cells(cells, tmp_path / "ray", launcher=launcher, display=display)
    assert not ray.is_initialized()
    assert [o.status for o in found] == ["done", "done"] and (tasks.parent / "killed").exists()
    assert fell.status == "failed" and "the pendulum fell off" in fell.reason
    assert "fatal: its worker was lost; another goes on from the newest checkpoint" in display.lines

    expected = run_cells(cells[:2], tmp_path / "local", launcher=LocalLauncher(2), display=Recorder())
    for rows in (summary_rows, curve_rows):
        assert without_clock(rows(found)) == without_clock(rows(expected))

    def connect(*_):
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(RayLauncher, "connected", connect)
    again = run_cells(cells[:2], tmp_path / "ray", launcher=launcher, display=Recorder())
    assert summary_rows(again) == summary_rows(found)


@pytest.mark.slow
def test_an_interrupted_sweep_stops_the_ray_that_it_started(tmp_path):
    endless = Cell("endless", dataclasses.replace(cell(SWEPT).config, steps=10**6))

    class Interrupting(Recorder):
        def update(self, name, env_step, left_s=None):
            if newest_checkpoint(tmp_path / name) is not None:
                raise KeyboardInterrupt

    before = set(psutil.pids())
    with pytest.raises(KeyboardInterrupt):
        run_cells([endless], tmp_path, launcher=RayLauncher(), display=Interrupting())
    assert not ray.is_initialized()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        left = [p for p in psutil.process_iter(["name"]) if p.pid not in before and "ray" in (p.info["name"] or "")]
        if not left:
            break
        time.sleep(0.2)
    assert not left


def test_flags_choose_the_launcher(oracle_vs_learned):
    flags = oracle_vs_learned.OracleVsLearned
    assert flags(workers=3).make_launcher() == LocalLauncher(3)
    found = flags(launcher="ray", workers=3, ray_address="auto", gpus_per_cell=0.25).make_launcher()
    assert found == RayLauncher(3, "auto", 0.25) and not found.here
    assert flags(launcher="ray").make_launcher().here


@pytest.mark.parametrize(
    ("launcher", "device", "sentence"),
    [
        (RayLauncher(workers=0), "cpu", "workers is 0; accepted is 1 or more"),
        (RayLauncher(gpus_per_cell=0.0), "cpu", "gpus_per_cell is 0; accepted is a share above 0"),
        (RayLauncher(gpus_per_cell=1.5), "cpu", "gpus_per_cell is 1.5"),
        (RayLauncher(gpus_per_cell=math.inf), "cpu", "gpus_per_cell is inf"),
        (RayLauncher(address="auto"), "cuda:1", "Ray chooses a cell's GPU itself: give cuda"),
    ],
)
def test_bad_values_are_one_sentence(launcher, device, sentence, tmp_path):
    config = dataclasses.replace(cell(SWEPT).config, device=device)
    with pytest.raises(InputError, match=sentence):
        check([Cell("a", config)], tmp_path / "out", launcher=launcher)
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_answer_is_named_before_anything_is_deleted(tmp_path):
    (finished,) = run_cells([cell(SWEPT)], tmp_path, launcher=LocalLauncher(), display=Recorder())
    for fresh in (True, False):
        unreachable = RayLauncher(address="127.0.0.1:1")
        with contextlib.suppress(InputError):
            run_cells([cell(SWEPT)], tmp_path, launcher=unreachable, fresh=fresh, display=Recorder())
        assert is_finished(finished.run_dir)
    with pytest.raises(InputError, match=r"cannot use the Ray cluster at '127.0.0.1:1': "):
        run_cells([cell(SWEPT)], tmp_path / "b", launcher=RayLauncher(address="127.0.0.1:1"), display=Recorder())


@pytest.mark.parametrize(("flag", "value"), [("ray_address", "auto"), ("gpus_per_cell", 0.5)])
def test_flags_of_ray_without_ray_are_refused(oracle_vs_learned, flag, value):
    with pytest.raises(InputError, match=f"{flag} is {value} and launcher is local: give --launcher ray"):
        oracle_vs_learned.OracleVsLearned(**{flag: value}).make_launcher()


def test_a_machine_that_does_not_see_the_folder_says_so_and_touches_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    for token in (None, "another sweep's"):
        if token is not None:
            (tmp_path / ray_launcher.TOKEN).write_text(token)
        status, reason = ray_launcher._ray_task(cell(SWEPT), tmp_path, None, "this sweep's", tmp_path, None)
        assert status == "failed" and "must lie on a file system that all machines of the cluster share" in reason
    assert (tmp_path / "a" / "thesis.tex").exists()


@pytest.mark.slow
def test_gpus_that_nobody_has_are_named(cluster, tmp_path, monkeypatch):
    """The check that device cuda exists here is passed over, as on a machine with one."""
    monkeypatch.setattr("mage_diffsim.experiments.sweep.torch_device", lambda name: None)
    monkeypatch.setattr("mage_diffsim.experiments.sweep._missing", lambda cell, backend: "")
    on_gpu = Cell("a", dataclasses.replace(cell(SWEPT).config, device="cuda"))
    with pytest.raises(
        InputError, match=r"a cell asks for 0.25 GPUs, and no machine of the Ray cluster has more than 0"
    ):
        run_cells([on_gpu], tmp_path, launcher=RayLauncher(gpus_per_cell=0.25), display=Recorder())

    class Leaving(Recorder):
        def say(self, text):
            super().say(text)
            raise KeyboardInterrupt

    display = Leaving()
    with pytest.raises(KeyboardInterrupt):
        launcher = RayLauncher(address=cluster.address, gpus_per_cell=4.0)
        run_cells([on_gpu], tmp_path, launcher=launcher, display=display)
    assert display.lines == [
        "a cell asks for 4 GPUs, and no machine of the Ray cluster has more than 0: cells wait until one joins"
    ]
