"""``mage-diffsim train``: its files, what it prints, and how it stops and goes on."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mage_diffsim.checkpoints import newest_checkpoint
from mage_diffsim.config import TrainConfig
from mage_diffsim.effects import MISLEADING, USES
from mage_diffsim.envs.identity.reference import absolute
from mage_diffsim.errors import InputError
from mage_diffsim.hyper import Hyper
from mage_diffsim.run_folder import read_config
from mage_diffsim.settings import make_config
from mage_diffsim.tables import read_evaluations
from mage_diffsim.training import Trainer
from tests.learner.cli.commands import TINY, run


def test_flags_override_single_values_of_the_preset(trained):
    config, preset = read_config(trained), make_config("Pendulum", preset="cpu").hyper
    assert (config.hyper.batch_size, config.hyper.actor_hidden, config.seeds) == (8, (8,), (0, 1))
    assert config.hyper.learning_rate == preset.learning_rate
    assert config.hyper.model_learning_rate == preset.model_learning_rate


def test_a_training_leaves_every_file(trained):
    names = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file() and p.suffix != ".bin"}
    checkpoints = {"checkpoints/step_0000000040.json", "checkpoints/step_0000000060.json"}
    assert (
        names
        == {"config.json", "identity.json", "versions.json", "eval.csv", "metrics.csv", "policy.safetensors"}
        | checkpoints
    )


def test_the_default_folder_is_named_after_the_training(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "--task", task, *TINY, "--steps", 1, "--dynamics", "oracle") == 0
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"Short_mage-td3_oracle_\d{8}-\d{6}", run_dir.name)


def test_a_task_in_a_file_is_found_again_from_another_folder(task, tmp_path, monkeypatch):
    file = Path(task.rpartition(":")[0])
    monkeypatch.chdir(file.parent)
    assert run("train", "--task", "short.py:Short", *TINY, "--steps", 1, "--out", tmp_path / "run", "--quiet") == 0
    monkeypatch.chdir(tmp_path)
    assert read_config(tmp_path / "run").task == task
    assert run("train", "--resume", tmp_path / "run", "--steps", 2, "--quiet") == 0


@pytest.mark.parametrize("name", ["Pendulum", "package.module:Class"])
def test_other_task_names_are_kept(name):
    assert absolute(name) == name


def test_output_is_plain_lines_when_not_a_terminal(copied, capsys):
    assert run("train", "--resume", copied, "--steps", 80) == 0
    out, err = capsys.readouterr()
    number = r"-?\d+\.\d"
    line = rf"step 80/80   return {number} \(2 runs: {number} to {number}\)   gradient error \S+"
    banner = (
        r"task Short \(\S+short.py:Short\)\nmethod mage-td3, loss mage\ndynamics learned: ensemble full of 2 members\n"
        r"environment torch\npreset cpu, device cpu, float32\nruns 2: seeds 0 1, lambda 0.2\nsteps 80\n"
    )
    assert re.fullmatch(rf"{banner}run folder {copied}\n{line}\ntrained to step 80: {copied}\n", out), out
    assert err == ""


def test_the_banner_names_what_is_trained_and_notes_what_has_no_effect(task, tmp_path, capsys):
    flags = ["--dynamics", "oracle", "--lambdas", "0.05", "0.2", "--taylor-variance", "0.5", "--target-noise", "0"]
    more = ["--target-noise-clip", "0.1", "--max-dynamics-gradient", "0", "--steps", "1"]
    assert run("train", "--task", task, *TINY, *flags, *more, "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    for line in (
        f"task Short ({task})",
        "method mage-td3, loss mage",
        "dynamics oracle: backend torch, derivative autograd",
        "runs 2: seed 0, lambdas 0.05 0.2",
        "steps 1",
        f"run folder {tmp_path / 'run'}",
    ):
        assert f"\n{line}\n" in f"\n{out}"
    noted = set(re.findall(r"note: --(\S+) has no effect, as ", out))
    unused = {"ensemble-members", "ensemble-hidden", "reward-hidden", "model-batches", "model-batch-size"}
    assert noted == unused | {"taylor-variance", "target-noise-clip"}


def test_every_setting_that_may_have_no_effect_is_a_setting():
    names = {f.name for f in (*dataclasses.fields(TrainConfig), *dataclasses.fields(Hyper))}
    assert set(USES) <= names and set(USES) >= MISLEADING


def test_make_config_refuses_what_has_no_effect_but_not_what_a_sweep_shares():
    with pytest.raises(InputError, match="backend 'jax' was given and has no effect"):
        make_config("Pendulum", backend="jax")
    assert make_config("Pendulum", shared={"backend": "jax", "steps": 7}, steps=8).steps == 8
    assert make_config("Pendulum", backend=None, gradient_horizon=0, gradient_episodes=0).backend == "torch"


def test_quiet_prints_nothing(copied, capsys):
    assert run("train", "--resume", copied, "--steps", 61, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_training_says_how_to_go_on_and_can(task, tmp_path, monkeypatch, capsys):
    step = Trainer.step

    def interrupted(self):
        if self.env_step == 45:
            raise KeyboardInterrupt
        step(self)

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert run("train", "--task", task, *TINY, "--out", run_dir, "--quiet") == 130
    sentence = f"mage-diffsim: saved at step 40: mage-diffsim train --resume {run_dir}\n"
    assert capsys.readouterr() == ("", sentence)
    assert run(*sentence.rpartition(": mage-diffsim ")[2].split(), "--quiet") == 0
    assert [row["env_step"] for row in read_evaluations(run_dir)] == [0, 20, 40, 60]


def test_the_log_of_a_resumed_training_holds_its_header_from_the_first_step(copied, monkeypatch, tmp_path):
    step = Trainer.step

    def killed(self):
        if self.env_step == 61:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Trainer, "step", killed)
    with open(tmp_path / "log", "w") as log:
        monkeypatch.setattr(sys, "stdout", log)
        assert run("train", "--resume", copied, "--steps", 10**6) == 130
        in_file = (tmp_path / "log").read_text()  # before it is closed
    assert in_file.startswith("task Short") and in_file.endswith(f"run folder {copied}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_step_is_saved_and_nothing_is_lost(number, task, tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "mage_diffsim.cli", "train", "--task", task, *TINY, "--quiet", "--out", run_dir]
    command += ["--checkpoint-every", 10**6]  # so that the only checkpoint is the signal's
    # Started as a terminal would: whoever starts the tests in the background has SIGINT ignored.
    started = subprocess.Popen(
        [str(word) for word in [*command, "--steps", 10**6]],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not (run_dir / "eval.csv").is_file() or max(r["env_step"] for r in read_evaluations(run_dir)) < 40:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(number)
    _, err = started.communicate(timeout=60)
    assert "stopping: this step is done and saved first" in err
    assert started.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM)
    checkpoint = newest_checkpoint(run_dir)
    assert checkpoint is not None
    saved = int(checkpoint.stem.removeprefix("step_"))
    assert err.splitlines()[-1] == f"mage-diffsim: saved at step {saved}: mage-diffsim train --resume {run_dir}"

    steps = saved + 3
    assert run("train", "--resume", run_dir, "--steps", steps, "--quiet") == 0
    assert run("train", "--task", task, *TINY, "--steps", steps, "--quiet", "--out", tmp_path / "straight") == 0
    assert read_evaluations(run_dir) == read_evaluations(tmp_path / "straight")


def test_two_trainings_in_one_folder_are_refused(copied, capsys):
    folder = os.open(copied, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        assert run("train", "--resume", copied, "--steps", 80, "--quiet") == 2
    finally:
        os.close(folder)
    assert capsys.readouterr().err == f"mage-diffsim: another process is training in {copied}: wait for it or end it\n"
    assert run("train", "--resume", copied, "--steps", 80, "--quiet") == 0


def test_a_second_signal_acts_at_once(task, tmp_path, monkeypatch):
    step = Trainer.step

    def signalled(self):
        if self.env_step == 45:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # a scheduler's copy of the first
            monkeypatch.setattr("mage_diffsim.signals.SAME_SIGNAL_S", 0.0)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the next signal must act at once")
        step(self)

    monkeypatch.setattr(Trainer, "step", signalled)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run("train", "--task", task, *TINY, "--out", tmp_path / "run", "--quiet") == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)
    assert newest_checkpoint(tmp_path / "run").stem == "step_0000000040"


def test_an_interruption_before_the_folder_is_written_says_so(tmp_path, monkeypatch, capsys):
    def interrupted(self, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "__init__", interrupted)
    assert run("train", "--out", tmp_path / "run") == 130
    assert capsys.readouterr() == ("", "mage-diffsim: interrupted before the run folder was written\n")


def test_tensorboard_files_hold_the_evaluations(task, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ["--lambdas", "0.05", "0.2", "--method", "mage-td3"]
    assert run("train", "--task", task, *TINY, *flags, "--tensorboard", "--out", tmp_path / "run", "--quiet") == 0
    rows = read_evaluations(tmp_path / "run")
    for lam in (0.05, 0.2):
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / f"seed0_lambda{lam:g}"))
        events.Reload()
        scalars = events.Scalars("evaluation/return_mean")
        expected = [(r["env_step"], r["return_mean"]) for r in rows if r["lambda"] == lam]
        assert [(s.step, pytest.approx(s.value)) for s in scalars] == expected
        assert {"evaluation/gradient_error", "training/loss_critic", "training/wall_s"} <= set(events.Tags()["scalars"])


def test_a_training_shorter_than_its_warm_up_says_so(tmp_path, capsys):
    def note(steps: int) -> bool:
        tiny = ("--preset", "cpu", "--warmup-steps", 5, "--eval-episodes", 1, "--gradient-episodes", 0)
        assert run("train", *tiny, "--steps", steps, "--out", tmp_path / str(steps)) == 0
        return "note: nothing is learned in 4 steps, as the first 5 are the warm-up" in capsys.readouterr().out

    assert note(4) and not note(5)


def test_a_resumed_run_may_stop_compiling(copied, monkeypatch, capsys):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"compile": "on"}))

    def refuse(method):
        raise InputError(f"compile is 'on', and {method.__name__} cannot be compiled: use compile 'off'")

    monkeypatch.setattr("mage_diffsim.agent.compiled", refuse)
    assert run("train", "--resume", copied, "--steps", 61, "--quiet") == 2
    assert "use compile 'off'" in capsys.readouterr().err
    assert run("train", "--resume", copied, "--steps", 61, "--quiet", "--compile", "off") == 0
    assert json.loads((copied / "config.json").read_text())["compile"] == "off"
