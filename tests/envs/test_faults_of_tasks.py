"""A task that raises, or whose backend is not there, fails its check; what raises never ends the check."""

import pytest
import torch

from mage_diffsim.envs import make_task
from mage_diffsim.envs.contract import check_task
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from tests.learner.cli.commands import TASK_FILE, run

FUNCTIONS = ("reset", "observe", "reward", "terminated", "step")


def raising(function, condition=lambda x: True):
    """Pendulum in torch, one of whose functions raises where its first argument fulfils the condition."""

    def broken(self, *inputs):
        if condition(inputs[0]):
            raise RuntimeError("a fault of the task")
        return getattr(Pendulum, function)(self, *inputs)

    return type("Pendulum", (Pendulum,), {function: broken, "physics": {}})()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_that_raises_is_a_failed_check(function):
    failures = check_task(raising(function), samples=4, steps=4).failures
    rows = [c for c in failures if c.subject.startswith(function)]
    assert len(rows) == 1 and rows[0].detail == "raised RuntimeError: a fault of the task", failures
    assert {c.subject for c in failures} <= {rows[0].subject, "rollout"}


@pytest.mark.parametrize("function", ["observe", "reward", "step"])
def test_a_function_that_raises_in_some_states_alone_is_a_failed_check(function):
    far = torch.full((1, 2), 100.0, dtype=torch.float64)
    task = raising(function, lambda x: bool((x.abs() > 50).any()))
    failures = check_task(task, samples=4, steps=4, states=far).failures
    assert any(c.subject.startswith(function) and c.detail.startswith("raised RuntimeError") for c in failures)


def jax_raises(task):
    def step(state, action):
        raise ValueError("a fault of the JAX step")

    return step


def jax_of_another_width(task):
    return lambda state, action: state[:1]


class RaisesInJax(Pendulum):
    physics = {"jax": jax_raises}  # noqa: RUF012


class OfAnotherWidthInJax(Pendulum):
    physics = {"jax": jax_of_another_width}  # noqa: RUF012


class OfAnotherWidth(Pendulum):
    physics = {}  # noqa: RUF012

    def step(self, state, action):
        return torch.cat((state, state), -1)


@pytest.mark.parametrize("backend", ["jax", None])
def test_a_jax_step_that_raises_is_a_failed_check(backend):
    pytest.importorskip("jax")
    failures = check_task(RaisesInJax(), backend, "vjp" if backend else None, samples=4, steps=4).failures
    rows = [c for c in failures if c.subject == "step jax/vjp"]
    assert rows and "raised ValueError: a fault of the JAX step" in rows[0].detail


@pytest.mark.parametrize("task", [OfAnotherWidth, OfAnotherWidthInJax])
def test_a_step_of_another_width_is_a_failed_check(task):
    backend = next(iter(task.physics), "torch")
    pytest.importorskip(backend)
    report = check_task(task(), backend, samples=4, steps=4)
    # With types checked in tests, the step's own annotation is what says it first.
    assert any(c.subject.startswith(f"step {backend}") and c.name in ("shape", "runs") for c in report.failures)


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("nomod:make_step", "there is no module 'nomod'"),
        ("math:make_step", "has no 'make_step'"),
        ("nomod", "accepted"),
    ],
)
def test_a_backend_that_leads_to_nothing_is_a_failed_check(tmp_path, capsys, reference, fault):
    pytest.importorskip("jax")
    (tmp_path / "task.py").write_text(f"{TASK_FILE}\n    physics = {{'jax': {reference!r}}}\n")
    name = f"{tmp_path / 'task.py'}:Short"
    (row,) = check_task(name, samples=4, steps=4).failures
    assert (row.subject, row.name) == ("step jax", "built") and fault in row.detail
    assert run("check-task", name, "--backend", "jax") == 1
    assert "1 failed, 0 skipped" in capsys.readouterr().out


def test_a_wrong_name_lists_only_the_tasks_that_the_file_defines(tmp_path):
    others = "from mage_diffsim.envs import MujocoTask, Task\nclass Base(Task): pass\n"
    (tmp_path / "task.py").write_text(f"{TASK_FILE}\n{others}")
    with pytest.raises(InputError, match=r"the tasks in it are: Short$"):
        make_task(f"{tmp_path / 'task.py'}:Foo")
