"""An argument of the wrong kind gets one sentence that says what is accepted, wherever a task or a physics is given."""

import inspect

import pytest
import torch

from mage_diffsim.envs import BatchedEnv, MujocoTask, Physics, make_physics, make_task, rollout, uniform
from mage_diffsim.envs.contract import check_task
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError, unknown_name
from mage_diffsim.session import settled
from mage_diffsim.settings import make_config

STATE = torch.zeros(4, 2)


def refused(message, function, *arguments, **settings):
    """Beneath the test suite's shape-checking hook, which would speak first."""
    with pytest.raises(InputError, match=message):
        inspect.unwrap(function)(*arguments, **settings)


@pytest.mark.parametrize(
    ("given", "shown"),
    [("HalfCheetah", "'HalfCheetah'"), (Pendulum, "the class Pendulum"), (torch.Generator(), "a torch.Generator")],
)
def test_what_is_no_task_object_is_refused_everywhere(given, shown):
    physics = make_physics(make_task("Pendulum"))
    message = f"task is {shown}; accepted is a task object, as make_task gives it"
    refused(message, make_physics, given, "warp")
    refused(message, BatchedEnv.__init__, object.__new__(BatchedEnv), given, physics, 4, [torch.Generator()])
    refused(message, settled, make_config(), given)
    if not isinstance(given, str):
        refused(message, check_task, given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_low": (-1.0, -1.0)}, r"task class Wrong: action_low is \(-1.0, -1.0\); accepted is one number"),
        ({"action_low": (3.0,)}, "action_low is .* less than action_high"),
        ({"horizon": "long"}, "horizon is 'long'; accepted is a whole number"),
        ({"horizon": 0}, "horizon is 0; accepted is a whole number"),
        ({"dt": -1}, "dt is -1; accepted is a positive number"),
        ({"step": Pendulum.__base__.step, "physics": {}}, r"has no physics: define step\(state, action\)"),
    ],
)
def test_an_object_of_a_wrong_class_is_refused_where_it_is_given(changes, message):
    task = type("Wrong", (Pendulum,), changes)()
    right = make_task("Pendulum")
    refused(message, make_physics, task)
    refused(message, make_config, task)
    refused(message, settled, make_config(), task)
    refused(message, check_task, task)
    generators = [torch.Generator()]
    refused(message, BatchedEnv.__init__, object.__new__(BatchedEnv), task, make_physics(right), 4, generators)


def test_environments_and_rollouts_take_a_physics():
    task = make_task("Pendulum")
    message = "physics is a mage_diffsim.envs.tasks.pendulum.Pendulum; accepted is a physics, as make_physics gives it"
    refused(message, rollout, task, lambda obs: obs[:, :1], STATE)
    refused(message, BatchedEnv.__init__, object.__new__(BatchedEnv), task, task, 4, [torch.Generator()])


def test_environments_take_a_list_of_generators():
    task = make_task("Pendulum")
    env, physics = object.__new__(BatchedEnv), make_physics(task)
    message = "generators is a torch.Generator; accepted is a list of one torch.Generator per group"
    refused(message, BatchedEnv.__init__, env, task, physics, 16, torch.Generator())
    refused("generator is 0; accepted is a torch.Generator", BatchedEnv.__init__, env, task, physics, 16, [0])


def test_resets_take_a_generator():
    message = "generator is 0; accepted is a torch.Generator"
    task = make_task("Pendulum")
    refused(message, uniform, 4, (0.0,), (1.0,), 0)
    refused(message, MujocoTask.reset, None, 4, 0)
    refused(message, Physics.reset, make_physics(task), 4, 0)


def test_arrays_of_numpy_are_no_tensors():
    physics = make_physics(make_task("Pendulum"))
    message = "is a numpy.ndarray; accepted is a torch tensor"
    refused(f"state {message}", Physics.step, physics, STATE.numpy(), torch.zeros(4, 1))
    refused(f"action {message}", Physics.step, physics, STATE, torch.zeros(4, 1).numpy())
    refused(f"initial_state {message}", rollout, physics, lambda obs: obs[:, :1], STATE.numpy())


def test_an_empty_list_of_names_is_said_to_be_empty():
    sentence = str(unknown_name("readout of task R", "tip", (), remedy="declare it in readouts"))
    assert sentence == "unknown readout of task R 'tip': there is none; declare it in readouts"
    assert str(unknown_name("thing", "a", ())) == "unknown thing 'a': there is none"
    without = type("Bare", (Pendulum,), {"step": Pendulum.__base__.step, "physics": property(lambda self: {})})()
    refused(r"unknown backend of task Pendulum 'torch': there is none; define step\(", make_physics, without)
