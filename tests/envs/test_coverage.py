"""The states that `check-task` sees: it finds wrong adjoints far away, and says what no state shows."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from mage_diffsim.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from mage_diffsim.cli import main
from mage_diffsim.envs import MujocoTask, make_task, uniform
from mage_diffsim.envs.contract import MOST_STATES, check_task
from mage_diffsim.envs.coverage import pick, read_states, spread_out
from mage_diffsim.envs.tasks.cartpole import CartPole
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from mage_diffsim.run_folder import load_trainer
from mage_diffsim.session import train
from mage_diffsim.settings import make_config
from tests.one_number import OneNumber

WRONG_STATE = "step torch/autograd: gradient state"


class WrongBeyondTwo(torch.autograd.Function):
    """The identity, with an adjoint written by hand whose sign is wrong beyond |x| = 2."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() > 2.0, -gradient, gradient)


class Pushed(OneNumber):
    """A damped mass: it takes a lasting push to come far."""

    def step(self, state, action):
        return WrongBeyondTwo.apply(0.95 * state + 0.2 * action)


class Locked(Pushed):
    """It moves for one combination of three actions."""

    name = "Locked"
    action_names = ("a", "b", "c")
    action_low, action_high = (-1.0,) * 3, (1.0,) * 3
    horizon = 40
    key = (0.7, -0.3, 0.5)

    def step(self, state, action):
        apart = (action - torch.tensor(self.key).to(action)).square().sum(-1, keepdim=True)
        return WrongBeyondTwo.apply(0.9 * state + (-30.0 * apart).exp())


def failed(report):
    return {f"{c.subject}: {c.name}" for c in report.failures}


def test_an_adjoint_that_is_wrong_where_only_a_lasting_push_leads_is_found():
    task = Pushed()
    state, farthest = task.reset(64, torch.Generator().manual_seed(0)), 0.0
    for _ in range(task.horizon):  # what independent actions reach, in an episode
        state = task.step(state, 2.0 * torch.rand(64, 1, dtype=torch.float64) - 1.0)
        farthest = max(farthest, state.abs().max().item())
    assert farthest < 2.0
    report = check_task(task)
    assert failed(report) == {WRONG_STATE, WRONG_STATE.replace("state", "action")}


def test_what_no_rollout_reaches_is_shown_as_a_range_and_found_at_states_that_are_given():
    report = check_task(Locked())
    assert report.passed and report.coverage is not None
    (span,) = report.coverage.states
    assert -0.6 < span.tested[0] < span.tested[1] < 2.0 and span.visited[1] < 2.0
    report = check_task(Locked(), states=torch.tensor([[3.0]], dtype=torch.float64))
    assert WRONG_STATE in failed(report) and report.coverage is not None
    assert report.coverage.states[0].tested[1] == report.coverage.states[0].visited[1] == 3.0


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A task in a file, and the folder of a run of it whose policy holds the key."""
    folder = tmp_path_factory.mktemp("locked")
    file = folder / "locked.py"
    file.write_text(
        f"import sys\nsys.path.append({str(__file__)!r}.rpartition('/')[0])\nfrom test_coverage import Locked\n"
    )
    hyper = {"batch_size": 8, "warmup_steps": 3, "updates_per_step": 1, "actor_hidden": (4,), "critic_hidden": (4,)}
    task = f"{file}:Locked"
    config = make_config(task, method="td3", steps=4, eval_episodes=1, gradient_episodes=0, hyper=hyper)
    train(config, folder / "run")
    trainer = load_trainer(folder / "run")
    trainer.agent.actor.zero_()
    _, bias = trainer.agent.actor_network.layers(trainer.agent.actor)[-1]
    bias.copy_(torch.atanh(torch.tensor(Locked.key)))
    path = newest_checkpoint(folder / "run")
    assert path is not None
    saved = {name: value for name, value in load_checkpoint(path).items() if name != "version"}
    save_checkpoint(path, saved | {"trainer": trainer.state_dict()})
    return task, folder / "run"


def test_the_command_looks_at_the_states_of_a_file_and_of_a_run(locked, tmp_path, capsys):
    task, run_dir = locked
    report = tmp_path / "report.json"
    assert main(["check-task", task, "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "not exercised:" in out and "termination: no step tested ends an episode" in out
    data = json.loads(report.read_text())["coverage"]
    assert data["states"][0]["name"] == "x" and data["states"][0]["visited"][1] < 2.0
    assert main(["check-task", task, "--run", str(run_dir), "--json", str(report)]) == 1
    assert json.loads(report.read_text())["coverage"]["states"][0]["tested"][1] > 2.0
    (tmp_path / "states.csv").write_text("x\n2.5\n-3\n")
    assert main(["check-task", task, "--states", str(tmp_path / "states.csv"), "--json", str(report)]) == 1
    assert json.loads(report.read_text())["coverage"]["states"][0]["tested"] == [-3.0, 2.5]


def test_a_run_of_another_task_is_refused(locked, capsys):
    assert main(["check-task", "Pendulum", "--run", str(locked[1])]) == 2
    sentence = f"{locked[1]} is a run of task Locked; accepted is one of task Pendulum\n"
    assert capsys.readouterr().err.endswith(sentence)


def test_a_run_of_the_same_task_with_other_options_is_refused(tmp_path, capsys):
    hyper = {"batch_size": 8, "warmup_steps": 3, "updates_per_step": 1, "actor_hidden": (4,), "critic_hidden": (4,)}
    task = make_task("Pendulum", clip_order="v0")
    train(make_config(task, method="td3", steps=2, eval_episodes=1, gradient_episodes=0, hyper=hyper), tmp_path / "run")
    command = ["check-task", "Pendulum", "--backend", "torch", "--run", str(tmp_path / "run")]
    assert main(command) == 2
    sentence = "with --task-options clip_order=v0, and the task to check has no task options: give the same"
    assert sentence in capsys.readouterr().err
    assert main([*command, "--task-options", "clip_order=v0"]) == 0


STATES = [[0.5, -1.0], [2.0, 3.0], [0.1, 0.25]]


@pytest.mark.parametrize("kind", ["npy", "npz", "named.npz", "pt", "csv", "header.csv", "swapped.csv", "excel.csv"])
def test_states_are_read_from_every_format(kind, tmp_path):
    path = tmp_path / f"states.{kind}"
    array = np.array(STATES, dtype=np.float32 if kind == "npy" else np.float64)
    if kind == "npy":
        np.save(path, array)
    elif kind == "npz":
        np.savez(path, array)
    elif kind == "named.npz":
        np.savez(path, other=array[:1], states=array)
    elif kind == "pt":
        torch.save(torch.tensor(STATES), path)
    elif kind == "swapped.csv":
        path.write_text("theta_dot, theta\n" + "".join(f"{b}, {a}\n" for a, b in STATES))
    elif kind == "excel.csv":
        path.write_text('\ufeff"theta";"theta_dot"\r\n' + "".join(f"{a};{b}\r\n" for a, b in STATES), encoding="utf-8")
    else:
        header = "theta,theta_dot\n" if kind == "header.csv" else ""
        path.write_text(header + "".join(f"{a},{b}\n" for a, b in STATES))
    assert Pendulum.state_names == ("theta", "theta_dot")
    states = read_states(path, Pendulum())
    torch.testing.assert_close(states, torch.tensor(STATES, dtype=torch.float64), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("states.txt", b"1,2", "cannot read states from .*: accepted are .npy, .npz, .pt and .csv files"),
        ("states.csv", b"a,b\n1,2\n", r"cannot read states from .* \(could not convert string to float: 'a'\)"),
        ("states.csv", b"1,2\n3\n", "cannot read states from "),
        ("states.csv", b"", r"have shape \(0,\); accepted is one row or more of 2 numbers: theta, theta_dot"),
        ("states.csv", b"1,2,3\n", r"have shape \(1, 3\); accepted is one row or more of 2 numbers"),
        ("states.csv", b"1,nan\n", r"state 0 given for task Pendulum is \[1.0, nan\]; accepted are finite numbers"),
        ("states.npy", b"nonsense", "cannot read states from "),
        ("states.pt", b"nonsense", "cannot read states from "),
        (None, b"", "cannot read states from .*: No such file or directory"),
    ],
)
def test_what_holds_no_states_of_the_task_is_refused(name, content, sentence, tmp_path, capsys):
    path = tmp_path / (name or "nowhere.csv")
    if name:
        path.write_bytes(content)
    assert main(["check-task", "Pendulum", "--states", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    with pytest.raises(InputError, match=sentence):
        read_states(path, Pendulum())


def test_complex_and_sparse_states_are_refused(tmp_path):
    np.save(tmp_path / "states.npy", np.ones((2, 2)) * 1j)
    torch.save(torch.eye(2).to_sparse(), tmp_path / "states.pt")
    for name, kind in (("states.npy", "torch.complex128"), ("states.pt", "torch.sparse_coo")):
        with pytest.raises(InputError, match=rf"cannot read states from \S+{name} \(.*{kind}"):
            read_states(tmp_path / name, Pendulum())


def test_the_farthest_states_come_first():
    line = torch.tensor([[0.0], [1.0], [2.0], [7.0], [10.0], [4.0]])
    assert spread_out(line, torch.tensor([[0.0]]), 4).tolist() == [4, 5, 3, 2]
    # each component counts by its own range
    plane = torch.tensor([[0.0, 0.0], [1000.0, 0.0], [0.0, 0.001], [500.0, 0.0005]])
    assert sorted(spread_out(plane, plane[:1], 2).tolist()) == [1, 2]
    assert pick(line, line[:1], 6).shape == (6, 1) and pick(line[:1], line[:1], 5).shape == (5, 1)


def test_more_given_states_than_are_looked_at_are_thinned_to_the_farthest():
    many = uniform(MOST_STATES + 100, (-3.0, -8.0), (3.0, 8.0), torch.Generator().manual_seed(0))
    many[17] = torch.tensor([50.0, 20.0])
    report = check_task(Pendulum(), "torch", samples=8, steps=8, states=many)
    assert report.passed and report.coverage is not None
    assert report.coverage.tested == 8 + MOST_STATES and report.coverage.states[0].tested[1] == 50.0


class Constant(Pendulum):
    """It starts where nothing moves it."""

    def step(self, state, action):
        return state * 1.0 + 0.0 * action

    def reset(self, n, generator):
        return torch.ones(n, 2, dtype=torch.float64)


def test_what_never_changes_and_never_ends_is_said():
    report = check_task(Constant(), samples=8, steps=20)
    assert report.coverage is not None
    said = report.coverage.not_exercised
    assert {
        "state theta: it is 1 in every state tested",
        "time: the rollouts have 20 steps, and an episode 200",
    } <= set(said)
    assert "termination: no step tested ends an episode (no step of the rollouts does)" in said
    ended = check_task(CartPole(), "torch").coverage
    assert ended is not None and not any(s.startswith("termination: no") for s in ended.not_exercised)


class Bead(MujocoTask):
    """A ball on a vertical wire with a stop above and a floor below."""

    name = "Bead"
    mjcf = """
    <mujoco><option timestep="0.01"/><worldbody>
      <geom name="floor" type="plane" size="1 1 1" pos="0 0 -1"/>
      <geom name="roof" type="sphere" size="0.1" pos="0 0 9"/>
      <body><joint name="wire" type="slide" axis="0 0 1" limited="true" range="-5 0.5" damping="1"/>
        <geom name="ball" type="sphere" size="0.1" mass="1"/></body>
    </worldbody>
    <actuator><motor joint="wire" ctrlrange="-1 1" gear="30"/></actuator></mujoco>"""
    frame_skip = 2
    horizon = 100
    source = "test"

    def observe(self, state):
        return state.clone()

    def reward(self, obs, action, next_obs):
        return -next_obs[..., 0]

    def terminated(self, next_obs):
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)


def test_limits_and_contacts_that_were_never_active_are_named():
    pytest.importorskip("mujoco")
    coverage = check_task(Bead(), "mujoco", "fd", samples=12).coverage
    assert coverage is not None
    said = [s for s in coverage.not_exercised if s.startswith(("limits", "contacts"))]
    assert said == [
        "limits: 1 of 2 never active: wire low",  # the floor comes first
        "contacts: 1 of 2 pairs of geoms never touch: roof-ball",
    ]
    low = torch.tensor([[-5.01, 0.0]], dtype=torch.float64)
    given = check_task(Bead(), "mujoco", "fd", samples=12, states=low).coverage
    assert given is not None and not any(s.startswith("limits") for s in given.not_exercised)


def test_limits_that_a_flag_switches_off_are_not_missed():
    pytest.importorskip("mujoco")
    flag = '<option timestep="0.01"><flag limit="disable"/></option>'
    free = type("Free", (Bead,), {"name": "Free", "mjcf": Bead.mjcf.replace('<option timestep="0.01"/>', flag)})
    coverage = check_task(free(), "mujoco", "fd", samples=4, steps=4).coverage
    assert coverage is not None and not any(s.startswith("limits") for s in coverage.not_exercised)


def test_the_report_is_json_with_its_coverage():
    report = check_task("Pendulum", "torch", samples=8, steps=8)
    assert report.coverage is not None
    assert json.loads(report.to_json())["coverage"] == json.loads(json.dumps(dataclasses.asdict(report.coverage)))
    assert make_task("Pendulum").state_names == tuple(span.name for span in report.coverage.states)
