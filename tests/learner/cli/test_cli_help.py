"""The help of the ``mage-diffsim`` command: every setting, with the values of the chosen preset."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

import pytest

from mage_diffsim.choices import choices_of
from mage_diffsim.cli import COMMANDS
from mage_diffsim.config import TrainConfig
from mage_diffsim.hyper import Hyper
from mage_diffsim.settings import make_config
from tests.learner.cli.commands import run


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


@pytest.mark.parametrize("command", COMMANDS)
def test_no_default_is_shown_as_nothing(command, capsys):
    assert not re.search(r"\(default: *\)", help_of(capsys, command))


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
        (r"--preset \{paper,authors,cpu\}", expected.preset),
        ("--batch-size INT", expected.hyper.batch_size),
        ("--learning-rate FLOAT", expected.hyper.learning_rate),
        ("--model-batches INT", expected.hyper.model_batches),
        ("--ensemble-members INT", expected.hyper.ensemble_members),
        (r"--ensemble-hidden \[INT \[INT ...\]\]", " ".join(map(str, expected.hyper.ensemble_hidden))),
    ):
        assert shown(text, flag) == str(value)


def test_help_lists_the_names_that_a_setting_chooses_among(capsys):
    text = help_of(capsys, "train")
    choices = choices_of(TrainConfig)
    assert {"method", "dynamics", "loss", "reward", "preset", "ensemble", "solver", "loss_weights"} <= choices.keys()
    for name, accepted in choices.items():
        assert f"--{name.replace('_', '-')} {{{','.join(map(str, accepted))}}} " in text, name


def test_every_setting_is_a_flag_with_a_help_text(capsys):
    text = help_of(capsys, "train")
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.name != "hyper"]
    names += [f.name for f in dataclasses.fields(Hyper)]
    names += ["out", "resume", "tensorboard", "quiet"]
    assert len(names) == len(set(names))  # flat flags have no room for two of a name
    for name in names:
        flag = name.replace("_", "-")
        assert re.search(rf" --{flag}[ ,][^()]*?[a-z]{{3}}", text), name


@pytest.mark.parametrize("command", ["--help", "train --help", "eval --help", "list-tasks"])
def test_a_reader_that_goes_away_ends_a_command_quietly(command):
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, "-m", "mage_diffsim.cli", *command.split()]
    done = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True, timeout=200)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
