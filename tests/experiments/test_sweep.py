"""Sweeps: what is refused, what is resumed, what is independent of what."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import tyro

from mage_diffsim.checkpoints import newest_checkpoint
from mage_diffsim.cli import main as cli_main
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.command import main
from mage_diffsim.experiments.launchers import LocalLauncher
from mage_diffsim.experiments.rows import curve_rows, summary_rows
from mage_diffsim.experiments.sweep import check, run_cells
from mage_diffsim.experiments.sweep_display import PlainSweepDisplay
from mage_diffsim.run_folder import is_finished
from mage_diffsim.session import Progress, train
from mage_diffsim.settings import make_config
from tests.experiments.sweeps import cell, without_clock
from tests.tiny import SWEPT

ROOT = Path(__file__).resolve().parents[2]


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


def train_until(config, run_dir, env_step):
    """Train as a worker would and die at this step."""

    def stop(progress: Progress) -> None:
        if progress.env_step == env_step:
            raise Killed

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.raises(Killed):
            train(config, run_dir, progress=stop)
    finally:
        torch.set_num_threads(threads)


# --- what is trained -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_sweeps(tmp_path_factory):
    """The same cells trained straight by one worker, and by two workers after one cell was killed in between.

    The second sweep also has a cell that breaks.
    """
    cells = [cell(SWEPT, "learned", dynamics="learned"), cell(SWEPT, "oracle")]
    file = tmp_path_factory.mktemp("task") / "broken.py"
    file.write_text(
        "from mage_diffsim.envs.tasks.pendulum import Pendulum\n"
        "class Broken(Pendulum):\n"
        "    name = 'Broken'\n"
        "    def reset(self, n, generator):\n"
        "        raise RuntimeError('the pendulum fell off')\n"
    )
    broken = Cell("broken", make_config(f"{file}:Broken", **{**SWEPT, "dynamics": "oracle"}))
    straight, killed = (tmp_path_factory.mktemp(name) for name in ("straight", "killed"))
    train_until(cells[0].config, killed / "learned", 47)
    lines = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", lines)
        outcomes = [
            run_cells(cells, straight, launcher=LocalLauncher(1), display=PlainSweepDisplay()),
            run_cells([broken, *cells], killed, launcher=LocalLauncher(2), display=PlainSweepDisplay()),
        ]
    return cells, (straight, killed), outcomes, lines.getvalue()


def test_an_interrupted_sweep_ends_like_an_uninterrupted_one(two_sweeps):
    _, _, (straight, (_, *killed)), lines = two_sweeps
    assert "learned: goes on from step 40" in lines
    assert without_clock(summary_rows(straight[:1])) == without_clock(summary_rows(killed[:1]))
    assert without_clock(curve_rows(straight[:1])) == without_clock(curve_rows(killed[:1]))


def test_the_number_of_workers_does_not_change_the_summary(two_sweeps):
    _, _, (one, (_, *two)), _ = two_sweeps
    assert without_clock(summary_rows(one)) == without_clock(summary_rows(two))
    rows = summary_rows(one)
    assert [(r["dynamics"], r["backend"], r["seed"]) for r in rows] == [
        ("learned", "", 0),
        ("learned", "", 1),
        ("oracle", "torch", 0),
        ("oracle", "torch", 1),
    ]
    assert rows[0]["final_return"] != rows[1]["final_return"], "seeds must differ"


def test_the_mean_return_is_that_of_evaluations_after_the_first_update(tmp_path):
    often = cell(SWEPT, eval_every=5)
    train(often.config, tmp_path / "a")
    outcomes = [Outcome(often, tmp_path / "a", "done", "")]
    curves = curve_rows(outcomes)
    assert any(r["loss_critic"] is None for r in curves if r["env_step"] > 0), "or it says nothing"
    for row in summary_rows(outcomes):
        trained = [r["return_mean"] for r in curves if r["seed"] == row["seed"] and r["loss_critic"] is not None]
        assert row["mean_return"] == pytest.approx(sum(trained) / len(trained))


def test_a_finished_sweep_trains_nothing_again(two_sweeps, capsys):
    cells, (folder, _), outcomes, _ = two_sweeps
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    again = run_cells(cells, folder, launcher=LocalLauncher(2), display=PlainSweepDisplay())
    assert [o.status for o in again] == ["done", "done"]
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert capsys.readouterr().out.count("already finished") == 2
    assert summary_rows(again) == summary_rows(outcomes[0])


def test_another_configuration_is_refused_with_what_differs_unless_fresh(two_sweeps):
    cells, (folder, _), _, _ = two_sweeps
    config = dataclasses.replace(cells[1].config, steps=80)
    config = dataclasses.replace(config, hyper=dataclasses.replace(config.hyper, batch_size=16))
    changed = [Cell("oracle", config)]
    with pytest.raises(InputError, match=r"oracle was trained with steps 60 and not 80, hyper.batch_size 8 and not 16"):
        check(changed, folder, launcher=LocalLauncher(1))
    assert check(changed, folder, launcher=LocalLauncher(1), fresh=True) == {}


def test_a_cell_of_an_older_version_is_refused_as_such_unless_fresh(tiny, tmp_path):
    old = cell(tiny, steps=2, gradient_episodes=0)
    train(old.config, tmp_path / old.name)
    config = tmp_path / old.name / "config.json"
    config.write_text(config.read_text().replace('"environment": "torch"', '"environment": null'))
    checkpoints = tmp_path / old.name / "checkpoints"
    shutil.rmtree(checkpoints)
    checkpoints.mkdir()
    torch.save({"version": 3}, checkpoints / "step_0000000002.pt")
    with pytest.raises(InputError, match=r"version 3 or older, and this mage_diffsim reads version 4: .* --fresh"):
        check([old], tmp_path, launcher=LocalLauncher(1))
    assert check([old], tmp_path, launcher=LocalLauncher(1), fresh=True) == {}


def test_settings_that_change_no_number_are_no_other_configuration(two_sweeps):
    cells, (folder, _), _, _ = two_sweeps
    eager, elsewhere = (
        Cell(cells[1].name, dataclasses.replace(cells[1].config, **changed))
        for changed in ({"graphs": "off"}, {"environment": "jax"})
    )
    assert check([eager], folder, launcher=LocalLauncher(1)) == {}
    with pytest.raises(InputError, match="was trained with environment torch and not jax"):
        check([elsewhere], folder, launcher=LocalLauncher(1))


def test_a_real_environment_that_is_not_installed_skips_its_cells_and_an_unknown_one_is_refused(
    tiny, tmp_path, monkeypatch
):
    def check_installed(backend):
        if backend == "jax":
            raise MissingExtra("jax is not installed")

    monkeypatch.setattr("mage_diffsim.experiments.sweep.check_installed", check_installed)
    cells = [cell(tiny), cell(tiny, "b", dynamics="learned", environment="jax")]
    assert check(cells, tmp_path / "out", launcher=LocalLauncher(1)) == {"b": "jax is not installed"}
    with pytest.raises(InputError, match="unknown backend of task Pendulum 'mujoco'"):
        check([cell(tiny, environment="mujoco")], tmp_path / "out", launcher=LocalLauncher(1))


def test_a_finished_cell_whose_task_has_changed_is_refused_unless_fresh(tmp_path):
    file = tmp_path / "gentle.py"
    source = (
        "from mage_diffsim.envs.tasks.pendulum import Pendulum\n"
        "class Gentle(Pendulum):\n"
        "    name, horizon, weight = 'Gentle', 5, 2.0\n"
        "    def __init__(self, mass=1.0):\n"
        "        super().__init__()\n"
        "        self.m = mass\n"
    )
    file.write_text(source)
    settings = SWEPT | {"dynamics": "oracle", "steps": 2, "gradient_episodes": 0}

    def checked(mass: float = 2.0, **more: bool) -> dict[str, str]:
        config = make_config(f"{file}:Gentle", task_options={"mass": mass}, **settings)
        return check([Cell("gentle", config)], tmp_path / "sweep", launcher=LocalLauncher(1), **more)

    config = make_config(f"{file}:Gentle", task_options={"mass": 2.0}, **settings)
    train(config, tmp_path / "sweep" / "gentle")
    assert is_finished(tmp_path / "sweep" / "gentle") and checked() == {}
    with pytest.raises(InputError, match=r"trained with task_options {'mass': 2.0} and not {'mass': 3.0}: .* --fresh"):
        checked(3.0)
    file.write_text(source.replace("self.m = mass", "self.m = 2 * mass"))
    with pytest.raises(InputError, match=r"gentle was trained with another gentle.py of task Gentle: .* --fresh"):
        checked()
    assert checked(fresh=True) == {}
    file.write_text("# a comment\n" + source)
    assert checked() == {}


def test_a_cell_that_breaks_is_reported_and_the_others_go_on(two_sweeps):
    _, _, (_, outcomes), lines = two_sweeps
    assert [o.status for o in outcomes] == ["failed", "done", "done"]
    assert "the pendulum fell off" in outcomes[0].reason and "broken: FAILED" in lines
    assert {r["task"] for r in summary_rows(outcomes)} == {"Pendulum"}


def living(group: int) -> list[str]:
    """Command lines of the processes in a group that are not zombies; empty where there is no /proc to look in."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_workers_and_says_how_to_go_on(number, tmp_path):
    out = tmp_path / "out"
    flags = ["--dynamics", "oracle", "learned", "--backends", "torch", "--methods", "mage-td3", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / "oracle_vs_learned.py"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CI": "true"},
        start_new_session=True,  # a process group of its own, as a terminal gives one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in the background
    )
    names = [f"Pendulum_mage-td3_{d}" for d in ("oracle_torch", "learned")]
    deadline = time.monotonic() + 60
    while not all((out / name / "eval.csv").exists() for name in names) and time.monotonic() < deadline:
        time.sleep(0.1)
    group = os.getpgid(process.pid)
    if number == signal.SIGINT:
        os.killpg(group, number)
    else:
        process.send_signal(number)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.strip() == "oracle_vs_learned.py: interrupted: run the same command again to go on"
    assert "Pendulum_mage-td3_learned: starts" in printed and not is_finished(out / names[0])
    deadline = time.monotonic() + 10
    while living(group) and time.monotonic() < deadline:  # Python's own resource tracker takes a moment
        time.sleep(0.1)
    assert living(group) == []
    assert not (out / "summary.csv").exists()
    assert all(newest_checkpoint(out / name) is not None for name in names), "a worker saves the step it is at"


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--tasks", "Pendulun"], "unknown task 'Pendulun': choose one of"),
        (["--tasks"], "tasks are (); accepted is one or more different names"),
        (["--methods", "mage"], "unknown method 'mage': choose one of"),
        (["--methods", "td3", "td3"], "accepted is one or more different names"),
        (["--dynamics", "learnt"], "unknown dynamics 'learnt': choose one of"),
        (["--backends", "mjx"], "unknown backend of task Pendulum 'mjx': choose one of jax, torch, warp"),
        (["--seeds", "1", "1"], "seeds are (1, 1); accepted is one or more different integers of 0 or more"),
        (["--steps", "0"], "steps is 0; accepted is 1 or more"),
        (["--preset", "laptop"], "unknown preset 'laptop': choose one of authors, cpu, paper"),
        (["--lambdas", "-1"], "accepted is one or more different finite numbers of 0 or more"),
        (["--device", "cuda:77"], "device 'cuda:77' was asked for"),
        (["--device", "tpu"], "tpu"),
        (["--workers", "0"], "workers is 0; accepted is 1 or more"),
    ],
)
def test_a_bad_value_is_one_sentence_and_writes_nothing(oracle_vs_learned, flags, sentence, tmp_path, capsys):
    argv = ["--out", str(tmp_path / "out"), *flags]
    assert main(lambda: tyro.cli(oracle_vs_learned.OracleVsLearned, args=argv)) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_out_folder_that_cannot_be_written_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write to the out folder .*: .*file is a file"):
        check([cell(tiny)], tmp_path / "file" / "out", launcher=LocalLauncher(1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_out_folder_without_permission_is_refused(tiny, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission"):
        check([cell(tiny)], tmp_path / "out", launcher=LocalLauncher(1))


def test_somebody_elses_folder_is_never_deleted(tiny, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is in the way: it is not a run folder"):
        run_cells([cell(tiny)], tmp_path, launcher=LocalLauncher(1), fresh=True, display=PlainSweepDisplay())
    assert (tmp_path / "a" / "thesis.tex").exists()


def test_two_sweeps_in_one_folder_are_refused(tiny, tmp_path):
    import fcntl

    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another sweep is working in"):
            run_cells([cell(tiny)], tmp_path, launcher=LocalLauncher(1), display=PlainSweepDisplay())


def test_a_cell_whose_backend_is_not_installed_is_skipped_with_the_extra(tiny, tmp_path, monkeypatch):
    def version(name: str, real=importlib.metadata.version) -> str:
        if name == "jax":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    jax = cell(tiny, "jax", backend="jax")
    skipped = check([cell(tiny, "torch"), jax], tmp_path, launcher=LocalLauncher(1))
    assert skipped == {"jax": "jax is not installed: pip install -e '.[mjx]' in the project's folder"}
    learned = cell(tiny, "learned", dynamics="learned")
    learned = dataclasses.replace(learned, config=dataclasses.replace(learned.config, backend="jax"))
    assert check([learned], tmp_path, launcher=LocalLauncher(1)) == {}
    with pytest.raises(MissingExtra, match="jax is not installed"):
        check([jax], tmp_path, launcher=LocalLauncher(1))


def test_a_model_that_a_backend_does_not_cover_is_refused_before_anything_trains(tiny, tmp_path):
    pytest.importorskip("mujoco.mjx")
    sentence = "task Pusher: contacts of a capsule .* with a cylinder .* not covered; use backend mujoco"
    pusher = Cell("pusher", make_config("Pusher", dynamics="oracle", backend="mjx"))
    with pytest.raises(InputError, match=sentence):
        check([cell(tiny, "torch"), pusher], tmp_path, launcher=LocalLauncher(1))


def test_a_run_killed_before_its_configuration_was_written_starts_anew(tiny, tmp_path):
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "config.json.tmp").write_text(json.dumps({}))
    assert check([cell(tiny)], tmp_path, launcher=LocalLauncher(1)) == {}
    assert newest_checkpoint(tmp_path / "a") is None


LOGGING_TASK = """
import logging
from mage_diffsim.envs.tasks.pendulum import Pendulum

class Chatty(Pendulum):
    name = "Chatty"

    def reset(self, n, generator):
        if not getattr(self, "said", False):
            self.said = True
            logging.getLogger("mage_diffsim.somewhere").info("compiling Chatty")
        return super().reset(n, generator)
"""


def test_what_a_worker_logs_is_shown_beside_the_bars_and_kept_in_its_log(tiny, tmp_path, capsys):
    (tmp_path / "chatty.py").write_text(LOGGING_TASK)
    config = make_config(f"{tmp_path / 'chatty.py'}:Chatty", **{**tiny, "dynamics": "oracle", "seeds": (0,)})
    run_cells([Cell("a", config)], tmp_path / "out", launcher=LocalLauncher(1), display=PlainSweepDisplay())
    assert "a: compiling Chatty" in capsys.readouterr().out.splitlines()
    assert "compiling Chatty" in (tmp_path / "out" / "a.log").read_text()


def test_the_command_line_shows_what_is_logged_unless_quiet(tmp_path, capsys):
    (tmp_path / "chatty.py").write_text(LOGGING_TASK)
    command = ["train", "--task", f"{tmp_path / 'chatty.py'}:Chatty", "--method", "td3", "--steps", "2"]
    command += ["--eval-episodes", "1", "--gradient-episodes", "0"]
    assert cli_main([*command, "--out", str(tmp_path / "shown")]) == 0
    assert "compiling Chatty" in capsys.readouterr().err.splitlines()
    assert cli_main([*command, "--out", str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger("mage_diffsim").propagate
