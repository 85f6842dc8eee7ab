"""Task objects and classes that their options or their file do not make again are refused."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mage_diffsim.envs import registry
from mage_diffsim.envs.identity.reference import reference_of
from mage_diffsim.envs.identity.reproducible import require_reproducible
from mage_diffsim.envs.identity.sources import sources_of
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.task import Task
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from mage_diffsim.session import train
from mage_diffsim.settings import make_config
from tests.learner.recorded_tasks import SLIDE, Base, Derived
from tests.tiny import MOMENT


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
        make_config(make(), **MOMENT)
    with pytest.raises(InputError, match=sentence):
        train(make_config(Base(), **MOMENT), tmp_path / "run", task=make())
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
    config = make_config(slide, **MOMENT)
    if imported:
        import slide as module
    cls = module.Slide if imported else type(make_task(slide))
    make_config(cls(mass=2.0), **MOMENT)
    monkeypatch.setattr(cls, name, value, raising=False)
    for refuse in (
        lambda: make_config(cls(mass=2.0), **MOMENT),
        lambda: train(config, tmp_path / "run", task=cls(mass=2.0)),
    ):
        with pytest.raises(InputError, match=f"{sentence} .*slide.py:Slide defines, .* change it in the file"):
            refuse()
    assert not (tmp_path / "run").exists()
    assert make_config(slide, **MOMENT) == config


def test_a_global_that_is_changed_and_a_file_that_is_edited_after_the_task_was_made_are_refused(slide, monkeypatch):
    import slide as module

    task = module.Slide()
    with monkeypatch.context() as patch:
        patch.setattr(module, "FRICTION", 9.0)
        with pytest.raises(InputError, match="method step is not what"):
            make_config(task, **MOMENT)
    make_config(task, **MOMENT)
    path = Path(slide.rpartition(":")[0])
    text = path.read_text()
    path.write_text("# a comment\n" + text.replace("A mass", "A body"))
    make_config(task, **MOMENT)
    path.write_text(text.replace("dt = 0.05", "dt = 0.5"))
    with pytest.raises(InputError, match=r"attribute dt = 0.05 is not what .* make the task anew"):
        make_config(task, **MOMENT)
    assert make_config(make_task(slide), **MOMENT).task == slide


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
    assert make_config(task, **MOMENT).task_options == {"mass": 2.0}
    assert type(make_task("Decorated")) is type(task)
    assert pickle.loads(pickle.dumps(task)).__class__ is type(task)
    type(task).rail.length = 3.0
    with pytest.raises(InputError, match=r"attribute rail = .* is not what"):
        make_config(task, **MOMENT)


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


def test_references_find_the_class_again(slide):
    task = make_task(slide)
    assert reference_of(type(task)) == slide
    assert reference_of(Pendulum) == "Pendulum"
    assert type(make_task(reference_of(type(task)))).__name__ == "Slide"
    import slide as module

    assert reference_of(module.Slide) == slide


@pytest.mark.parametrize(("given", "shown"), [(Base, "the class Base"), (None, "None"), (42, "42")])
def test_what_is_no_task_gets_one_sentence(given, shown):
    with pytest.raises(InputError, match=f"task is {shown}; accepted is a task's name, or a task object"):
        inspect.unwrap(make_config)(given)
    with pytest.raises(InputError, match=f"make_task was given {shown}; accepted is a task's name"):
        inspect.unwrap(make_task)(given)


def test_a_class_of_exec_in_a_namespace_of_its_own_is_found_if_registered_and_else_asked_for(monkeypatch):
    space: dict[str, Any] = {"__name__": "a_module_that_never_was", "Base": Base}
    exec("class Made(Base):\n    name = 'Made'", space)
    config = make_config(space["Made"](), **MOMENT)
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
