"""Run folders: going on bit for bit, surviving kills, and what the files hold."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mage_diffsim.checkpoints import load_checkpoint, newest_checkpoint
from mage_diffsim.config import TrainConfig
from mage_diffsim.errors import InputError
from mage_diffsim.locks import locked
from mage_diffsim.run_folder import is_finished, is_run, load_trainer, read_config
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from mage_diffsim.tables import EVAL_FIELDS, METRIC_FIELDS, keep_rows, read_evaluations, read_metrics
from mage_diffsim.training import Trainer
from tests.tiny import HYPER, RUN

SPEED = ("wall_s", "updates_per_s")
"""Columns of metrics.csv that the clock decides."""


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> str:
    """A pendulum with short episodes, in a file, so that a subprocess finds it too."""
    file = tmp_path_factory.mktemp("task") / "short.py"
    file.write_text(
        "from mage_diffsim.envs.tasks.pendulum import Pendulum\n"
        "class Short(Pendulum):\n    name = 'Short'\n    horizon = 6\n"
    )
    return f"{file}:Short"


def tiny(task: str, **settings: Any) -> TrainConfig:
    return make_config(task, **(RUN | {"eval_episodes": 2, "hyper": HYPER | {"warmup_steps": 30}} | settings))


@pytest.fixture(scope="module")
def trained(task, tmp_path_factory) -> Path:
    """A finished training of two runs. Read only: tests that change it take a copy."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    train(tiny(task, seeds=(0, 1)), run_dir)
    return run_dir


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every tensor and number of nested dicts and lists by its path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for name, child in items for k, v in leaves(child, f"{path}/{name}").items()}
    return {path: value}


def assert_same_checkpoint(a: Path, b: Path) -> None:
    """The trainers in the newest checkpoints of two run folders are equal bit for bit."""
    path, other = newest_checkpoint(a), newest_checkpoint(b)
    assert path is not None and other is not None and path.name == other.name
    first, second = (leaves(load_checkpoint(p)["trainer"]) for p in (path, other))
    assert first.keys() == second.keys()
    assert sum(isinstance(v, torch.Tensor) for v in first.values()) > 20
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(12345.0), second[name].nan_to_num(12345.0)), name
        else:
            assert value == second[name], name


def metrics(run_dir: Path) -> list[str]:
    """metrics.csv without the columns that the clock decides, as text."""
    header, *rows = [line.split(",") for line in (run_dir / "metrics.csv").read_text().splitlines()]
    keep = [i for i, name in enumerate(header) if name not in SPEED]
    return [",".join(row[i] for i in keep) for row in (header, *rows)]


def assert_same_run(a: Path, b: Path) -> None:
    assert_same_checkpoint(a, b)
    assert (a / "eval.csv").read_text() == (b / "eval.csv").read_text()
    assert metrics(a) == metrics(b)
    assert (a / "policy.safetensors").read_bytes() == (b / "policy.safetensors").read_bytes()
    assert (a / "config.json").read_text() == (b / "config.json").read_text()


# --------------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize(
    ("steps", "settings"),
    [
        (200, {"reward": "learned"}),
        (100, {"dynamics": "oracle", "seeds": (0, 5), "lambdas": (0.05, 0.2)}),
        (100, {"dynamics": "hybrid-oracle-gradients", "loss": "shuffled", "float64": True}),
        (100, {"method": "td3"}),
    ],
    ids=["learned dynamics and reward", "oracle with four runs", "hybrid with a control", "model-free"],
)
def test_half_a_training_and_a_resume_equal_a_whole_one(steps, settings, task, tmp_path):
    whole = tiny(task, steps=steps, eval_every=steps // 4, checkpoint_every=steps, **settings)
    train(whole, tmp_path / "whole")
    train(dataclasses.replace(whole, steps=steps // 2), tmp_path / "halves")
    half = newest_checkpoint(tmp_path / "halves")
    assert half is not None and half.name == f"step_{steps // 2:010d}.json"
    resume(tmp_path / "halves", steps=steps)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.parametrize(("number", "raises"), [(errno.EBADF, False), (errno.ENOLCK, False), (errno.EIO, True)])
def test_a_file_system_without_locks_stops_nothing(tmp_path, monkeypatch, number, raises):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    raised = pytest.raises(OSError, match=os.strerror(number)) if raises else contextlib.nullcontext()
    with raised, locked(tmp_path, "busy"):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from mage_diffsim.config import TrainConfig
from mage_diffsim.session import train
from mage_diffsim.training import Trainer
import json
from tests.tiny import HYPER, RUN
step = Trainer.step
def killed(self):
    if self.env_step == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)
Trainer.step = killed
train(TrainConfig.from_dict(json.loads({config!r})), Path({run_dir!r}))
"""


def kill(config: TrainConfig, run_dir: Path, at: int) -> None:
    """Train in another process that dies by SIGKILL when ``at`` steps are done."""
    code = KILLED.format(kill_at=at, config=json.dumps(config.to_dict()), run_dir=str(run_dir))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_training_goes_on_as_if_nothing_had_happened(task, tmp_path):
    config = tiny(task, steps=80, checkpoint_every=30)
    kill(config, tmp_path / "killed", at=50)
    # Killed after the evaluation at 40, which the checkpoint at 30 knows nothing of.
    assert [row["env_step"] for row in read_evaluations(tmp_path / "killed")] == [0, 20, 40]
    assert not is_finished(tmp_path / "killed")
    resume(tmp_path / "killed")
    train(config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert is_finished(tmp_path / "killed")


def test_a_training_killed_before_its_first_checkpoint_starts_again(trained, copied):
    shutil.rmtree(copied / "checkpoints")
    (copied / "checkpoints").mkdir()
    (copied / "policy.safetensors").unlink()
    keep_rows(copied, 0)
    resume(copied)
    assert_same_run(trained, copied)


def test_a_training_killed_before_its_first_checkpoint_starts_over(copied):
    """Its evaluations are more frequent than its checkpoints."""
    expected = read_evaluations(copied)
    shutil.rmtree(copied / "checkpoints")
    (copied / "policy.safetensors").unlink()
    keep_rows(copied, 20)  # where the first one would have been written
    assert resume(copied).finished
    assert read_evaluations(copied) == expected


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/*.json"])
@pytest.mark.parametrize("held", ["its tables up to step 60", "policy.safetensors"])
def test_a_training_whose_checkpoints_are_gone_is_refused_and_left_as_it_is(held, gone, copied):
    for path in copied.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if held == "policy.safetensors":
        keep_rows(copied, 0)
    else:
        (copied / "policy.safetensors").unlink()
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=rf"starting over would replace {held}: restore the checkpoints, or"):
        resume(copied, steps=80)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_resume_without_more_steps_changes_nothing(trained, copied):
    resume(copied)
    assert_same_run(trained, copied)


def test_rows_after_the_checkpoint_and_a_half_written_line_are_dropped(trained, copied):
    newest = newest_checkpoint(copied)
    assert newest is not None
    newest.unlink()  # the one at 40 is left: the rows of 60 will be written again
    for name in ("eval.csv", "metrics.csv"):
        _, _, rest = (copied / name).read_text().splitlines()[-1].partition(",")
        with open(copied / name, "a") as file:
            file.write(f"80,{rest}\n80,1,0.")
    assert len(read_evaluations(copied)) == 9  # the half-written line is not read either
    resume(copied)
    assert_same_run(trained, copied)


@pytest.mark.parametrize("left", ["", "env_step,se"], ids=["empty", "half a header"])
def test_csv_files_killed_within_their_header_are_written_anew(left, trained, copied):
    shutil.rmtree(copied / "checkpoints")
    (copied / "checkpoints").mkdir()
    (copied / "policy.safetensors").unlink()
    for name in ("eval.csv", "metrics.csv"):
        (copied / name).write_text(left)
    assert read_evaluations(copied) == []
    resume(copied)
    assert_same_run(trained, copied)


def test_a_resumed_training_counts_its_time_on(copied):
    before = read_metrics(copied)[-1]["wall_s"]
    resume(copied, steps=61)
    assert read_metrics(copied)[-1]["wall_s"] > before


# ----------------------------------------------------------------------------------------------------- configuration


def test_the_configuration_survives_its_file(task, trained):
    config = tiny(task, seeds=(0, 1))
    assert read_config(trained) == dataclasses.replace(config, environment="torch")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    other = dataclasses.replace(config, loss="taylor", derivative="autograd", lambdas=(0.0, 1.0), float64=True)
    assert TrainConfig.from_dict(json.loads(json.dumps(other.to_dict()))) == other


@pytest.mark.parametrize("data", [{"speed": 1}, {"hyper": {"speed": 1}}])
def test_an_unknown_field_is_refused(data):
    with pytest.raises(InputError, match=r"does not fit this version of mage_diffsim: .*'speed'"):
        TrainConfig.from_dict(data)


def test_the_oracle_alone_keeps_residuals():
    pytest.importorskip("jax")
    trainer = Trainer(make_config(dynamics="oracle", backend="jax", residuals="keep", steps=1))
    oracle = trainer.agent.dynamics.physics
    assert (oracle.backend, oracle.residuals, trainer.physics.residuals) == ("jax", "keep", "recompute")


def test_a_refused_training_writes_nothing(task, tmp_path):
    with pytest.raises(InputError, match="choose one of"):
        train(tiny(task, dynamics="oracle", backend="torsh"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ results


def test_the_same_seed_gives_the_same_training_and_another_seed_another(task, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(tiny(task, seeds=(seed,)), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    first, other = (load_trainer(tmp_path / name) for name in "ac")
    assert not torch.equal(first.agent.actor, other.agent.actor)
    assert not torch.equal(first.buffer.rows, other.buffer.rows)
    a, c = (read_evaluations(tmp_path / name) for name in "ac")
    assert all(x["return_mean"] != y["return_mean"] for x, y in zip(a, c, strict=True))


def test_tables_hold_one_row_per_evaluation_and_run(trained):
    for rows, fields in (
        (read_evaluations(trained), EVAL_FIELDS),
        (read_metrics(trained), METRIC_FIELDS),
    ):
        assert [(r["env_step"], r["seed"]) for r in rows] == [(s, seed) for s in (0, 20, 40, 60) for seed in (0, 1)]
        assert all(tuple(r) == fields for r in rows)
    last_eval, last = read_evaluations(trained)[-1], read_metrics(trained)[-1]
    assert all(math.isfinite(v) for v in last_eval.values())
    assert last["loss_reward_model"] is None  # the task's own reward was used
    assert all(math.isfinite(v) for name, v in last.items() if name != "loss_reward_model")
    assert last_eval["length_mean"] == 6.0


def test_looking_at_the_training_does_not_change_it(task, tmp_path):
    seen: list[int] = []
    steps: list[int] = []
    train(
        tiny(task, eval_every=7),
        tmp_path / "watched",
        progress=lambda p: steps.append(p.env_step),
        sinks=(lambda step, rows: seen.append(step),),
    )
    train(tiny(task, eval_every=60), tmp_path / "alone")
    assert steps == list(range(1, 61))
    assert seen == [*range(0, 60, 7), 60]
    watched, alone = load_trainer(tmp_path / "watched"), load_trainer(tmp_path / "alone")
    assert torch.equal(watched.agent.critic, alone.agent.critic)
    assert torch.equal(watched.agent.actor, alone.agent.actor)


def test_progress_tells_how_far_and_how_fast(task, tmp_path):
    told = []
    train(tiny(task), tmp_path / "run", progress=told.append)
    assert (told[-1].env_step, told[-1].steps) == (60, 60)
    assert told[0].updates_per_s == 0.0 and told[-1].updates_per_s > 0.0
    assert [p.wall_s for p in told] == sorted(p.wall_s for p in told)
    assert told[-1].latest["return_mean"] == [read_evaluations(tmp_path / "run")[-1]["return_mean"]]


def test_finished_means_trained_to_the_end_with_every_file(copied, tmp_path):
    assert is_finished(copied) and is_run(copied)
    assert not is_run(tmp_path) and not is_finished(tmp_path)
    (copied / "policy.safetensors").unlink()
    assert is_run(copied) and not is_finished(copied)


def test_a_loaded_trainer_is_the_saved_one(trained):
    trainer = load_trainer(trained)
    path = newest_checkpoint(trained)
    assert isinstance(trainer, Trainer) and path is not None
    saved, loaded = leaves(load_checkpoint(path)["trainer"]), leaves(trainer.state_dict())
    for name, value in saved.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(12345.0), loaded[name].nan_to_num(12345.0)), name


@pytest.mark.parametrize("settings", [{"seeds": 3}, {"steps": "a"}])
def test_settings_of_the_wrong_kind_are_one_sentence(settings):
    with pytest.raises(InputError, match=r"the settings are not a training's: .*(seeds is 3|steps is 'a')"):
        make_config("Pendulum", **settings)


MISNAMED = [
    ({"warmup_steps": 100}, r'warmup_steps is a hyper-parameter: give hyper=\{"warmup_steps": ...\}'),
    ({"warmup_step": 100}, r'unknown setting \'warmup_step\': did you mean hyper=\{"warmup_steps": ...\}\?'),
    ({"lam": 0.1}, r"unknown setting 'lam': did you mean lambdas\?"),
    ({"shared": {"stepz": 3}}, r"unknown setting 'stepz': did you mean steps.*\?"),
    ({"foo": 1}, r"unknown setting 'foo': choose one of task, .*, matmul"),
    ({"hyper": {"batchsize": 3}}, r"unknown hyper-parameter 'batchsize': did you mean batch_size.*\?"),
    ({"hyper": {"foo": 3}}, r"unknown hyper-parameter 'foo': choose one of gamma, .*, reward_hidden"),
    ({"hyper": {"steps": 3}}, r"steps is a setting: give steps=... beside hyper"),
    ({"hyper": 3}, r"hyper is 3; accepted is a dict from hyper-parameters to values, or a Hyper"),
]


@pytest.mark.parametrize(("settings", "sentence"), MISNAMED)
def test_a_misnamed_setting_is_told_the_right_name_and_place(settings, sentence):
    with pytest.raises(InputError, match=f"^{sentence}$"):
        make_config("Pendulum", **settings)
