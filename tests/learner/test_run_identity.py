"""What a run is trained with: task options that are recorded and rebuilt, and changes that are refused."""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typing_extensions import override

from mage_diffsim.cli import main
from mage_diffsim.config import TrainConfig, make_config
from mage_diffsim.display import show_log
from mage_diffsim.envs import registry
from mage_diffsim.envs.identity import (
    format_options,
    options_of,
    parse_options,
    reference_of,
    require_reproducible,
    sources_of,
)
from mage_diffsim.envs.physics import make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.task import Task, uniform
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from mage_diffsim.runs import load_checkpoint, load_trainer, newest_checkpoint, read_config, resume, train

SLIDE = '''
import torch

from mage_diffsim import Task
from mage_diffsim.envs import uniform
from rail import FRICTION


class Slide(Task):
    """A mass on a rail."""

    name = "Slide"
    state_names = obs_names = ("position", "velocity")
    action_names = ("force",)
    action_low, action_high = (-3.0,), (3.0,)
    dt = 0.05
    horizon = 5
    source = "Newton's second law"
    network_size = "small"

    def __init__(self, mass=1.0, *, rail=(1, [2.0, None]), label="a", **more):
        self.mass, self.rail, self.label, self.more = mass, rail, label, more

    def step(self, state, action):
        position, velocity = state.unbind(-1)
        velocity = velocity + self.dt * (self.scale_action(action)[..., 0] - FRICTION * velocity) / self.mass
        return torch.stack([position + self.dt * velocity, velocity], dim=-1)

    def observe(self, state):
        return state.clone()

    def reward(self, obs, action, next_obs):
        return -next_obs[..., 0].square()

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 5.0

    def reset(self, n, generator):
        return uniform(n, (-1.0, 0.0), (1.0, 0.0), generator)
'''

SMALL: dict[str, Any] = {
    "preset": "cpu",
    "steps": 2,
    "eval_every": 2,
    "eval_episodes": 1,
    "gradient_episodes": 0,
    "checkpoint_every": 1,
    "dynamics": "oracle",
    "hyper": {"batch_size": 4, "actor_hidden": (4,), "critic_hidden": (4,)},
}


@pytest.fixture
def slide(tmp_path, monkeypatch) -> str:
    """The task in a file that imports a module beside it."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "slide.py").write_text(SLIDE)
    (folder / "rail.py").write_text("FRICTION = 0.5\n")
    monkeypatch.syspath_prepend(str(folder))
    yield f"{folder / 'slide.py'}:Slide"
    for name in ("slide", "rail"):
        sys.modules.pop(name, None)


def velocity_after_a_push(trainer: Any) -> float:
    """Of a slide at rest that is pushed with 3 N for one step of 0.05 s: 0.15 / mass."""
    state, action = torch.zeros(1, 2), torch.ones(1, 1)
    return trainer.physics.step(state.to(trainer.physics.dtype), action.to(trainer.physics.dtype))[0, 1].item()


# ------------------------------------------------------------------------------------------------------- task options


def test_a_configured_task_object_is_the_one_that_is_trained(slide, tmp_path):
    config = make_config(make_task(slide, mass=20.0, colour="red"), **SMALL)
    assert (config.task, config.task_options) == (slide, {"mass": 20.0, "colour": "red"})
    train(config, tmp_path / "run")
    assert read_config(tmp_path / "run") == config
    resume(tmp_path / "run", steps=3)
    trainer = load_trainer(tmp_path / "run")
    assert trainer.task.mass == 20.0 and trainer.task.more == {"colour": "red"}
    assert velocity_after_a_push(trainer) == pytest.approx(0.15 / 20.0)


def test_the_options_of_a_task_object_given_to_train_are_recorded(slide, tmp_path):
    task = make_task(slide, mass=4.0, rail=[3, [1.5, True, {"a": "b"}]])
    train(make_config(slide, **SMALL), tmp_path / "run", task=task)
    data = json.loads((tmp_path / "run" / "config.json").read_text())
    assert data["task_options"] == {"mass": 4.0, "rail": [3, [1.5, True, {"a": "b"}]]}
    trainer = load_trainer(tmp_path / "run")
    assert trainer.task.rail == (3, (1.5, True, {"a": "b"}))
    assert velocity_after_a_push(trainer) == pytest.approx(0.15 / 4.0)
    with pytest.raises(InputError, match=r"trained with task options {'mass': 4.0, .*}, and task= .* {'mass': 5.0}"):
        load_trainer(tmp_path / "run", task=make_task(slide, mass=5.0))
    assert load_trainer(tmp_path / "run", task=task).task is task


def test_pendulum_of_another_clip_order_is_trained_in_every_backend(tmp_path):
    config = make_config(make_task("Pendulum", clip_order="v0"), **SMALL)
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


class Base(Task):
    name = "Base"
    state_names = obs_names = ("x",)
    action_names = ("a",)
    action_low, action_high = (-1.0,), (1.0,)
    dt, horizon, source, network_size = 0.1, 5, "test", "small"

    @override
    def step(self, state, action):
        return state + action

    def observe(self, state):
        return state.clone()

    def reward(self, obs, action, next_obs):
        return -next_obs[..., 0]

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 5.0

    def reset(self, n, generator):
        return uniform(n, (-1.0,), (1.0,), generator)


class Plain(Base):
    def __init__(self, a=1, /, b=2, *rest, c=3, **more):
        self.values = (a, b, rest, c, more)


class Derived(Plain):
    def __init__(self, scale=1.0, b=2):
        super().__init__(b=b)
        self.scale = scale


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


def made_heavier() -> Task:
    task = Derived()
    task.scale = 20.0
    return task


def with_more() -> Task:
    task = Base()
    task.extra = "anything"  # type: ignore[attr-defined]
    return task


class Hidden(Base):
    _gain = 1.0


def with_another_gain() -> Task:
    task = Hidden()
    task._gain = 20.0
    return task


class Random(Base):
    def __init__(self):
        self.weights = torch.randn(3)


UNRECORDABLE = {
    "an attribute set later": (made_heavier, "attribute scale of this task Base is 20.0, and 1.0 in one made with"),
    "an attribute added later": (with_more, "attribute extra of this task Base is 'anything', and absent in one"),
    "a private attribute set over the class's": (
        with_another_gain,
        "attribute _gain of this task Base is 20.0, and 1.0 in one made with",
    ),
    "an attribute drawn at random": (Random, "attribute weights of this task Base is tensor"),
    "a tensor": (lambda: Derived(torch.ones(2)), "option scale of task Base is tensor.*; accepted are numbers, text"),
    "a function": (lambda: Derived(len), "option scale of task Base is <built-in function len>"),
    "a nested function": (
        lambda: Derived([1, {"a": len}]),
        "option scale of task Base is .*, which cannot be recorded",
    ),
    "not a number": (lambda: Derived(float("nan")), "option scale of task Base is nan"),
}


@pytest.mark.parametrize("case", UNRECORDABLE)
def test_a_task_that_its_options_do_not_make_again_is_refused_and_nothing_is_written(case, tmp_path):
    make, sentence = UNRECORDABLE[case]
    with pytest.raises(InputError, match=sentence):
        make_config(make(), **SMALL)
    with pytest.raises(InputError, match=sentence):
        train(make_config(Base(), **SMALL), tmp_path / "run", task=make())
    assert list(tmp_path.iterdir()) == []


def heavier_reward(self, obs, action, next_obs):
    return -3.0 * next_obs[..., 0].square()


PATCHES = {
    "an attribute": ("dt", 0.5, "attribute dt = 0.5 is not what"),
    "an added attribute": ("mass", 20.0, "attribute mass is not what"),
    "a method": ("reward", heavier_reward, "method reward is not what"),
    "a constructor": ("__init__", lambda self, mass=2.0: None, "method __init__ is not what"),
    "an added method": ("scale_action", lambda self, action: 2.0 * action, "method scale_action is not what"),
}


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("case", PATCHES)
def test_what_is_changed_on_a_class_is_refused_and_nothing_is_written(case, imported, slide, tmp_path, monkeypatch):
    name, value, sentence = PATCHES[case]
    config = make_config(slide, **SMALL)
    if imported:
        import slide as module
    cls = module.Slide if imported else type(make_task(slide))
    make_config(cls(mass=2.0), **SMALL)
    monkeypatch.setattr(cls, name, value, raising=False)
    for refuse in (
        lambda: make_config(cls(mass=2.0), **SMALL),
        lambda: train(config, tmp_path / "run", task=cls(mass=2.0)),
    ):
        with pytest.raises(InputError, match=f"{sentence} .*slide.py:Slide defines, .* change it in the file"):
            refuse()
    assert not (tmp_path / "run").exists()
    assert make_config(slide, **SMALL) == config


def test_a_global_that_is_changed_and_a_file_that_is_edited_after_the_task_was_made_are_refused(slide, monkeypatch):
    import slide as module

    task = module.Slide()
    with monkeypatch.context() as patch:
        patch.setattr(module, "FRICTION", 9.0)
        with pytest.raises(InputError, match="method step is not what"):
            make_config(task, **SMALL)
    make_config(task, **SMALL)
    path = Path(slide.rpartition(":")[0])
    text = path.read_text()
    path.write_text("# a comment\n" + text.replace("A mass", "A body"))
    make_config(task, **SMALL)
    path.write_text(text.replace("dt = 0.05", "dt = 0.5"))
    with pytest.raises(InputError, match=r"attribute dt = 0.05 is not what .* make the task anew"):
        make_config(task, **SMALL)
    assert make_config(make_task(slide), **SMALL).task == slide


DECORATED = """
import dataclasses, enum, functools
import torch
from mage_diffsim.envs import register_task
from slide import Slide


@dataclasses.dataclass
class Rail:
    length: float
    made: object = None


class Kind(enum.Enum):
    WOOD = "wood"


def logged(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)
    return inner


_CACHE = {}


@register_task
@dataclasses.dataclass(frozen=True)
class Decorated(Slide):
    name = "Decorated"
    mass: float = 1.0
    rail = Rail(2.0, Kind.WOOD)
    kind = Kind.WOOD
    table = torch.tensor([1.0, float("nan")])
    helpers = {"square": lambda x: x * x, "half": functools.partial(max, 0.5)}
    Inner = Rail

    @functools.cached_property
    def weight(self):
        return 9.81 * self.mass

    @staticmethod
    @functools.lru_cache
    def double(x):
        return 2 * x

    @logged
    def reward(self, obs, action, next_obs):
        _CACHE["a"] = 1
        return self.kind is Kind.WOOD and super().reward(obs, action, next_obs)
"""


def test_a_class_that_is_as_its_file_says_is_not_refused_whatever_is_in_it(slide):
    path = Path(slide.rpartition(":")[0]).parent / "decorated.py"
    path.write_text(DECORATED)
    task = make_task(f"{path}:Decorated", mass=2.0)
    task.reward(torch.ones(2), torch.ones(1), torch.ones(2))
    assert make_config(task, **SMALL).task_options == {"mass": 2.0}
    assert type(make_task("Decorated")) is type(task)
    assert pickle.loads(pickle.dumps(task)).__class__ is type(task)
    type(task).rail.length = 3.0
    with pytest.raises(InputError, match=r"attribute rail = .* is not what"):
        make_config(task, **SMALL)


class Caching(Base):
    def __init__(self, table=(1.0, 2.0)):
        self.table = torch.tensor(table)
        self.scale = lambda x: x * table[0]
        self.generator = torch.Generator().manual_seed(3)
        self.layer = {"a": np.array([1.0, np.nan])}
        self._cache: dict[str, int] = {}
        self._last = None


def test_what_the_constructor_makes_and_private_caches_are_no_reason_to_refuse():
    task = Caching([3.0])
    task._cache["a"] = 1
    task._last = torch.ones(1)
    require_reproducible(task)
    for mass in (np.float32(2.5), np.arange(3)[2]):  # as in a loop over an array
        require_reproducible(Derived(mass))
    task.layer["a"][0] = 2.0
    with pytest.raises(InputError, match="attribute layer of this task Base is"):
        require_reproducible(task)


def test_a_model_edited_after_loading_is_refused():
    pytest.importorskip("mujoco")
    task = make_task("InvertedPendulum")
    require_reproducible(task)
    _ = task.simulation.fingerprint
    require_reproducible(task)
    task.simulation.model.body_mass[1] *= 2.0
    with pytest.raises(InputError, match="attribute simulation of this task InvertedPendulum"):
        require_reproducible(task)


def test_another_task_than_the_configured_one_is_refused(slide, tmp_path):
    with pytest.raises(InputError, match="and the configuration is of task Pendulum"):
        train(make_config("Pendulum", **SMALL), tmp_path / "run", task=make_task(slide))
    with pytest.raises(InputError, match=r"task_options are {'mass': 2.0}, and the task object .* {'mass': 3.0}"):
        make_config(make_task(slide, mass=3.0), task_options={"mass": 2.0}, **SMALL)


@pytest.mark.parametrize("options", [{"mass": torch.ones(1)}, {"mass": float("nan")}, 3, {3: 4}])
def test_task_options_that_are_none_get_one_sentence(slide, options):
    with pytest.raises(InputError, match="task_options"):
        make_config(slide, task_options=options, **SMALL)


def test_a_class_of_a_function_is_asked_for_when_the_run_goes_on(tmp_path):
    class Local(Base):
        name = "Local"

        def __init__(self, mass=1.0):
            self.mass = mass

    class Other(Base):
        name = "Local"

        def __init__(self, mass=1.0):
            self.mass = mass

        def reward(self, obs, action, next_obs):
            return next_obs[..., 0]

    train(make_config(Local(2.0), **SMALL), tmp_path / "run", task=Local(2.0))
    for go_on in (resume, load_trainer):
        with pytest.raises(InputError, match=r"task of .* is not found: .* defined in a notebook, .* as task="):
            go_on(tmp_path / "run")
        with pytest.raises(InputError, match="trained with task options"):
            go_on(tmp_path / "run", task=Local())
    resume(tmp_path / "run", steps=3, task=Local(2.0))
    assert load_trainer(tmp_path / "run", task=Local(2.0)).env_step == 3


NOTEBOOK = """
import sys
from pathlib import Path
from mage_diffsim import InputError, load_trainer, make_config, resume, train
from mage_diffsim.envs.tasks.pendulum import Pendulum

SCALE = 1.0
class Mine(Pendulum):
    name = "Mine"
    horizon = 5
    def __init__(self, mass=1.0):
        super().__init__()
        self.mass = mass
    def reward(self, obs, action, next_obs):
        return SCALE * super().reward(obs, action, next_obs) / self.mass

settings = dict(preset="cpu", steps=2, eval_episodes=1, gradient_episodes=0, dynamics="oracle")
run_dir = Path(sys.argv[1])
train(make_config(Mine(3.0), **settings), run_dir)
resume(run_dir, steps=3)
assert load_trainer(run_dir).task.mass == 3.0
"""


def test_a_class_of_python_c_trains_and_goes_on_with_the_object(tmp_path):
    done = subprocess.run([sys.executable, "-c", NOTEBOOK, tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_config(tmp_path / "run").task == "__main__:Mine"
    assert read_config(tmp_path / "run").task_options == {"mass": 3.0}
    again = NOTEBOOK.partition("train(make")[0] + "resume(run_dir, steps=4, task=Mine(3.0))"
    done = subprocess.run([sys.executable, "-c", again, tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = again.replace("SCALE = 1.0", "SCALE = 2.0")
    done = subprocess.run([sys.executable, "-c", again, tmp_path / "run"], capture_output=True, text=True)
    assert "was trained with another class Mine (compiled by Python" in done.stderr


def test_references_find_the_class_again(slide):
    task = make_task(slide)
    assert reference_of(type(task)) == slide
    assert reference_of(Pendulum) == "Pendulum"
    assert type(make_task(reference_of(type(task)))).__name__ == "Slide"
    import slide as module

    assert reference_of(module.Slide) == slide


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
    assert make_config(task, **SMALL).task_options == recorded
    again = Scaled(**recorded)
    assert (task.weight, task.gains, task.on) == (again.weight, again.gains, again.on)
    assert "np." not in repr(task)


def test_the_repr_of_a_task_shows_the_options_it_was_made_with():
    assert repr(Scaled(20.0, on=True)) == "Scaled(mass=20.0, on=True)"
    assert repr(Base()) == "Base()"


@pytest.mark.parametrize(("given", "shown"), [(Base, "the class Base"), (None, "None"), (42, "42")])
def test_what_is_no_task_gets_one_sentence(given, shown):
    with pytest.raises(InputError, match=f"task is {shown}; accepted is a task's name, or a task object"):
        inspect.unwrap(make_config)(given)
    with pytest.raises(InputError, match=f"make_task was given {shown}; accepted is a task's name"):
        inspect.unwrap(make_task)(given)


def test_a_class_of_exec_in_a_namespace_of_its_own_is_found_if_registered_and_else_asked_for(monkeypatch):
    space: dict[str, Any] = {"__name__": "a_module_that_never_was", "Base": Base}
    exec("class Made(Base):\n    name = 'Made'", space)
    config = make_config(space["Made"](), **SMALL)
    with pytest.raises(InputError, match="from Python, give the object as task="):
        config.make_task()
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    registry.register_task(space["Made"])
    assert type(config.make_task()) is space["Made"]


def test_a_folder_beside_a_task_file_does_not_stand_for_an_installed_package(slide):
    folder = Path(slide.rpartition(":")[0]).parent
    before = sources_of(make_task(slide)).keys()
    (folder / "mage_diffsim" / "envs").mkdir(parents=True)
    for part in ("", "envs"):
        (folder / "mage_diffsim" / part / "__init__.py").write_text("")
    (folder / "torch").mkdir()
    (folder / "torch" / "stack.py").write_text("")
    (folder / "slide.py").write_text("from torch import stack\n" + SLIDE)
    assert sources_of(make_task(slide)).keys() == before


# --------------------------------------------------------------------------------------------------- what has changed


@pytest.fixture
def trained(slide, tmp_path) -> Path:
    """A run folder of two steps."""
    train(make_config(slide, **SMALL), tmp_path / "run")
    return tmp_path / "run"


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which resume, load_trainer and eval refuse a run, leaving it as it was."""
    before = files(run_dir)
    for go_on in (lambda: resume(run_dir, steps=9), lambda: load_trainer(run_dir)):
        with pytest.raises(InputError) as caught:
            go_on()
    capsys.readouterr()
    assert main(["eval", str(run_dir)]) == 2
    assert capsys.readouterr() == ("", f"mage-diffsim: {caught.value}\n")
    assert files(run_dir) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seeds": [1]}, "seeds (0,) and not (1,)"),
        ({"seeds": [0, 1]}, "seeds (0,) and not (0, 1)"),
        ({"lambdas": [0.5]}, "lambdas (0.2,) and not (0.5,)"),
        ({"method": "dyna-td3"}, "method mage-td3 and not dyna-td3"),
        ({"method": "dyna-td3", "loss": "mage"}, "method mage-td3 and not dyna-td3, loss None and not mage"),
        ({"task_options": {"mass": 2.0}}, "task_options {} and not {'mass': 2.0}"),
        ({"hyper": {"gamma": 0.5}}, "hyper.gamma 0.99 and not 0.5"),
        ({"eval_episodes": 2}, "eval_episodes 1 and not 2"),
    ],
)
def test_an_edited_configuration_is_refused_by_name(change, sentence, trained, capsys):
    data = json.loads((trained / "config.json").read_text())
    hyper = data["hyper"] | change.get("hyper", {})
    (trained / "config.json").write_text(json.dumps(data | change | {"hyper": hyper}))
    assert refused(trained, capsys) == (
        f"{trained} was trained with {sentence}: restore that to go on, or train anew into another folder"
    )


def test_what_changes_no_result_may_be_edited(trained):
    data = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps(data | {"steps": 4, "checkpoint_every": 3, "compile": "off"}))
    resume(trained)
    assert load_trainer(trained).env_step == 4


def test_a_run_goes_on_with_a_task_file_that_was_moved_and_not_with_another_class_of_it(slide, tmp_path, capsys):
    path = Path(slide.rpartition(":")[0])
    path.write_text(path.read_text() + "\n\nclass Other(Slide):\n    pass\n")
    run_dir = tmp_path / "run"
    train(make_config(slide, **SMALL), run_dir)
    moved = shutil.move(path.parent, tmp_path / "moved") / "slide.py"
    assert "config.json is not found: task " in refused(run_dir, capsys)
    data = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(data | {"task": f"{moved}:Other"}))
    assert f" was trained with task {slide} and not {moved}:Other: " in refused(run_dir, capsys)
    (run_dir / "config.json").write_text(json.dumps(data | {"task": f"{moved}:Slide"}))
    resume(run_dir, steps=3)
    assert load_trainer(run_dir).env_step == 3
    renamed = moved.rename(moved.parent / "elsewhere.py")
    assert '"task" there; or, from Python, give the object as task=' in refused(run_dir, capsys)
    task = make_task(f"{renamed}:Slide")
    assert load_trainer(run_dir, task=task).env_step == 3
    (run_dir / "config.json").write_text(json.dumps(data | {"task": f"{renamed}:Slide"}))
    assert load_trainer(run_dir).env_step == 3
    (run_dir / "config.json").write_text(json.dumps(data))
    resume(run_dir, steps=4, task=task)
    assert read_config(run_dir).task == f"{renamed}:Slide"
    assert load_trainer(run_dir).env_step == 4
    (moved.parent / "rail.py").write_text("FRICTION = 0.6\n")
    assert " was trained with another rail.py of task Slide: " in refused(run_dir, capsys)


@pytest.mark.parametrize("file", ["slide.py", "rail.py"])
def test_an_edited_task_file_or_one_that_it_imports_is_refused(file, trained, slide, capsys):
    path = Path(slide.rpartition(":")[0]).parent / file
    text = path.read_text()
    path.write_text(text.replace("FRICTION = 0.5", "FRICTION = 0.6").replace("position + self.dt", "position + 2.0"))
    assert path.read_text() != text
    assert f" was trained with another {file} of task Slide: restore that to go on, " in refused(trained, capsys)
    # comments, docstrings, layout and what runs as a script only do not matter
    text = text.replace('"""A mass on a rail."""', '"""Another text."""  # and a comment')
    path.write_text(f"# a comment\n\n\n{text}\n\nif __name__ == '__main__':\n    print('hello')\n")
    resume(trained, steps=3)


def test_a_patched_class_attribute_is_refused(trained, slide, monkeypatch):
    task = make_task(slide)
    monkeypatch.setattr(type(task), "dt", 0.5)
    with pytest.raises(InputError, match=r"class of this task Slide, attribute dt = 0.5 is not what .*slide.py:Slide"):
        resume(trained, steps=3, task=task)


def test_a_built_in_task_that_another_version_changed_names_the_version(tmp_path, monkeypatch):
    train(make_config("Pendulum", **SMALL), tmp_path / "run")
    monkeypatch.setattr("mage_diffsim.__version__", "9.9")
    load_trainer(tmp_path / "run")  # another version alone is no reason
    monkeypatch.setattr(Pendulum, "g", 9.81)
    with pytest.raises(InputError, match=r"was trained by mage_diffsim 0.1.0 with another attribute g of"):
        load_trainer(tmp_path / "run")


def test_the_sources_of_a_task_are_its_files_physics_and_model(tmp_path, monkeypatch):
    pendulum = sources_of(make_task("Pendulum"))
    modules = {name for name in pendulum if name.startswith("mage_diffsim")}
    assert modules == {f"mage_diffsim.envs.{k}.pendulum" for k in ("tasks", "jax", "warp")}
    assert pendulum == sources_of(make_task("Pendulum", clip_order="v0"))
    pytest.importorskip("mujoco")
    (tmp_path / "pole.xml").write_text('<mujoco><include file="joint.xml"/></mujoco>')
    text = (
        Path(pytest.importorskip("gymnasium").__file__).parent / "envs/mujoco/assets/inverted_pendulum.xml"
    ).read_text()
    (tmp_path / "joint.xml").write_text(text)

    class Pole(type(make_task("InvertedPendulum"))):  # type: ignore[misc]
        mjcf = str(tmp_path / "pole.xml")

    before = sources_of(Pole())
    assert {"model pole.xml", "model joint.xml"} <= before.keys()
    (tmp_path / "joint.xml").write_text(text.replace("<worldbody>", "<!-- a comment -->\n  <worldbody>"))
    assert sources_of(Pole()) == before
    (tmp_path / "joint.xml").write_text(text.replace('gear="100"', 'gear="50"'))
    after = sources_of(Pole())
    assert {name for name in after if after[name] != before[name]} == {"model joint.xml"}


def test_a_run_of_an_older_version_goes_on_with_a_warning(trained):
    path = newest_checkpoint(trained)
    assert path is not None
    content = load_checkpoint(path)
    del content["identity"]
    torch.save(content, path)
    (trained / "identity.json").unlink()
    said: list[str] = []
    with show_log(said.append):
        resume(trained, steps=3)
    assert len(said) == 1 and re.fullmatch(r"\S+ was trained by an older version .* is not known", said[0])


def test_a_run_without_a_checkpoint_starts_anew_with_what_is_there(trained, slide):
    shutil.rmtree(trained / "checkpoints")
    path = Path(slide.rpartition(":")[0]).parent / "rail.py"
    path.write_text("FRICTION = 0.6\n")
    sys.modules.pop("rail", None)
    resume(trained)
    load_trainer(trained)


def test_the_configuration_with_options_survives_its_file(slide):
    config = make_config(slide, task_options={"mass": 2.0, "rail": [1, [2, {"a": (3,)}]]}, **SMALL)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(dataclasses.replace(config))
