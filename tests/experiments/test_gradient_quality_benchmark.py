"""The Jacobian benchmark: its measures against closed forms, and the script end to end."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import gradient_quality
import pytest
import torch
from jacobian_checks import accuracy, sweep
from jacobian_checks.errors import compare, summary_rows
from jacobian_checks.learned import ask_ensemble, change_error, explained_variance, trained_ensembles
from jacobian_checks.options import Options
from jacobian_checks.points import gather_points, in_contact
from jacobian_checks.subjects import subjects_of
from jacobian_checks.sweep import plateau, sweep_steps

from mage_diffsim.envs import physics as physics_module
from mage_diffsim.envs.differences import quantile
from mage_diffsim.envs.physics import TorchPhysics, make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.tasks.inverted_pendulum import InvertedPendulum
from mage_diffsim.errors import InputError
from mage_diffsim.model_checks.visiting import resting_states, visit
from mage_diffsim.session import train
from mage_diffsim.settings import make_config

X = torch.tensor([[0.3, -1.2, 0.5], [2.0, 0.7, -0.4], [-0.6, 0.1, 0.9]], dtype=torch.float64)


def answer(options):
    return gradient_quality.main(lambda: options)


def smooth_jacobian(x):
    """Of rows (p, v, a) to (p v, sin(v) + a^2)."""
    p, v, a = x.unbind(-1)
    zero = torch.zeros_like(p)
    return torch.stack([torch.stack([v, p, zero], -1), torch.stack([zero, torch.cos(v), 2.0 * a], -1)], dim=1)


@pytest.mark.parametrize(("factor", "cosine"), [(1.0, 1.0), (1.25, 1.0), (0.5, 1.0), (-1.0, -1.0)])
def test_a_scaled_jacobian_has_exactly_that_error_and_the_sign_of_its_cosine(factor, cosine):
    truth = smooth_jacobian(X)
    found = compare(factor * truth, truth)
    torch.testing.assert_close(found.error, torch.full((3,), abs(factor - 1.0), dtype=torch.float64))
    torch.testing.assert_close(found.cosine, torch.full((3,), cosine, dtype=torch.float64))
    assert not found.nonfinite.any()


def test_what_is_not_finite_is_counted_and_never_dropped():
    truth = smooth_jacobian(X)
    wrong = truth.clone()
    wrong[1, 0, 0] = math.nan
    wrong[2, 0, 0] = math.inf
    found = compare(wrong, truth)
    assert found.nonfinite.tolist() == [False, True, True] and found.error.tolist() == [0.0, math.inf, math.inf]
    clean = torch.tensor([True, True, False])
    groups = {"all": torch.ones(3, dtype=torch.bool), "contact": torch.tensor([False, True, False])}
    rows = summary_rows({"state": found}, {"state": clean}, groups, torch.tensor([0.1, 0.2, 0.3]))
    counted = [(r["states"], r["kind"], r["n"], r["nonfinite"], r["error_max"]) for r in rows]
    assert counted == [
        ("all", "clean", 2, 1, math.inf),
        ("all", "unclean", 1, 1, math.inf),
        ("contact", "clean", 1, 1, math.inf),
    ]
    assert rows[0]["value_error_max"] == pytest.approx(0.3) and rows[2]["value_error_max"] == pytest.approx(0.2)


def test_quantiles_take_infinities_and_leave_nan_out():
    x = torch.tensor([math.inf, 1.0, math.nan, 2.0])
    assert [quantile(x, q) for q in (0.0, 0.5, 0.6, 0.7, 1.0)] == [1.0, 2.0, 2.0, math.inf, math.inf]
    assert math.isnan(quantile(x[2:3], 0.5))


def test_the_sweep_finds_truncation_and_rounding():
    x = torch.linspace(0.1, 1.0, 20, dtype=torch.float64)[:, None]
    rows = sweep_steps(lambda x: torch.exp(3.0 * x), x, {"all": range(1)}, (1e-1, 1e-3, 1e-5, 1e-7, 1e-11))
    by_step = {row["step"]: row["error_median"] for row in rows}
    assert by_step[1e-3] == pytest.approx(9e-6 / 6.0, rel=0.02)  # h^2 f''' / 6 f' with f' = 3 f, f''' = 27 f
    assert by_step[1e-1] > 1e-2 and by_step[1e-11] > 1e-7 > by_step[1e-5]
    assert plateau(rows) == [1e-5, 1e-7] and rows[0]["share_above"] == 1.0 and rows[0]["unresolved"] == 0


def test_points_are_reached_repeatable_inside_the_bounds_and_of_every_origin():
    pytest.importorskip("mujoco")
    task = make_task("HalfCheetah")
    reference = make_physics(task, "mujoco", dtype=torch.float64)

    def gather(seed):
        def policy(obs):
            return torch.full((len(obs), task.action_dim), 2.0)

        return gather_points(reference, 16, seed=seed, rollouts=("uniform", "sinusoidal"), policy=policy)

    points, again, other = gather(0), gather(0), gather(1)
    assert torch.equal(points.x, again.x) and not torch.equal(points.x, other.x)
    assert torch.equal(points.x, points.x.float().double())
    action = points.x[:, task.state_dim :]
    assert action.abs().max() <= 0.99 + 1e-7
    groups = points.groups()
    assert {name: int(groups[name].sum()) for name in ("uniform", "sinusoidal", "policy", "reset")} == {
        "uniform": 5,
        "sinusoidal": 5,
        "policy": 5,
        "reset": 1,
    }
    torch.testing.assert_close(action[groups["policy"]], torch.full((5, 6), 0.99, dtype=torch.float64))
    assert len(points.x.unique(dim=0)) == 16


def test_contact_is_where_mujoco_pushes():
    pytest.importorskip("mujoco")
    task = make_task("HalfCheetah")
    simulation = task.simulation
    x = torch.zeros(2, task.state_dim + task.action_dim, dtype=torch.float64)
    x[1, 1] = 5.0  # high above the floor, no joint near its limit
    x[0, 1] = -0.1  # feet in the floor
    assert simulation.state_names[1] == "rootz"
    assert in_contact(task, x).tolist() == [True, False]


def test_the_ensemble_is_trained_on_so_many_random_transitions_and_asked_member_by_member():
    counts = (200, 250)
    task = make_task("Pendulum")
    obs = task.observe(task.reset(3, torch.Generator().manual_seed(0)))
    action = torch.tensor([[0.2], [-0.5], [0.9]], dtype=torch.float64)
    for count, trainer in trained_ensembles("Pendulum", counts, seed=0, device="cpu"):
        assert trainer.buffer.size == count and trainer.ensemble is not None
        learned = ask_ensemble(trainer, obs, action)
        members = trainer.ensemble.members
        assert learned.jacobian.shape == (members, 3, 3, 1)
        one = ask_ensemble(trainer, obs[1:2], action[1:2])
        torch.testing.assert_close(learned.jacobian[:, 1:2], one.jacobian, rtol=1e-4, atol=1e-5)
        up, down = (ask_ensemble(trainer, obs, action + h).next_obs for h in (1e-2, -1e-2))
        torch.testing.assert_close(learned.jacobian[..., 0], (up - down) / 2e-2, rtol=0.05, atol=2e-3)


def test_a_prediction_of_no_change_explains_nothing():
    truth = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    centred = truth - truth.mean(0)
    assert explained_variance(torch.zeros_like(truth), centred) == pytest.approx(0.0)
    assert explained_variance(centred, centred) == 1.0  # the second component never changes
    torch.testing.assert_close(change_error(1.5 * truth, truth), torch.full((3,), 0.5, dtype=torch.float64))


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_script_measures_reports_and_goes_on(tmp_path, capsys):
    pytest.importorskip("mujoco")
    options = dict(backends=("mujoco",), states=8, repeats=1, transitions=(25, 50), dtypes=("float64",), out=tmp_path)
    assert answer(Options(tasks=("InvertedPendulum",), **options)) == 0
    rows = rows_of(tmp_path / "gradient_quality.csv")
    physics = [r for r in rows if r["backend"] == "mujoco" and r["states"] == "all" and r["kind"] == "clean"]
    assert {(r["derivative"], r["block"]) for r in physics} == {
        (d, b) for d in ("fd", "fd-forward") for b in ("action", "position", "velocity")
    }
    assert all(float(r["error_max"]) < 1e-6 and r["nonfinite"] == "0" for r in physics)
    assert {r["transitions"] for r in rows if r["backend"] == "learned"} == {"25", "50"}
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    summary = (tmp_path / "summary.md").read_text()
    assert "mujoco/fd float64" in summary and "torch" in summary
    verdict, heading = summary.index("float64: the largest error of clean states is at most 1e-06 in 6 of 6"), "## "
    assert verdict < summary.index(heading) and "| InvertedPendulum | 50 | all |" in summary

    kept = tmp_path / "cells" / "InvertedPendulum_mujoco_fd_float64.json"
    result = json.loads(kept.read_text())
    result["rows"][0]["error_max"] = 123.0
    kept.write_text(json.dumps(result))
    capsys.readouterr()
    assert answer(Options(tasks=("InvertedPendulum", "Pendulum"), learned=False, **options)) == 0
    again = capsys.readouterr().out
    assert "InvertedPendulum_mujoco_fd_float64: starts" not in again
    refused = "| Pendulum | mujoco | refused: unknown backend of task Pendulum 'mujoco'"
    assert refused in (tmp_path / "summary.md").read_text()
    rows = rows_of(tmp_path / "gradient_quality.csv")
    assert "123.0" in {r["error_max"] for r in rows}, "what is finished is not measured again"
    assert "123.0" not in {r["error_max"] for r in rows_of_fresh(options, tmp_path)}

    other = Options(tasks=("InvertedPendulum",), seed=5, **options)
    assert answer(other) == 2
    assert "was measured with seed 0 and not 5: give the same flags" in capsys.readouterr().err


def rows_of_fresh(options, folder):
    fresh = Options(tasks=("InvertedPendulum",), derivatives=("fd",), learned=False, fresh=True, **options)
    assert answer(fresh) == 0
    return rows_of(folder / "gradient_quality.csv")


def test_a_broken_backend_is_a_row_and_an_exit_code_and_the_others_are_measured(tmp_path, monkeypatch):
    measure = accuracy.measure

    def break_float32(subject, source, repeats):
        if source.dtype == "float32":
            raise RuntimeError("no\nidea")
        return measure(subject, source, repeats)

    monkeypatch.setattr(accuracy, "measure", break_float32)
    options = Options(tasks=("Pendulum",), backends=("torch",), states=8, learned=False, out=tmp_path)
    assert answer(options) == 1
    rows = rows_of(tmp_path / "gradient_quality.csv")
    assert {r["status"] for r in rows} == {"ok", "failed: RuntimeError: no idea"}
    assert not (tmp_path / "cells" / "Pendulum_torch_autograd_float32.json").exists()


def test_the_sweep_judges_the_step_of_a_task(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mujoco")
    options = Options(tasks=("InvertedPendulum",), sweep=True, states=8, out=tmp_path)
    assert answer(options) == 0
    assert len(rows_of(tmp_path / "sweep.csv")) == 3 * len(sweep.STEPS)
    assert "on the plateau in 3 of 3 blocks." in capsys.readouterr().out
    monkeypatch.setattr(InvertedPendulum, "difference_steps", (1e-3, 1e-6, 1e-6))
    assert answer(options) == 0
    said = "The task's step is on the plateau in 2 of 3 blocks; off it: InvertedPendulum position."
    assert said in (tmp_path / "sweep.md").read_text()
    monkeypatch.setattr(sweep, "KINK", -1.0)  # no state is resolved
    assert answer(options) == 0
    said = "0 of 3 blocks; not known, as no state is resolved: InvertedPendulum action, "
    assert said in (tmp_path / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (dict(tasks=("Hoper",)), "unknown task 'Hoper'"),
        (dict(backends=("mujco",)), "unknown backend 'mujco': choose one of"),
        (dict(tasks=("Pendulum",), backends=("torch",), derivatives=("vpj",)), "unknown derivative source 'vpj'"),
        (dict(dtypes=("float16",)), "unknown dtype 'float16': choose one of float32, float64"),
        (dict(rollouts=("walk",)), "unknown rollout 'walk': choose one of bang-bang, constant"),
        (dict(rollouts=()), "--rollouts is (); accepted is one or more different values"),
        (dict(states=3), "--states is 3; accepted is 4 or more"),
        (dict(transitions=(10,)), "--transitions is 10; accepted is 25 or more"),
        (dict(repeats=0), "--repeats is 0; accepted is 1 or more"),
        (dict(device="gpu"), "unknown device 'gpu'"),
        (dict(tasks=("Pendulum",), sweep=True), "--sweep is about MuJoCo tasks, and Pendulum is none"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(tmp_path, capsys, flags, sentence):
    out = tmp_path / "out"
    assert answer(Options(**{"out": out} | flags)) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not out.exists()


def test_a_trained_policy_gives_states_of_its_task_and_no_other_task_is_accepted(tmp_path, tiny):
    train(make_config("Pendulum", dynamics="oracle", **tiny | dict(steps=20, gradient_episodes=0)), tmp_path / "run")
    options = dict(policy=tmp_path / "run", backends=("torch", "mujoco"), learned=False, states=8)
    with pytest.raises(InputError, match="was trained on Pendulum, which is not among the tasks"):
        subjects_of(Options(tasks=("CartPole",), **options))
    (subject,) = subjects_of(Options(tasks=("Pendulum",), **options))
    assert "policy" in subject.points.groups()


class Breaking(TorchPhysics):
    """Its next state is not finite where the angle is positive, its gradient where the velocity is exactly zero."""

    def _advance(self, state, action):
        next_state = super()._advance(state, action)
        broken = torch.sqrt(state[:, 1:].square()) * 0.0  # derivative 0 * inf where the velocity is 0
        return torch.where(state[:, :1] > 0.0, math.nan, next_state + broken)


def test_visits_count_every_value_and_gradient_that_is_not_finite():
    task = make_task("Pendulum")
    sound = visit(TorchPhysics(task), 300, rows=64, seed=0)
    assert sound[:1] + sound[2:4] == (320, 0, 0) and sound.largest_gradient > 1.0
    broken = Breaking(task)
    starts = resting_states(task, 16)
    assert starts.abs().sum() == 0.0
    found = visit(broken, 64, rows=64, seed=0)
    generator = torch.Generator().manual_seed(0)
    drawn = task.reset(64, generator)[16:]
    assert found.nonfinite_values == int((drawn[:, 0] > 0.0).sum()) > 0
    assert found.nonfinite_gradients == 16  # the resting states


def test_soak_writes_a_table_and_fails_on_what_is_not_finite(tmp_path, monkeypatch, capsys):
    options = Options(tasks=("Pendulum",), backends=("torch",), soak=64, out=tmp_path)
    assert answer(options) == 0
    with (tmp_path / "soak.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["dtype"], r["states"], r["nonfinite_values"]) for r in rows] == [
        ("float64", "64", "0"),
        ("float32", "64", "0"),
    ]
    assert "Not finite: 0 of 256 values and gradients, by 2 of 2 sources." in (tmp_path / "soak.md").read_text()
    monkeypatch.setitem(physics_module.BACKENDS, "torch", f"{__name__}:Breaking")
    assert answer(options) == 0  # it was measured
    assert answer(replace(options, fresh=True)) == 1
    assert answer(Options(soak=0, out=tmp_path)) == 2
    assert "--soak is 0; accepted is 1 or more" in capsys.readouterr().err
