"""The examples of misleading gradients: each, at a small size, shows what its page says."""

from __future__ import annotations

import csv

import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("warp")

import contact_gradients
from contact_examples import bounce, horizon, push, scenes, throw, tilt

from mage_diffsim.errors import InputError


@pytest.mark.slow
def test_a_throw_that_misses_has_derivative_0_and_the_mean_of_derivatives_is_not_that_of_the_mean():
    rows = throw.measure(301, timestep=0.005).rows
    slow = [row for row in rows if row["speed"] < 2.0]
    assert slow and all(row["slope"] == row["path"] == 0.0 for row in slow)
    assert max(row["path"] for row in rows) > 0.05
    steepest = max(rows, key=lambda row: row["by_values"])
    assert steepest["by_slopes"] < 0.9 * steepest["by_values"]
    step = rows[1]["speed"] - rows[0]["speed"]
    for i in range(100, 200):
        difference = (rows[i + 1]["smooth"] - rows[i - 1]["smooth"]) / (2.0 * step)
        assert rows[i]["by_values"] == pytest.approx(difference, abs=2e-3)


def test_the_closed_form_of_a_bounce_is_what_small_steps_lead_to():
    found = bounce.measure(41, per_contact=(32,))
    height = torch.tensor([row["height"] for row in found.rows[:41]], dtype=torch.float64)
    end = torch.tensor([row["end"] for row in found.rows[:41]], dtype=torch.float64)
    late = 0.5 * bounce.GRAVITY * bounce.SECONDS * bounce.SWING / 32  # semi-implicit steps are half a step ahead
    torch.testing.assert_close(end, bounce.closed_form(height), rtol=0.0, atol=1.1 * late)
    slopes = torch.tensor([row["slope"] for row in found.rows[:41]]).median()
    assert float(slopes) == pytest.approx(-0.97, abs=0.02), "while the closed form has -0.43"


def test_the_derivative_of_a_bounce_is_exact():
    model = bounce.MODEL.format(timestep=0.00125, stiffness=bounce.STIFFNESS, solimp=bounce.SOLIMPS["from 0"])
    physics = scenes.physics_of("Bounce", model)
    height = torch.tensor([0.981, 1.0], dtype=torch.float64)

    def end(x: torch.Tensor) -> torch.Tensor:
        return scenes.rolled(physics, scenes.state_at(physics, height=x), 480)[:, 0]

    leaf = height.clone().requires_grad_()
    differences = (end(height + 1e-7) - end(height - 1e-7)) / 2e-7
    torch.testing.assert_close(scenes.derivative(end(leaf), leaf), differences, rtol=1e-5, atol=1e-5)


def test_a_box_that_sticks_has_nearly_no_derivative():
    rows = push.measure(9).rows  # 0, a quarter of the limit, ... twice the limit
    assert abs(rows[2]["by_force"]) < 0.01 * rows[6]["by_force"]
    assert abs(rows[2]["by_friction"]) < 0.001 * abs(rows[6]["by_friction"])
    assert rows[6]["by_force"] == pytest.approx(rows[6]["by_force_rigid"], rel=0.05)


def test_a_fallen_box_has_forgotten_how_it_was_tilted():
    rows = tilt.measure(19).rows
    ends = [row for row in rows if row["time"] == 1.6]
    assert {round(row["angle"], 2) for row in ends} == {0.0, 1.57}
    assert all(abs(row["slope"]) < 0.01 for row in ends)


@pytest.mark.slow
def test_variance_grows_with_the_horizon():
    rows = horizon.measure(("Ant, solref 0.06",), (1, 40), starts=4, samples=17).rows
    assert rows[1]["first_order"] > 100.0 * rows[0]["first_order"]


def test_the_first_order_estimate_is_the_gradient_of_the_mean_where_the_return_is_smooth():
    class Line:
        class task:
            observe = staticmethod(lambda state: state)
            reward = staticmethod(lambda obs, action, after: 3.0 * action[:, 0] - 2.0 * action[:, 1])

        step = staticmethod(lambda state, action: state)

    noise = torch.randn(2, 20_001, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    actions = torch.zeros(1, 2, 2, dtype=torch.float64)
    first, zeroth = horizon.estimates(Line(), torch.zeros(2, 1, dtype=torch.float64), actions, noise)  # type: ignore
    right = torch.tensor([[3.0, -2.0]] * 2, dtype=torch.float64)
    torch.testing.assert_close(first.mean(1), right)
    torch.testing.assert_close(zeroth.mean(1), right, rtol=0.0, atol=0.15)


def test_an_example_is_written_as_table_figure_and_numbers(tmp_path, capsys):
    with pytest.raises(InputError, match="example"):
        contact_gradients.run(contact_gradients.Options(("walk",), tmp_path))
    assert contact_gradients.run(contact_gradients.Options(("push",), tmp_path)) == 0
    assert {x.name for x in tmp_path.iterdir()} == {"push.csv", "push.png", "summary.md"}
    with (tmp_path / "push.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 161
    assert "## Push" in (tmp_path / "summary.md").read_text()
