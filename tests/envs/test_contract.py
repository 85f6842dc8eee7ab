"""The contract holds for everything registered, and each kind of broken task fails the check meant for it."""

import json

import pytest
import torch

from mage_diffsim.envs import TorchPhysics, backends_of, contract, make_physics, make_task, physics, task_names
from mage_diffsim.envs.contract import check_task
from mage_diffsim.envs.sampling import WAYS, explore
from mage_diffsim.envs.tasks.cartpole import CartPole
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError, MissingExtra, missing_extra
from tests.marks import BORROWED, LARGE, slow_but

EVERYTHING = [
    (name, backend)
    for name in task_names()
    for backend in backends_of(make_task(name))
    # MJX takes a minute to compile: one small task here, all of them in test_mjx_tasks.py. MuJoCo Warp knows float32
    # alone, see test_mujoco_warp.py.
    if (backend != "mjx" or name == "InvertedPendulum") and backend != "mujoco-warp" and name not in BORROWED
]
FAST = [case for case in EVERYTHING if case[1] != "mjx" and case != ("Ant", "mujoco")]
FAST = [(name, backend) for name, backend in FAST if not (backend == "warp" and name in LARGE)]


def lines(report):
    return "\n".join(" | ".join(row) for row in report.rows())


def failures(report):
    return {f"{c.subject}: {c.name}" for c in report.failures}


@pytest.mark.parametrize("name, backend", slow_but(FAST, EVERYTHING))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_every_registered_task_keeps_the_contract_on_every_backend(name, backend, dtype):
    task = make_task(name)
    try:
        make_physics(task, backend)
    except MissingExtra as error:
        pytest.skip(str(error))
    # a backward pass through MuJoCo C steps it twice for every column
    steps = 256 if backend == backends_of(task)[0] else 64  # the default explores for longer than a test should
    report = check_task(task, backend, dtype=dtype, samples=8 if backend == "mujoco" else 32, steps=steps)
    assert report.passed, lines(report)
    # What was asked for was checked, and on more than a handful of clean states.
    assert {c.subject for c in report.checks} >= {"reset", "observe", "reward", "terminated"}
    stepped = {c.name for c in report.checks if c.subject.startswith(f"step {backend}/") and c.status == "passed"}
    assert stepped >= {"gradient action", "gradient state"}
    assert ("agreement" in stepped) == (backend != backends_of(task)[0])


class Drifting:
    """A physics without a simulator, for tasks whose functions alone are checked."""

    physics = {}  # noqa: RUF012

    def step(self, state, action):
        return state + 1e-3 * action.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", slow_but(["Humanoid", "DmWalker"], BORROWED))
def test_the_functions_of_large_tasks_keep_the_contract(name):
    visited = explore(make_physics(make_task(name), "mujoco"), 2 * len(WAYS), 60, seed=0).states[::7].double()
    report = check_task(type(name, (Drifting, type(make_task(name))), {})(), samples=16, steps=4, states=visited)
    assert report.passed and {c.subject for c in report.checks} >= {"observe", "reward", "terminated"}, lines(report)


@pytest.mark.slow
def test_a_humanoid_keeps_the_contract_on_warp():
    report = check_task("Humanoid", "warp", "adjoint", samples=8, steps=16)
    assert report.passed and {"gradient state", "agreement"} <= {c.name for c in report.checks}, lines(report)


def test_all_backends_are_checked_unless_one_is_named():
    report = check_task("Pendulum", samples=4, steps=4)
    assert report.passed, lines(report)
    built = {c.subject for c in report.checks if c.name == "built"}
    assert built == {f"step {backend}" for backend in backends_of(Pendulum())}


def test_pendulum_keeps_the_contract_with_the_old_clip_order():
    report = check_task(make_task("Pendulum", clip_order="v0"), "torch")
    assert report.passed, lines(report)


class SumsOverTheBatch(Pendulum):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs) - 1e-4 * action.square().sum()


class IgnoresTheGradientOfTheState(Pendulum):
    def step(self, state, action):
        theta, theta_dot = state.unbind(-1)
        return super().step(torch.stack((theta.detach(), theta_dot), -1), action)


class IgnoresTheGradientOfTheAction(Pendulum):
    def step(self, state, action):
        return super().step(state, action.detach())


class RewardWithoutGradient(Pendulum):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs).detach()


class GradientOffByOneIn1e5(Pendulum):
    def step(self, state, action):
        following = super().step(state, action)
        wrong = super().step(state, action * (1 + 1e-5))
        return following.detach() + wrong - wrong.detach()


class NaNAtZero(Pendulum):
    def reward(self, obs, action, next_obs):
        return -(obs.square().sum(-1).sqrt())


class NaNValueAtZero(Pendulum):
    def observe(self, state):
        return super().observe(state) / state.norm(dim=-1, keepdim=True)


class WritesIntoItsInput(Pendulum):
    def step(self, state, action):
        following = super().step(state, action)
        state[..., 1] = 0.0
        return following


class ReturnsItsInput(CartPole):
    def step(self, state, action):
        return state


class IgnoresTheGenerator(Pendulum):
    def reset(self, n, generator):
        return torch.rand(n, 2, dtype=torch.float64)


class AlwaysTheSameStart(Pendulum):
    def reset(self, n, generator):
        return torch.ones(n, 2, dtype=torch.float64)


class ResetInFloat32(Pendulum):
    def reset(self, n, generator):
        return super().reset(n, generator).float()


class RandomStep(Pendulum):
    def step(self, state, action):
        following = super().step(state, action)
        return following + (torch.rand_like(following) - 0.5).detach()


class KeepsAnAxis(Pendulum):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs)[..., None]


class LosesTheDtype(CartPole):
    def terminated(self, next_obs):
        return super().terminated(next_obs).float()


class OneBatchAxisOnly(Pendulum):
    def reward(self, obs, action, next_obs):
        return -obs[:, 2].square()


class ScalarTermination(Pendulum):
    def terminated(self, next_obs):
        return torch.zeros((), dtype=torch.bool)


class Raises(Pendulum):
    def reward(self, obs, action, next_obs):
        raise RuntimeError("something\nof the user's own")


REWARD = {"reward: gradient obs", "reward: gradient action"}


@pytest.mark.parametrize(
    "task, expected",
    [
        (SumsOverTheBatch, {"reward: independent rows"}),
        (IgnoresTheGradientOfTheState, {"step torch/autograd: gradient state"}),
        (IgnoresTheGradientOfTheAction, {"step torch/autograd: gradient action"}),
        (RewardWithoutGradient, REWARD),
        (GradientOffByOneIn1e5, {"step torch/autograd: gradient action"}),
        (NaNAtZero, {"reward: degenerate gradient obs"}),
        (NaNValueAtZero, {"observe: finite", "observe: degenerate gradient state"}),
        (WritesIntoItsInput, {"step torch/autograd: pure"}),
        (ReturnsItsInput, {"step torch/autograd: pure"}),
        (IgnoresTheGenerator, {"reset: same seed"}),
        (ResetInFloat32, {"reset: shape"}),
        (RandomStep, {"step torch/autograd: deterministic"}),
        (KeepsAnAxis, {"reward: shape"}),
        (LosesTheDtype, {"terminated: shape"}),
        (OneBatchAxisOnly, {"reward: shape"}),
        (ScalarTermination, {"terminated: shape"}),
    ],
)
def test_a_broken_task_fails_the_check_meant_for_it(task, expected):
    report = check_task(task(), "torch")
    assert not report.passed
    assert expected <= failures(report), lines(report)
    # A broken function leaves the checks of the other functions alone.
    subjects = {name.partition(":")[0] for name in expected}
    assert {c.subject for c in report.failures} - {"rollout"} == subjects, lines(report)


@pytest.mark.parametrize(
    ("task", "note"), [(AlwaysTheSameStart, "note: another seed gives the same"), (Pendulum, "another seed")]
)
def test_fixed_resets_are_noted_and_do_not_fail(task, note):
    report = check_task(task(), "torch", samples=16, steps=16)
    assert report.passed, lines(report)
    (check,) = [c for c in report.checks if (c.subject, c.name) == ("reset", "other seed")]
    assert check.status == "passed" and check.detail.startswith(note)


def test_a_failure_names_the_input_it_happened_at():
    report = check_task(SumsOverTheBatch(), "torch")
    (failure,) = [c for c in report.failures if c.name == "independent rows"]
    assert "most at obs [" in failure.detail and "action [" in failure.detail
    assert failure.worst > failure.tolerance


def test_an_exception_in_a_task_is_a_failure_with_its_message():
    report = check_task(Raises(), "torch")
    assert not report.passed
    assert any("raised RuntimeError: something of the user's own" in c.detail for c in report.failures)


class KinkedStart(CartPole):
    """Every other start lies exactly on the kink of max(x, 0)."""

    def reset(self, n, generator):
        state = super().reset(n, generator)
        state[::2, 0] = 0.0
        return state

    def observe(self, state):
        return torch.cat([state[..., :1].clamp(min=0.0), state[..., 1:]], -1)


class KinkedEverywhere(CartPole):
    def observe(self, state):
        return (state * 1e9).sin()


def test_kinks_are_counted_and_reported_apart():
    report = check_task(KinkedStart(), "torch", samples=32)
    assert report.passed, lines(report)
    (kinks,) = [c for c in report.checks if c.name.startswith("kinks")]
    assert (kinks.subject, kinks.name) == ("observe", "kinks state")
    number = int(kinks.detail.partition(" of 32 states are kinks")[0])
    assert 4 <= number < 32 and kinks.worst > 0.1  # every other one of eight initial states, at least


def test_a_function_that_is_a_kink_everywhere_fails():
    report = check_task(KinkedEverywhere(), "torch", samples=8, steps=8)
    (failure,) = [c for c in report.failures if c.name == "gradient state" and c.subject == "observe"]
    assert "no clean state" in failure.detail


class LargeConstantReward(Pendulum):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs) - 1e4


def test_the_rounding_of_the_finite_difference_is_not_held_against_the_gradient():
    report = check_task(LargeConstantReward(), "torch", samples=8, steps=8)
    assert report.passed, lines(report)
    # What is shown is what decides: beyond the difference's own error.
    judged = [c for c in report.checks if c.tolerance is not None]
    assert judged and all(c.worst <= c.tolerance for c in judged), lines(report)


def test_a_wrong_gradient_shows_a_worst_value_beyond_the_accepted_one():
    (failure,) = check_task(GradientOffByOneIn1e5(), "torch", samples=8, steps=8).failures
    assert failure.tolerance < failure.worst < 2e-5 and "beyond the finite difference's own error" in failure.detail


def test_a_caller_adds_states_of_its_own():
    far = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.1, 1.0]], dtype=torch.float64)
    report = check_task(CartPole(), "torch", samples=8, states=far)
    (shape,) = [c for c in report.checks if (c.subject, c.name) == ("observe", "shape")]
    assert shape.detail.startswith("(10, 4)")


class _Backend(TorchPhysics):
    backend = "jax"


class OtherTimeStep(_Backend):
    def _advance(self, state, action):
        return state + 1.001 * (super()._advance(state, action) - state)


class ReusesItsOutput(_Backend):
    """Returns the same buffer from every call, as a simulator that owns its arrays would."""

    def _advance(self, state, action):
        following = super()._advance(state, action)
        if following.requires_grad:
            return following
        if not hasattr(self, "_buffer") or self._buffer.shape != following.shape:
            self._buffer = following.clone()
        return self._buffer.copy_(following)


class MixesRows(_Backend):
    def _advance(self, state, action):
        return super()._advance(state, action) + 1e-6 * state.mean(0)


class CannotBeBuilt(_Backend):
    def __init__(self, *args, **options):
        raise RuntimeError("no such device")


class OtherDevice(_Backend):
    def __init__(self, *args, **options):
        raise InputError("JAX sees only cpu devices")


@pytest.mark.parametrize(
    "backend, expected",
    [
        # values and derivatives are both held against the task's first backend
        (OtherTimeStep, {"step jax/autograd: agreement"}),  # consistent in itself
        (ReusesItsOutput, {"step jax/autograd: pure"}),
        (MixesRows, {"step jax/autograd: independent rows", "step jax/autograd: agreement"}),
        (CannotBeBuilt, {"step jax: built"}),
    ],
)
def test_a_broken_backend_fails_the_check_meant_for_it(monkeypatch, backend, expected):
    monkeypatch.setitem(physics.BACKENDS, "jax", f"{__name__}:{backend.__name__}")
    task = Pendulum()
    monkeypatch.setattr(Pendulum, "physics", {"jax": "unused"})
    assert failures(check_task(task, samples=16)) == expected


def test_a_missing_extra_is_a_skipped_check(monkeypatch):
    real = contract.make_physics

    def without_jax(task, backend, **options):
        if backend == "jax":
            raise missing_extra("jax", "mjx")
        return real(task, backend, **options)

    monkeypatch.setitem(physics.BACKENDS, "jax", f"{__name__}:_Backend")
    monkeypatch.setattr(Pendulum, "physics", {"jax": "unused"})
    monkeypatch.setattr(contract, "make_physics", without_jax)
    report = check_task(Pendulum(), samples=8)
    assert report.passed
    (skipped,) = [c for c in report.checks if c.status == "skipped"]
    assert skipped.subject == "step jax" and "pip install -e '.[mjx]' in the project's folder" in skipped.detail
    # Without the first backend there is nothing to compare the others with.
    monkeypatch.setattr(contract, "backends_of", lambda task: ("jax", "torch"))
    report = check_task(Pendulum(), "torch", samples=8)
    assert [(c.subject, c.name) for c in report.checks if c.status == "skipped"] == [
        ("step torch/autograd", "agreement")
    ]


def test_the_report_is_rows_and_json():
    report = check_task(NaNAtZero(), "torch", samples=8, steps=8)
    rows = report.rows()
    assert len(rows) == len(report.checks) and all(isinstance(x, str) for row in rows for x in row)
    data = json.loads(report.to_json())
    assert (data["task"], data["dtype"], data["passed"]) == ("Pendulum", "torch.float64", False)
    assert [c["status"] for c in data["checks"]] == [row[1] for row in rows]
    assert "NaN" not in report.to_json() and "Infinity" not in report.to_json()


def test_unknown_backends_and_derivatives_are_refused():
    with pytest.raises(InputError, match="unknown backend of task Pendulum 'bullet'"):
        check_task("Pendulum", "bullet")
    with pytest.raises(InputError, match="unknown derivative source of backend torch 'vjp'"):
        check_task("Pendulum", "torch", "vjp")
    with pytest.raises(InputError, match="unknown derivative source of task Pendulum 'backwards': choose one of"):
        check_task("Pendulum", derivative="backwards")


def test_a_backend_that_cannot_run_here_is_skipped_unless_it_was_asked_for(monkeypatch):
    monkeypatch.setitem(physics.BACKENDS, "jax", f"{__name__}:OtherDevice")
    monkeypatch.setattr(Pendulum, "physics", {"jax": "unused"})
    report = check_task(Pendulum(), samples=8)
    assert report.passed
    assert [c.detail for c in report.checks if c.status == "skipped"] == ["JAX sees only cpu devices"]
    with pytest.raises(InputError, match="JAX sees only cpu devices"):
        check_task(Pendulum(), "jax")
