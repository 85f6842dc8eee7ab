"""The ``mage-diffsim`` command: what it accepts, what it prints, what it refuses and with which exit code."""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mage_diffsim.cli import COMMANDS, main
from mage_diffsim.config import MISLEADING, USES, Hyper, TrainConfig, make_config
from mage_diffsim.display import Display, is_interactive, summary
from mage_diffsim.envs.identity import absolute
from mage_diffsim.errors import InputError
from mage_diffsim.runs import (
    CHECKPOINT_VERSION,
    Progress,
    load_checkpoint,
    newest_checkpoint,
    read_config,
    read_evaluations,
    save_checkpoint,
)
from mage_diffsim.training import Trainer

TASK_FILE = """
from mage_diffsim.envs.tasks.pendulum import Pendulum

class Short(Pendulum):
    name = "Short"
    horizon = 6
"""

TINY = shlex.split("""
    --preset cpu --steps 60 --eval-every 20 --eval-episodes 3 --gradient-episodes 1 --checkpoint-every 20
    --warmup-steps 30 --batch-size 16 --updates-per-step 1 --actor-hidden 8 --critic-hidden 8 --ensemble-hidden 8
    --model-batches 2 --model-batch-size 16
""")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> str:
    """A pendulum with short episodes, in a file as a user would write it."""
    file = tmp_path_factory.mktemp("task") / "short.py"
    file.write_text(TASK_FILE)
    return f"{file}:Short"


@pytest.fixture(scope="module")
def trained(task, tmp_path_factory) -> Path:
    """The folder of a finished training of two runs. Read only: tests that change it take a copy."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--task", task, *TINY, "--seeds", "0", "1", "--out", str(run_dir), "--quiet"]) == 0
    return run_dir


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def run(*argv: object) -> int:
    """Exit code of the command, whichever way it ends."""
    try:
        return main([str(a) for a in argv])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


# ------------------------------------------------------------------------------------------------------------- errors

METHODS = "data-efficient-td3, ddpg, dyna-ddpg, dyna-td3, mage-ddpg, mage-td3, td3"
LOSSES = "dyna, mage, random, shuffled, sobolev, squared, taylor"
REFUSED = {
    "command": ("fly", "unknown command 'fly': choose one of check-task, doctor, eval, list-tasks, train"),
    "task": ("train --task Foo", r"unknown task 'Foo': choose one of .*Pendulum.*, or give path/to/file.py:ClassName"),
    "task file": ("train --task foo.py:Foo", r"task 'foo.py:Foo': there is no file \S+/foo.py; give .*ClassName"),
    "method": ("train --method=foo", f"unknown method 'foo': choose one of {METHODS}"),
    "dynamics": ("train --dynamics foo", "unknown dynamics 'foo': choose one of hybrid-learned-gradients, .*, oracle"),
    "preset": ("train --preset foo", "unknown preset 'foo': choose one of authors, cpu, paper"),
    "ensemble": ("train --ensemble foo", "unknown ensemble 'foo': choose one of full, small, smaller"),
    "loss": ("train --loss foo", f"unknown loss 'foo': choose one of {LOSSES}"),
    "reward": ("train --reward foo", "unknown reward 'foo': choose one of learned, task"),
    "loss and method": ("train --loss mage --method td3", "loss 'mage' needs .* method td3 .*: use a mage-\\* method"),
    "reward and method": ("train --reward learned --method td3", "reward 'learned' is for imagined .*: leave it at .*"),
    "dynamics and method": ("train --dynamics oracle --method ddpg", "dynamics 'oracle' was given, .* method ddpg .*"),
    "lambdas of dyna": (
        "train --method dyna-td3 --lambdas 0 1",
        r"lambdas are \(0.0, 1.0\), and the loss dyna has no .*",
    ),
    "lambda 0 under preset authors": (
        "train --preset authors --lambdas 0 0.2",
        r"lambdas are \(0.0, 0.2\), and loss_weights 'authors' .* 0.5 / lambda: give numbers above 0, or .*",
    ),
    "loss_weights": ("train --loss-weights foo", "unknown loss_weights 'foo': choose one of authors, paper"),
    "infinite lambda": ("train --lambdas inf", r"lambdas are \(inf,\); accepted is .* finite numbers of 0 or more"),
    "gradient episodes": ("train --gradient-episodes -1", "gradient_episodes is -1; accepted is 0 or more"),
    "warm-up": ("train --warmup-steps -5", "warmup_steps is -5; accepted is 1 or more"),
    "too many steps": ("train --steps 10000000000000", "steps is 10{13}, .* does not fit into the memory of cpu; .*"),
    "learning rate": ("train --learning-rate nan", "learning_rate is nan; accepted is 0.0 or more"),
    "compile": ("train --compile maybe", "unknown compile 'maybe': choose one of off, on"),
    "residuals without an oracle": (
        "train --residuals keep",
        "residuals 'keep' is about an oracle, .*",
    ),
    "graphs on a CPU": ("train --graphs on", "graphs is 'on', which needs a CUDA device, and device is 'cpu': .*"),
    "environment": ("train --environment foo", "unknown backend of task .* 'foo': choose one of .*"),
    "no units": ("train --actor-hidden 0", r"actor_hidden is \(0,\); accepted is 1 or more"),
    "clip": ("train --clip-value -1", "clip_value is -1.0; accepted is 1e-12 or more"),
    "noise": ("train --target-noise -1", "target_noise is -1.0; accepted is 0.0 or more"),
    "gamma": ("train --gamma 1.5", "gamma is 1.5; accepted is 0.0 to 1.0"),
    "log-variances": ("train --log-var-low 3", r"log_var_low is 3.0; accepted is below log_var_high \(-1.0\)"),
    "backend": ("train --dynamics oracle --backend foo", "unknown backend of task Pendulum 'foo': choose .*torch.*"),
    "backend without an oracle": (
        "train --backend warp",
        "backend 'warp' was given and has no effect, as nothing is simulated with .*: add --dynamics oracle",
    ),
    "backend of a model-free method": (
        "train --backend torch --method td3",
        "backend 'torch' was given and has no effect, as method td3 learns from the replay buffer alone .*",
    ),
    "derivative without an oracle": (
        "train --derivative autograd",
        "derivative 'autograd' was given and has no effect, as no simulator .*: add --dynamics oracle",
    ),
    "derivative of learned gradients": (
        "train --dynamics hybrid-learned-gradients --derivative autograd",
        "derivative 'autograd' was given and has no effect, as no simulator is differentiated with .*",
    ),
    "ensemble of an oracle": (
        "train --dynamics oracle --ensemble small",
        "ensemble 'small' was given and has no effect, as no ensemble is trained with dynamics 'oracle': .*",
    ),
    "dynamics of a model-free method": (
        "train --dynamics learned --method ddpg",
        "dynamics 'learned' was given and has no effect, as method ddpg learns from the replay buffer alone .*",
    ),
    "one lambda of dyna": (
        "train --lambdas 0.2 --method dyna-td3",
        r"lambdas \(0.2,\) was given and has no effect, as the loss dyna has no lambda",
    ),
    "gradient horizon": (
        "train --gradient-horizon 5 --gradient-episodes 0",
        "gradient_horizon 5 was given and has no effect, as gradient_episodes is 0",
    ),
    "unused backend": ("train --backend foo", "unknown backend of task Pendulum 'foo': choose one of .*torch.*"),
    "derivative": ("train --derivative foo", "unknown derivative source of backend torch 'foo': choose .* autograd"),
    "residuals": ("train --residuals foo", "unknown residuals 'foo': choose one of keep, recompute"),
    "residuals of torch": (
        "train --dynamics oracle --residuals keep",
        "unknown residual policy of backend torch 'keep': choose one of recompute",
    ),
    "device name": ("train --device foo", "unknown device 'foo': choose cpu, cuda or cuda:N"),
    "device index": ("train --device cuda:99", r"device 'cuda:99' was asked for and torch sees \d+ CUDA devices: .*"),
    "device kind": ("train --device mps", "device 'mps' is not supported: choose cpu, cuda or cuda:N"),
    "tensorboard": ("train --device foo --tensorboard", "unknown device 'foo': choose cpu, cuda or cuda:N"),
    "batch size": ("train --batch-size 33", r"batch_size is 33; accepted is a multiple .*\(8\).*"),
    "steps": ("train --steps 0", "steps is 0; accepted is 1 or more"),
    "seeds": ("train --seeds 1 1", r"seeds are \(1, 1\); accepted is one or more different integers of 0 or more"),
    "out under a file": ("train --out file/run", "cannot write to the run folder file/run: Not a directory"),
    "out is a file": ("train --out file", "cannot write to the run folder file: File exists"),
    "out not empty": ("train --out full", "the run folder full is not empty: give a new one, or --resume it"),
    "resume no run": ("train --resume full", "full is not a run folder: it has no config.json, .*"),
    "resume nothing": ("train --resume nowhere", "nowhere is not a run folder: it has no config.json, .*"),
    "resume and more": (
        "train --resume full --batch_size 3",
        "--batch-size was given with --resume, .* are --steps, --compile, --tensorboard and --quiet",
    ),
    "eval no run": ("eval full", "full is not a run folder: it has no config.json, .*"),
    "eval json": ("eval full --json file/a.json", r"cannot write file/a.json: \S+/file is a file, not a folder"),
    "eval video": ("eval full --video a.avi", "--video is a.avi; accepted is a name that ends in .mp4 or .gif"),
    "eval video folder": ("eval full --video file/no/a.gif", r"cannot write file/no/a.gif: \S+/file is a .*"),
    "eval video place": (
        "eval full --video /proc/a.gif",
        "cannot write /proc/a.gif: nothing can be written into the folder /proc: .+",
    ),
    "eval episodes": ("eval full --episodes 0", "--episodes is 0; accepted is 1 or more"),
    "eval seed": ("eval full --seed -1", r"--seed is -1; accepted is 0 or more, below 2\*\*63"),
    "check task": ("check-task Foo", "unknown task 'Foo': choose one of .*Pendulum.*"),
    "check backend": ("check-task Pendulum --backend foo", "unknown backend of task Pendulum 'foo': choose .*torch.*"),
    "check json": ("check-task Pendulum --json file/a", r"cannot write file/a: \S+/file is a file, not a .*"),
    "doctor json": ("doctor --json file/a", r"cannot write file/a: \S+/file is a file, not a folder"),
    "doctor json is a folder": ("doctor --json full", "cannot write full: it is a folder; give the name of a file"),
}


def assert_one_sentence(capsys, pattern: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"mage-diffsim: {pattern}\n", err), err
    assert "\n" not in err[:-1]


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_one_sentence_exit_code_2_and_leaves_nothing_behind(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    before = files(tmp_path)
    command, sentence = REFUSED[case]
    assert run(*command.split()) == 2
    assert_one_sentence(capsys, sentence)
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", ["train --batch-size x", "train --task", "train --foo 1", "eval", "doctor --foo"])
def test_arguments_that_do_not_parse_exit_with_2_and_leave_nothing_behind(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*command.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and "mage-diffsim" in err and "Traceback" not in err
    assert files(tmp_path) == {}


def test_missing_tensorboard_names_its_extra_and_leaves_nothing_behind(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert run("train", "--task", task, *TINY, "--tensorboard", "--out", tmp_path / "run") == 2
    assert_one_sentence(capsys, r"tensorboard is not installed: pip install 'mage-diffsim\[log\]'")
    assert files(tmp_path) == {}


def test_missing_backend_names_its_extra_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    from mage_diffsim.bridges.warp import load_warp

    load_warp.cache_clear()
    monkeypatch.setitem(sys.modules, "warp", None)
    sentence = r"warp-lang is not installed: pip install 'mage-diffsim\[warp\]'"
    assert run("train", *TINY, "--dynamics", "oracle", "--backend", "warp", "--out", tmp_path / "run") == 2
    assert_one_sentence(capsys, sentence)
    assert run("check-task", "Pendulum", "--backend", "warp", "--json", tmp_path / "a.json") == 2
    assert_one_sentence(capsys, sentence)
    assert files(tmp_path) == {}


def test_missing_imageio_names_its_extra_before_anything_is_computed(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio.v2", None)
    assert run("eval", trained, "--video", tmp_path / "a.gif", "--json", tmp_path / "a.json") == 2
    assert_one_sentence(capsys, r"imageio is not installed: pip install 'mage-diffsim\[video\]'")
    assert files(tmp_path) == {}


@pytest.mark.parametrize("command", ["train --resume", "eval"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", "half", "list", "empty"], ids=str)
def test_a_damaged_checkpoint_is_refused_and_nothing_is_changed(command, content, copied, capsys):
    path = newest_checkpoint(copied)
    assert path is not None
    if content in ("list", "empty"):
        torch.save([1, 2] if content == "list" else {"version": CHECKPOINT_VERSION}, path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    before = files(copied)
    assert run(*command.split(), copied) == 2
    assert_one_sentence(capsys, rf"checkpoint {path} is damaged \(.*\): delete it to resume from the one before")
    assert files(copied) == before
    path.unlink()
    assert run(*command.split(), copied) == 0  # the advice works


@pytest.mark.parametrize("command", ["train --resume", "eval"])
@pytest.mark.parametrize(
    ("version", "cure"), [(99, "update it"), (1, "train the run anew, in a new folder, as .*")], ids=["newer", "older"]
)
def test_a_checkpoint_of_another_version_is_refused(command, version, cure, copied, capsys):
    path = newest_checkpoint(copied)
    assert path is not None
    torch.save(torch.load(path, weights_only=True) | {"version": version}, path)
    before = files(copied)
    assert run(*command.split(), copied) == 2
    reads = f"checkpoint {path} has version {version}, and this mage_diffsim reads version {CHECKPOINT_VERSION}"
    assert_one_sentence(capsys, rf"{reads}: {cure}")
    assert files(copied) == before


def test_a_checkpoint_that_does_not_fit_its_configuration_is_refused(copied, capsys):
    original = (copied / "config.json").read_bytes()
    config = json.loads(original)
    config["hyper"]["actor_hidden"] = [12]
    (copied / "config.json").write_text(json.dumps(config))
    before = files(copied)
    assert run("train", "--resume", copied) == 2
    assert_one_sentence(capsys, r"\S+ was trained with hyper.actor_hidden \(8,\) and not \(12,\): restore that .*")
    assert files(copied) == before
    path = newest_checkpoint(copied)
    assert path is not None
    saved = load_checkpoint(path)
    saved["trainer"]["agent"]["actor"] = torch.zeros(1, 1, 3)
    save_checkpoint(path, {k: v for k, v in saved.items() if k != "version"})
    (copied / "config.json").write_bytes(original)
    assert run("train", "--resume", copied) == 2
    assert_one_sentence(capsys, r"checkpoint \S+ does not fit the config.json beside it \(.*\): restore the one .*")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"foo": 1}', '{"steps": "foo"}', '{"hyper": "foo"}', '{"hyper": {"gamma": "foo"}}']
)
def test_a_damaged_configuration_is_refused(text, copied, capsys):
    (copied / "config.json").write_text(text)
    assert run("train", "--resume", copied) == 2
    assert_one_sentence(
        capsys, r"(\S+config.json is damaged \(.*\): .*|\S+config.json: the configuration does not fit .*'foo'.*)"
    )


def test_resume_with_fewer_steps_than_are_done_is_refused(copied, capsys):
    before = files(copied)
    assert run("train", "--resume", copied, "--steps", 40) == 2
    assert_one_sentence(capsys, r"\S+ is trained to 60 steps already; accepted is --steps 60 or more")
    assert files(copied) == before


def test_eval_without_a_checkpoint_is_refused(copied, capsys):
    shutil.rmtree(copied / "checkpoints")
    assert run("eval", copied) == 2
    assert_one_sentence(capsys, r"\S+ has no checkpoint yet: train it further with --resume")


# ---------------------------------------------------------------------------------------------------------------- help


def test_help_answers_without_importing_torch():
    code = (
        "import sys; from mage_diffsim.cli import main\n"
        "main(['--help']); main(['--version'])\n"
        "try: main(['eval', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


def help_of(capsys, *argv: str) -> str:
    """Help text without its frame and line breaks."""
    assert run(*argv, "--help") == 0
    return " ".join(re.sub("[│─╭╮╰╯]", " ", capsys.readouterr().out).split())


def shown(text: str, flag: str) -> str:
    """The default that the help shows for a flag."""
    found = re.search(rf"{flag} .*?\(default: (.*?)\)", text)
    assert found, flag
    return found[1]


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ("", {}),
        ("--preset cpu", {"preset": "cpu"}),
        ("--preset=authors", {"preset": "authors"}),
        ("--task CartPole --ensemble small", {"task": "CartPole", "ensemble": "small"}),
    ],
)
def test_help_shows_the_values_of_the_chosen_preset(flags, settings, capsys):
    text = help_of(capsys, "train", *flags.split())
    expected = make_config(**settings)
    for flag, value in (
        ("--task STR", expected.task),
        ("--preset STR", expected.preset),
        ("--batch-size INT", expected.hyper.batch_size),
        ("--learning-rate FLOAT", expected.hyper.learning_rate),
        ("--model-batches INT", expected.hyper.model_batches),
        ("--ensemble-members INT", expected.hyper.ensemble_members),
        (r"--ensemble-hidden \[INT \[INT ...\]\]", " ".join(map(str, expected.hyper.ensemble_hidden))),
    ):
        assert shown(text, flag) == str(value)


def test_every_setting_is_a_flag_with_a_help_text(capsys):
    text = help_of(capsys, "train")
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.name != "hyper"]
    names += [f.name for f in dataclasses.fields(Hyper)]
    names += ["out", "resume", "tensorboard", "quiet"]
    assert len(names) == len(set(names))  # flat flags have no room for two of a name
    for name in names:
        flag = name.replace("_", "-")
        assert re.search(rf" --{flag}[ ,][^()]*?[a-z]{{3}}", text), name


# -------------------------------------------------------------------------------------------------------------- train


def test_flags_override_single_values_of_the_preset(trained):
    config, preset = read_config(trained), make_config("Pendulum", preset="cpu").hyper
    assert (config.hyper.batch_size, config.hyper.actor_hidden, config.seeds) == (16, (8,), (0, 1))
    assert config.hyper.learning_rate == preset.learning_rate
    assert config.hyper.model_learning_rate == preset.model_learning_rate


def test_a_training_leaves_every_file(trained):
    names = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    checkpoints = {"checkpoints/step_0000000040.pt", "checkpoints/step_0000000060.pt"}
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
        r"task Short \(\S+short.py:Short\)\nmethod mage-td3, loss mage\ndynamics learned: ensemble full of 4 members\n"
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
    assert noted == {"taylor-variance", "target-noise-clip", "ensemble-hidden", "model-batches", "model-batch-size"}


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
    sentence = f"mage-diffsim: interrupted: go on from step 40 with `mage-diffsim train --resume {run_dir}`\n"
    assert capsys.readouterr() == ("", sentence)
    assert run(*sentence.partition("`mage-diffsim ")[2].rstrip("`\n").split(), "--quiet") == 0
    assert [row["env_step"] for row in read_evaluations(run_dir)] == [0, 20, 40, 60]


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
    if number == signal.SIGINT:
        assert f"interrupted: go on from step {saved} with" in err

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
            monkeypatch.setattr("mage_diffsim.runs.SAME_SIGNAL_S", 0.0)
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


# --------------------------------------------------------------------------------------------------------------- eval


def evaluated(trained: Path, tmp_path: Path, *flags: object) -> dict:
    assert run("eval", trained, "--json", tmp_path / "a.json", *flags) == 0
    return json.loads((tmp_path / "a.json").read_text())


def test_eval_is_reproducible_with_its_seed_and_differs_with_another(trained, tmp_path, capsys):
    first = evaluated(trained, tmp_path)
    printed = capsys.readouterr().out
    assert evaluated(trained, tmp_path) == first
    assert capsys.readouterr().out == printed
    other = evaluated(trained, tmp_path, "--seed", 1)
    assert [r["mean"] for r in other["runs"]] != [r["mean"] for r in first["runs"]]


def test_eval_reports_every_run_of_the_newest_checkpoint(trained, tmp_path, capsys):
    report = evaluated(trained, tmp_path, "--episodes", 4)
    assert {k: v for k, v in report.items() if k != "runs"} == {
        "task": "Short",
        "env_step": 60,
        "episodes": 4,
        "eval_seed": 0,
    }
    assert [(row["seed"], row["lambda"]) for row in report["runs"]] == [(0, 0.2), (1, 0.2)]
    out = capsys.readouterr().out
    for row in report["runs"]:
        assert row["min"] < row["mean"] < row["max"] <= 0.0
        assert row["length"] == 6.0
        assert f"{row['mean']:.2f}" in out and f"{row['std']:.2f}" in out


def test_eval_runs_the_policy_without_noise(trained, tmp_path):
    from mage_diffsim.runs import load_trainer

    trainer = load_trainer(trained)
    state = trainer.task.reset(2, torch.Generator().manual_seed(7)).to(trainer.dtype)
    total = torch.zeros(2)
    for _ in range(6):
        obs = trainer.task.observe(state)
        action = trainer.agent.policy(torch.stack([torch.zeros_like(obs), obs]))[1].detach()  # the second run's
        state = trainer.physics.step(state, action)
        total += trainer.task.reward(obs, action, trainer.task.observe(state))
    report = evaluated(trained, tmp_path, "--episodes", 2, "--seed", 7)
    assert report["runs"][1]["mean"] == pytest.approx(total.mean().item(), rel=1e-5)


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_eval_films_one_episode_into_a_new_folder(suffix, trained, tmp_path, capsys):
    imageio = pytest.importorskip("imageio.v2")
    ffmpeg = pytest.importorskip("imageio_ffmpeg") if suffix == "mp4" else None
    film = tmp_path / "new" / "folder" / f"film.{suffix}"
    assert run("eval", trained, "--episodes", 1, "--video", film) == 0
    out = capsys.readouterr().out
    assert "return of 1 episode, seed 0" in out and out.endswith(f"\nwritten: {film}\n")
    frames = len(imageio.mimread(film)) if ffmpeg is None else ffmpeg.count_frames_and_secs(film)[0]
    assert frames == 7  # the initial state and six steps
    assert {path for path in files(tmp_path) if path.is_file()} == {film}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_film_for_a_full_disk_is_one_sentence(trained, tmp_path, capfd):
    pytest.importorskip("imageio.v2")
    film = tmp_path / "film.gif"
    film.symlink_to("/dev/full")
    assert run("eval", trained, "--episodes", 1, "--video", film) == 2
    gc.collect()  # an object that complains when it is deleted does so now
    assert capfd.readouterr().err == f"mage-diffsim: cannot write {film}: No space left on device\n"
    assert film.is_symlink() and Path("/dev/full").is_char_device()


def test_reports_are_written_into_a_new_folder_and_named_at_the_end(trained, tmp_path, capsys):
    for command in (["eval", trained, "--episodes", 1], ["check-task", "Pendulum", "--backend", "torch"]):
        report = tmp_path / str(command[0]) / "new" / "a.json"
        assert run(*command, "--json", report) == 0
        assert json.loads(report.read_text())["task"] in ("Short", "Pendulum")
        assert capsys.readouterr().out.endswith(f"\nwritten: {report}\n")


def test_eval_on_another_kind_of_device_needs_no_generator_state(copied, tmp_path):
    # A run trained on a GPU: its generators' states are 16 bytes and mean nothing to a CPU generator.
    expected = evaluated(copied, tmp_path)
    config = json.loads((copied / "config.json").read_text()) | {"device": "cuda", "matmul": "high"}
    (copied / "config.json").write_text(json.dumps(config))
    path = newest_checkpoint(copied)
    assert path is not None
    saved = load_checkpoint(path)
    saved["identity"]["config"] |= {"device": "cuda", "matmul": "high"}
    gpu_state = torch.zeros(16, dtype=torch.uint8)
    for states in (*saved["trainer"]["streams"].values(), saved["trainer"]["env"]["generators"]):
        states[:] = [gpu_state] * len(states)
    save_checkpoint(path, {k: v for k, v in saved.items() if k != "version"})
    assert evaluated(copied, tmp_path, "--device", "cpu") == expected


# ----------------------------------------------------------------------------------------- tasks and the installation


def test_list_tasks_shows_sizes_backends_and_what_is_not_installed(monkeypatch, capsys):
    import importlib.metadata

    version = importlib.metadata.version

    def without_warp(name: str) -> str:
        if name == "warp-lang":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_warp)
    assert run("list-tasks") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Pendulum │ 2/3/1 │ 200 │ 0\.05 │ torch, [^│]*warp \(not installed: extra warp\)", text), text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_list_tasks_hides_nothing_however_narrow_the_terminal(width, monkeypatch):
    from mage_diffsim import cli
    from mage_diffsim.envs import backends_of, make_task, task_names

    screen = io.StringIO()
    monkeypatch.setattr(cli, "_console", lambda: Console(file=screen, width=width))
    assert run("list-tasks") == 0
    text = screen.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for i, name in enumerate(task_names()):
        following = task_names()[i + 1 : i + 2]
        part = text[text.index(name) : text.rindex(following[0]) if following else None]  # this task's lines
        task = make_task(name)
        facts = [f"{task.state_dim}/{task.obs_dim}/{task.action_dim}", str(task.horizon), f"{task.dt:g}"]
        words = {word.strip("│,") for word in part.split()}
        assert {name, *facts, *backends_of(task), *task.source.replace(",", "").split()} <= words, part


def test_list_tasks_shows_the_others_when_one_is_broken(monkeypatch, capsys):
    from mage_diffsim.envs import registry

    monkeypatch.setitem(registry._TASKS, "Broken", "mage_diffsim.no_such_module:Broken")
    assert run("list-tasks") == 0
    out = capsys.readouterr().out
    assert "not available" in out and "Pendulum" in out


def test_check_task_passes_a_good_task_and_writes_the_report(task, tmp_path, capsys):
    assert run("check-task", task, "--backend", "torch", "--json", tmp_path / "a.json") == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["task"] == "Short" and report["passed"]
    out = capsys.readouterr().out
    assert f"Short: {len(report['checks'])} passed, 0 failed, 0 skipped" in out
    assert "reward: gradient" in out


def test_check_task_fails_a_broken_task_with_exit_code_1(tmp_path, capsys):
    broken = (
        "    def reward(self, obs, action, next_obs):\n        return super().reward(obs, action, next_obs).detach()\n"
    )
    (tmp_path / "broken.py").write_text(TASK_FILE + "\n" + broken)
    assert run("check-task", f"{tmp_path / 'broken.py'}:Short", "--backend", "torch") == 1
    assert re.search(r"reward: gradient action\s+│ failed", capsys.readouterr().out)


def test_doctor_prints_and_writes_its_report(tmp_path, monkeypatch, capsys):
    from mage_diffsim import doctor

    report = {
        "versions": {"torch": "1.2.3"},
        "cpus": 1,
        "threads": 1,
        "cuda": {"available": False, "version": None, "devices": []},
        "physics": {"torch": {"available": True, "error": None}},
        "bridges": {},
    }
    monkeypatch.setattr(doctor, "report", lambda: report)  # the real one has its own tests, and takes seconds
    assert run("doctor", "--json", tmp_path / "a.json") == 0
    assert json.loads((tmp_path / "a.json").read_text()) == report
    assert "1.2.3" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ display


@pytest.mark.parametrize(
    ("terminal", "ci", "expected"), [(True, "", True), (True, "true", False), (False, "", False), (True, "1", False)]
)
def test_a_bar_is_for_terminals_outside_ci(terminal, ci, expected, monkeypatch):
    monkeypatch.setenv("CI", ci)
    assert is_interactive(Console(force_terminal=terminal, file=io.StringIO())) == expected


def test_a_terminal_gets_a_bar_and_the_same_lines(monkeypatch):
    monkeypatch.setenv("CI", "")
    screen = io.StringIO()
    rows = [{"return_mean": -3.0, "gradient_error": 0.5}]
    with Display(Console(force_terminal=True, file=screen, width=120), Path("run"), steps=10) as display:
        display.evaluation(0, rows)
        display.progress(Progress(env_step=5, steps=10, wall_s=1.0, updates_per_s=7.0, latest={}))
    text = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "step  0/10   return -3.0   gradient error 0.5" in text
    assert "5/10" in text and "7 updates/s" in text


def test_a_long_silence_gets_a_sign_of_life(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mage_diffsim.display.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), record=True, force_terminal=False)
    display = Display(console, Path("run"), steps=1000)
    for step in range(101, 301):  # resumed at 100, one step a second
        now[0] += 1.0
        display.progress(Progress(step, 1000, 0.0, 2.0, {}))
    lines = console.export_text().splitlines()
    assert [re.search(r"\d+/", line)[0] for line in lines] == ["160/", "220/", "280/"]  # type: ignore[index]
    assert lines[0] == "step  160/1000   2 updates/s   about 13 min 46 s left"


def test_summary_leaves_out_what_a_method_does_not_have():
    assert summary([{"return_mean": 1.0}]) == "return 1.0"
    assert summary([{"return_mean": 1.0}, {"return_mean": 3.0}]) == "return 2.0 (2 runs: 1.0 to 3.0)"


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
