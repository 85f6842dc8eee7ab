"""True Jacobians and errors against closed forms, kinks and discontinuities."""

from __future__ import annotations

import math

import pytest
import torch

from mage_diffsim.envs.differences import (
    KINK,
    STEP_SIZES,
    central_differences,
    jacobian_error,
    jacobian_of,
    jacobians_of,
    true_jacobians,
    value_error,
)

BLOCKS = {"action": range(2, 3), "state": range(2)}
X = torch.tensor([[0.3, -1.2, 0.5], [2.0, 0.7, -0.4], [-0.6, 0.1, 0.9]], dtype=torch.float64)
NEAR = torch.tensor([[0.0, 1.0], [1e-5, 1.0], [-1.0, 1.0]], dtype=torch.float64)
"""First columns at 0, beside 0 and far from 0."""


def smooth(x):
    """Rows (p, v, a) to (p v, sin(v) + a^2)."""
    p, v, a = x.unbind(-1)
    return torch.stack([p * v, torch.sin(v) + a.square()], dim=-1)


def smooth_jacobian(x):
    p, v, a = x.unbind(-1)
    zero = torch.zeros_like(p)
    return torch.stack([torch.stack([v, p, zero], -1), torch.stack([zero, torch.cos(v), 2.0 * a], -1)], dim=1)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_smooth_function_has_its_closed_form_within_the_stated_uncertainty():
    truth, expected = true_jacobians(smooth, X, BLOCKS), smooth_jacobian(X)
    for block, columns in BLOCKS.items():
        jacobian, uncertain, clean = truth[block]
        assert clean.all() and jacobian.dtype == uncertain.dtype == torch.float64
        error = (jacobian - expected[..., list(columns)]).abs()
        assert error.max() < 1e-9 and bool((error <= uncertain).all()) and uncertain.max() < 1e-7


def test_a_backward_pass_per_component_gives_the_closed_form():
    torch.testing.assert_close(jacobian_of(smooth, X), smooth_jacobian(X), rtol=1e-14, atol=1e-14)
    assert jacobian_of(smooth, X.float()).dtype == torch.float32


def test_one_call_gives_the_jacobians_by_several_inputs():
    calls = []

    def product(a, b, c):
        calls.append(1)
        return torch.stack([a[:, 0] * b[:, 1], b[:, 0].square()], 1)

    a, b = torch.tensor([[2.0]]), torch.tensor([[3.0, 5.0]])
    by_a, by_b, by_c = jacobians_of(product, (a, b, a))
    assert len(calls) == 1 and by_a.tolist() == [[[5.0], [0.0]]] and by_c.tolist() == [[[0.0], [0.0]]]
    assert by_b.tolist() == [[[0.0, 2.0], [6.0, 0.0]]]


def test_a_jacobian_is_zero_where_the_output_does_not_depend_on_the_input():
    assert jacobian_of(lambda x: x.detach(), X).abs().sum() == 0.0
    half = jacobian_of(lambda x: torch.stack([x[:, 0], torch.ones_like(x[:, 0])], 1), X)
    assert half[:, 0].sum() == 3.0 and half[:, 1].abs().sum() == 0.0


def test_a_kink_is_unclean_and_a_point_beside_it_is_not():
    def bent(x):
        """Slope 1 on the left of 0 and 3 on its right; linear in the second column."""
        return torch.stack([torch.where(x[:, 0] > 0.0, 3.0, 1.0) * x[:, 0], x[:, 1]], dim=-1)

    truth = true_jacobians(bent, NEAR, {"bent": range(1), "linear": range(1, 2)})
    assert truth["bent"].clean.tolist() == [False, True, True]
    assert truth["linear"].clean.all()
    torch.testing.assert_close(truth["bent"].jacobian[1:, 0, 0], numbers(3.0, 1.0), rtol=1e-8, atol=0.0)


def test_the_absolute_value_is_a_kink_although_its_central_differences_agree():
    truth = true_jacobians(torch.abs, NEAR, {"all": range(1)})["all"]
    assert truth.clean.tolist() == [False, True, True] and truth.jacobian[0, 0, 0] == 0.0


def test_a_discontinuity_is_unclean_and_a_point_beside_it_is_not():
    truth = true_jacobians(lambda x: x + (x > 0.0), NEAR, {"all": range(1)})["all"]
    assert truth.clean.tolist() == [False, True, True]
    torch.testing.assert_close(truth.jacobian[1:, 0, 0], numbers(1.0, 1.0), rtol=1e-8, atol=0.0)


def test_a_kink_of_a_small_part_is_seen_where_it_exceeds_the_bound():
    for slope, clean in ((4.0 * KINK, False), (0.5 * KINK, True)):
        truth = true_jacobians(lambda x, slope=slope: x + slope * x.abs(), numbers(0.0)[:, None], {"all": range(1)})
        assert truth["all"].clean.item() is clean


def test_strong_curvature_is_clean():
    x = torch.zeros(1, 1, dtype=torch.float64)
    truth = true_jacobians(lambda x: x + 3e3 * x.square(), x, {"all": range(1)})["all"]
    assert truth.clean.all()
    torch.testing.assert_close(truth.jacobian, torch.ones(1, 1, 1, dtype=torch.float64), rtol=1e-8, atol=0.0)


def test_each_point_takes_the_step_on_its_own_plateau():
    """Of sin(k x) truncation wants small steps for a large k; rounding wants large ones."""
    x, k = torch.full((2, 1), 0.3, dtype=torch.float64), numbers(1.0, 3e3)[:, None]

    def wave(x):
        return torch.sin(k * x) / k

    best = true_jacobians(wave, x, {"all": range(1)})["all"]
    every = torch.stack([central_differences(wave, x, wave(x), [0], h)[0].flatten() for h in STEP_SIZES])
    chosen = (every == best.jacobian.flatten()).long().argmax(0)
    exact = (k * 0.3).cos().flatten()
    error = (best.jacobian.flatten() - exact).abs()
    assert best.clean.all() and chosen[0] < chosen[1]
    assert error.max() < 1e-8 and (every[chosen[0], 1] - exact[1]).abs() > 1e-6


def test_rounding_is_no_kink_and_is_part_of_the_uncertainty():
    truth = true_jacobians(lambda x: x.sin() + 1e4, numbers(0.3)[:, None], {"all": range(1)})["all"]
    error = (truth.jacobian - math.cos(0.3)).abs()
    assert truth.clean.all() and 1e-12 < error.item() <= truth.uncertain.item() < 1e-5


def test_what_is_not_finite_is_unclean_and_leaves_other_points_alone():
    truth = true_jacobians(lambda x: x.log(), numbers(-1.0, 2.0)[:, None], {"all": range(1)})["all"]
    assert truth.clean.tolist() == [False, True]
    assert truth.jacobian[1].item() == pytest.approx(0.5, rel=1e-8)


def test_the_function_is_always_called_on_all_points():
    """Some backends compile for each number of rows."""
    rows = set()

    def counted(x):
        rows.add(len(x))
        return smooth(x)

    true_jacobians(counted, X, BLOCKS)
    assert rows == {3}


def test_the_error_is_relative_to_the_largest_entry_of_each_state():
    truth = torch.tensor([[[4.0, 0.0]], [[1e-9, 0.0]]])
    error = jacobian_error(truth + torch.tensor([0.0, 1.0]), truth)
    torch.testing.assert_close(error, torch.tensor([0.25, 1.0]))  # where nothing has an effect it is absolute
    assert jacobian_error(truth * math.nan, truth).tolist() == [math.inf, math.inf]


def test_the_error_of_a_value_is_relative_above_one():
    truth = torch.tensor([[10.0, 0.0], [0.1, 0.2]])
    torch.testing.assert_close(value_error(truth + torch.tensor([1.0, 0.05]), truth), torch.tensor([0.1, 1.0]))
    assert value_error(torch.full((2, 2), math.nan), truth).tolist() == [math.inf, math.inf]
