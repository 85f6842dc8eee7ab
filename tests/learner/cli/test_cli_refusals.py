"""What the ``mage-diffsim`` command refuses: one sentence, exit code 2, and no file changed."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from mage_diffsim.checkpoints import (
    CHECKPOINT_VERSION,
    checkpoints_of,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from mage_diffsim.cli import COMMANDS
from mage_diffsim.errors import reason_of
from mage_diffsim.tables import keep_rows
from tests.learner.cli.commands import TINY, assert_one_sentence, files, run

METHODS = "data-efficient-td3, ddpg, dyna-ddpg, dyna-td3, mage-ddpg, mage-td3, td3"
LOSSES = "mage, random, shuffled, sobolev, squared, taylor, td"
REFUSED = {
    "command": ("fly", f"unknown command 'fly': choose one of {', '.join(sorted(COMMANDS))}"),
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
        r"lambdas are \(0.0, 1.0\), and the loss td has no .*",
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
        r"lambdas \(0.2,\) was given and has no effect, as the loss td has no lambda",
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
    "out under a file": ("train --out file/run", "cannot write file/run: file is a file, not a folder"),
    "out is a file": ("train --out file", "cannot write file: file is a file, not a folder"),
    "out not empty": ("train --out full", "the run folder full is not empty: give a new one, or --resume it"),
    "resume no run": ("train --resume full", "full is not a run folder: it has no config.json, .*"),
    "resume nothing": ("train --resume nowhere", "nowhere is not a run folder: it has no config.json, .*"),
    "resume and more": (
        "train --resume full --batch_size 3",
        "--batch-size was given with --resume, .* are --steps, --stop-after, --device, .*, --tensorboard and --quiet",
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
    assert_one_sentence(capsys, r"tensorboard is not installed: pip install -e '\.\[log\]' in the project's folder")
    assert files(tmp_path) == {}


def test_missing_backend_names_its_extra_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    from mage_diffsim.bridges.warp import load_warp

    load_warp.cache_clear()
    monkeypatch.setitem(sys.modules, "warp", None)
    sentence = r"warp-lang is not installed: pip install -e '\.\[warp\]' in the project's folder"
    assert run("train", *TINY, "--dynamics", "oracle", "--backend", "warp", "--out", tmp_path / "run") == 2
    assert_one_sentence(capsys, sentence)
    assert run("check-task", "Pendulum", "--backend", "warp", "--json", tmp_path / "a.json") == 2
    assert_one_sentence(capsys, sentence)
    assert files(tmp_path) == {}


def test_missing_imageio_names_its_extra_before_anything_is_computed(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio.v2", None)
    assert run("eval", trained, "--video", tmp_path / "a.gif", "--json", tmp_path / "a.json") == 2
    assert_one_sentence(capsys, r"imageio is not installed: pip install -e '\.\[video\]' in the project's folder")
    assert files(tmp_path) == {}


@pytest.mark.parametrize("command", ["train --resume", "eval"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", "half", b"{}", "list", "empty"], ids=str)
def test_a_damaged_checkpoint_is_refused_and_nothing_is_changed(command, content, copied, capsys):
    path = newest_checkpoint(copied)
    assert path is not None
    if content in ("list", "empty"):
        path.write_text(json.dumps([1, 2] if content == "list" else {"version": CHECKPOINT_VERSION}))
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    before = files(copied)
    assert run(*command.split(), copied) == 2
    other = content in (b"{}", "list", "empty")
    reason = "it does not hold what a training writes" if other else ".*"
    assert_one_sentence(capsys, rf"checkpoint {path} is damaged \({reason}\): delete it to resume from the one before")
    assert files(copied) == before
    path.unlink()
    assert run(*command.split(), copied) == 0  # the advice works


def test_a_damaged_checkpoint_that_is_the_only_one_is_not_to_be_resumed_from_another(copied, capsys):
    older, newest = checkpoints_of(copied)
    older.unlink()
    newest.write_bytes(b"no checkpoint")
    assert run("eval", copied) == 2
    assert_one_sentence(capsys, rf"checkpoint {newest} is damaged \(.*\): there is none before it, so train anew")


def test_a_foreign_error_is_cut_between_words():
    assert reason_of(RuntimeError("Weights only load failed. There are two options")) == "Weights only load failed"
    assert reason_of(RuntimeError("no such file a.pt\nmore")) == "no such file a.pt"
    assert reason_of(EOFError()) == "EOFError"
    long = reason_of(RuntimeError("several words " * 10))
    assert len(long) <= 100 and set(long.split()) == {"several", "words", "..."}


@pytest.mark.parametrize("command", ["train --resume", "eval"])
@pytest.mark.parametrize(
    ("version", "cure"), [(99, "update it"), (1, "train the run anew, in a new folder, as .*")], ids=["newer", "older"]
)
def test_a_checkpoint_of_another_version_is_refused(command, version, cure, copied, capsys):
    path = newest_checkpoint(copied)
    assert path is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
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
    before = files(copied)
    assert run("train", "--resume", copied) == 2
    held = r"its tables up to step 60 and policy\.safetensors"
    assert_one_sentence(capsys, rf"\S+ has no checkpoint to go on from, and starting over would replace {held}: .*")
    for advice in (r"the checkpoints of \S+ are gone: .*", r"\S+ has no checkpoint: restore it, or train anew"):
        assert run("eval", copied) == 2
        assert_one_sentence(capsys, advice)
        assert files(copied) == before
        before.pop(copied / "policy.safetensors", None)
        (copied / "policy.safetensors").unlink(missing_ok=True)
    keep_rows(copied, 0)
    assert run("eval", copied) == 2
    assert_one_sentence(capsys, r"\S+ has no checkpoint: train it further with --resume")
