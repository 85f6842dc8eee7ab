"""Task options: what is recorded of a task object, and how it is made again."""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import pickle

import numpy as np
import pytest
import torch

from mage_diffsim.cli import main
from mage_diffsim.config import TrainConfig
from mage_diffsim.envs.identity.options import format_options, options_of, parse_options
from mage_diffsim.envs.physics import make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import InputError
from mage_diffsim.run_folder import load_trainer, read_config
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from tests.learner.recorded_tasks import Base, Derived, Plain, velocity_after_a_push
from tests.tiny import MOMENT


def test_a_configured_task_object_is_the_one_that_is_trained(slide, tmp_path):
    config = make_config(make_task(slide, mass=20.0, colour="red"), **MOMENT)
    assert (config.task, config.task_options) == (slide, {"mass": 20.0, "colour": "red"})
    train(config, tmp_path / "run")
    assert read_config(tmp_path / "run") == dataclasses.replace(config, environment="torch")
    resume(tmp_path / "run", steps=3)
    trainer = load_trainer(tmp_path / "run")
    assert trainer.task.mass == 20.0 and trainer.task.more == {"colour": "red"}
    assert velocity_after_a_push(trainer) == pytest.approx(0.15 / 20.0)


def test_the_options_of_a_task_object_given_to_train_are_recorded(slide, tmp_path):
    task = make_task(slide, mass=4.0, rail=[3, [1.5, True, {"a": "b"}]])
    train(make_config(slide, **MOMENT), tmp_path / "run", task=task)
    data = json.loads((tmp_path / "run" / "config.json").read_text())
    assert data["task_options"] == {"mass": 4.0, "rail": [3, [1.5, True, {"a": "b"}]]}
    trainer = load_trainer(tmp_path / "run")
    assert trainer.task.rail == (3, (1.5, True, {"a": "b"}))
    assert velocity_after_a_push(trainer) == pytest.approx(0.15 / 4.0)
    with pytest.raises(InputError, match=r"trained with task options {'mass': 4.0, .*}, and task= .* {'mass': 5.0}"):
        load_trainer(tmp_path / "run", task=make_task(slide, mass=5.0))
    assert load_trainer(tmp_path / "run", task=task).task is task


def test_pendulum_of_another_clip_order_is_trained_in_every_backend(tmp_path):
    config = make_config(make_task("Pendulum", clip_order="v0"), **MOMENT)
    assert (config.task, config.task_options) == ("Pendulum", {"clip_order": "v0"})
    train(config, tmp_path / "run")
    trainer = load_trainer(tmp_path / "run")
    # At the speed limit v0 moves by the unclipped speed: gym's Pendulum-v0, theta' = theta + 0.05 * unclipped.
    state, action = torch.tensor([[1.0, 7.99]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    unclipped = 7.99 + 0.05 * (15.0 * np.sin(1.0) + 3.0 * 2.0)
    expected = torch.tensor([[1.0 + 0.05 * unclipped, 8.0]], dtype=torch.float64)
    torch.testing.assert_close(trainer.truth_physics.step(state, action), expected)
    for backend in ("jax", "warp"):
        pytest.importorskip(backend)
        physics = make_physics(config.make_task(), backend, dtype=torch.float64)
        torch.testing.assert_close(physics.step(state, action), expected)


def test_options_on_the_command_line_are_trained_and_shown_by_name(slide, tmp_path, capsys):
    flags = [
        "--preset",
        "cpu",
        "--steps",
        "1",
        "--eval-episodes",
        "1",
        "--gradient-episodes",
        "0",
        "--dynamics",
        "oracle",
        "--batch-size",
        "4",
    ]
    run_dir = tmp_path / "run"
    options = ["--task-options", "mass=20", "rail=[1, 2]", "label=1.5kg"]
    assert main(["train", "--task", slide, *options, *flags, "--quiet", "--out", str(run_dir)]) == 0
    assert read_config(run_dir).task_options == {"mass": 20, "rail": (1, 2), "label": "1.5kg"}
    assert velocity_after_a_push(load_trainer(run_dir)) == pytest.approx(0.15 / 20.0)
    assert main(["eval", str(run_dir), "--episodes", "1"]) == 0
    capsys.readouterr()
    for wrong, sentence in {
        "clip=v0": "task Pendulum has no option 'clip': the options it takes are: clip_order",
        "clip_order": "the task option 'clip_order' was given; accepted is NAME=VALUE, such as mass=20",
        "clip_order=v2": "unknown clip_order of task Pendulum 'v2': choose one of v0, v1",
    }.items():
        for command in (["train", "--task", "Pendulum"], ["check-task", "Pendulum"]):
            assert main([*command, "--task-options", wrong]) == 2
            assert capsys.readouterr().err == f"mage-diffsim: {sentence}\n"


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["mass=20"], {"mass": 20}),
        (["mass=2e1", "on=true", "none=null"], {"mass": 20.0, "on": True, "none": None}),
        (["on=True", "off=False", "none=None"], {"on": True, "off": False, "none": None}),
        (['text="False"', "number=NaN", 'quoted="a"'], {"text": "False", "number": "NaN", "quoted": "a"}),
        (["order=v0", "text=", "path=a=b"], {"order": "v0", "text": "", "path": "a=b"}),
        (
            ['list=[1, "a", [2.5]]', 'd={"a": 1}', 'digits="12"'],
            {"list": (1, "a", (2.5,)), "d": {"a": 1}, "digits": "12"},
        ),
    ],
)
def test_options_as_words_are_json_or_text_and_survive_the_way_back(words, options):
    assert parse_options(words) == options
    assert parse_options(format_options(options)) == options


def test_an_option_given_twice_is_refused():
    with pytest.raises(InputError, match="the task option mass was given twice"):
        parse_options(["mass=1", "mass=2"])


@dataclasses.dataclass(frozen=True)
class Data(Base):
    mass: float = 1.0
    gains: tuple[float, ...] = (1.0,)


Colour = enum.Enum("Colour", {"RED": "red"}, type=str)


def test_options_are_those_that_differ_from_the_defaults_however_they_are_given():
    assert options_of(Base()) == {}
    assert options_of(Plain()) == options_of(Plain(1, 2, c=3)) == {}
    assert options_of(Plain(b=np.float32(5), c=np.int64(3), d=[1])) == {"b": 5.0, "d": (1,)}
    assert options_of(Derived(3.0, 7)) == {"scale": 3.0, "b": 7}
    assert options_of(Data(2.0)) == options_of(Data(mass=2.0)) == {"mass": 2.0}
    assert options_of(Data(gains=(1.0, 2.0))) == {"gains": (1.0, 2.0)}
    assert options_of(Plain(b=Colour.RED)) == {"b": "red"}
    with pytest.raises(InputError, match="option a of task Base cannot be given by name"):
        options_of(Plain(5))
    with pytest.raises(InputError, match=r"unnamed arguments \(9,\)"):
        options_of(Plain(1, 2, 9))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))])
def test_options_survive_copies_and_pickles(again):
    assert options_of(again(Derived(3.0))) == {"scale": 3.0}
    assert options_of(again(Data(2.0))) == {"mass": 2.0}


def test_a_constructor_without_options_still_refuses_arguments():
    with pytest.raises(TypeError):
        Base(3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="task CartPole has no option 'mass': the options it takes are: none"):
        make_task("CartPole", mass=1.0)


class Strict(Base):
    def __init__(self, mass):
        if mass <= 0.0:
            raise ValueError("the mass\nis not positive")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "task Base needs the option 'mass': the options it takes are: mass"),
        (["mass=-1"], "task Base cannot be made with the options {'mass': -1}: the mass is not positive"),
        (["mass=1kg"], "task Base cannot be made with the options {'mass': '1kg'}: '<=' not supported between"),
    ],
)
def test_options_that_a_constructor_refuses_or_misses_get_one_sentence(words, sentence, capsys):
    for command in (["train", "--task", f"{__name__}:Strict"], ["check-task", f"{__name__}:Strict"]):
        assert main([*command, *(["--task-options", *words] if words else [])]) == 2
        assert capsys.readouterr().err.startswith(f"mage-diffsim: {sentence}")


@pytest.mark.parametrize("options", [{"mass": torch.ones(1)}, {"mass": float("nan")}, 3, {3: 4}])
def test_task_options_that_are_none_get_one_sentence(slide, options):
    with pytest.raises(InputError, match="task_options"):
        make_config(slide, task_options=options, **MOMENT)


class Scaled(Base):
    def __init__(self, mass=1.0, *, gains=(1.0,), on=False):
        self.weight, self.gains, self.on = 9.81 * mass, [3 * gain for gain in gains], on


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ({"mass": np.float32(0.1)}, {"mass": float(np.float32(0.1))}),
        ({"mass": np.int64(2)}, {"mass": 2}),
        ({"on": np.bool_(True)}, {"on": True}),
        ({"gains": [np.float32(0.1), np.float64(2.0)]}, {"gains": (float(np.float32(0.1)), 2.0)}),
    ],
)
def test_numpy_numbers_are_options_as_plain_ones_are_and_the_repr_shows_them(given, recorded):
    task = Scaled(**given)
    assert make_config(task, **MOMENT).task_options == recorded
    again = Scaled(**recorded)
    assert (task.weight, task.gains, task.on) == (again.weight, again.gains, again.on)
    assert "np." not in repr(task)


def test_the_repr_of_a_task_shows_the_options_it_was_made_with():
    assert repr(Scaled(20.0, on=True)) == "Scaled(mass=20.0, on=True)"
    assert repr(Base()) == "Base()"


def test_the_configuration_with_options_survives_its_file(slide):
    config = make_config(slide, task_options={"mass": 2.0, "rail": [1, [2, {"a": (3,)}]]}, **MOMENT)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(dataclasses.replace(config))
