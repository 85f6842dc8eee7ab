"""Derivatives by finite differences, and from Jacobian columns."""

from __future__ import annotations

import math

import pytest
import torch

from mage_diffsim.bridges import ColumnsOp, FiniteDifference
from mage_diffsim.errors import InputError

WAVE = torch.sin


class TestFiniteDifference:
    @pytest.mark.parametrize("step", [1e-2, 5e-3])
    def test_error_is_that_of_second_order(self, step):
        """f(x + h) - f(x - h) over 2h is cos(x) sin(h) / h for a sine: known exactly, not only to leading order."""
        x = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None].requires_grad_()
        (slope,) = torch.autograd.grad(FiniteDifference(WAVE, step=step, name="wave")(x).sum(), x)
        exact = x.detach().cos() * (math.sin(step) / step)
        torch.testing.assert_close(slope, exact, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
    def test_default_step_suits_the_dtype(self, dtype, tolerance):
        x = torch.linspace(-100.0, 100.0, 41, dtype=dtype)[:, None].requires_grad_()
        (slope,) = torch.autograd.grad(FiniteDifference(WAVE, name="wave")(x).sum(), x)
        torch.testing.assert_close(slope, x.detach().cos(), rtol=0.0, atol=tolerance)

    def test_the_step_that_rounding_left_is_the_one_divided_by(self):
        """At 1e4 the float32 step of 0.005 becomes a multiple of 0.001; the slope of a line must still be exact."""
        x = torch.full((1, 1), 1e4, requires_grad=True)
        (slope,) = torch.autograd.grad(FiniteDifference(lambda x: x - 1e4, name="line")(x).sum(), x)
        assert slope.item() == 1.0

    def test_one_evaluation_of_all_columns_that_are_needed(self):
        rows = []

        def function(x, u):
            rows.append(len(x))
            return x * u.sum(-1, keepdim=True)

        x, u = torch.ones(5, 3), torch.ones(5, 2, requires_grad=True)
        FiniteDifference(function, name="product")(x, u).sum().backward()
        assert rows == [5, 2 * 2 * 5]

    def test_a_one_sided_input_takes_forward_differences_and_half_the_rows(self):
        rows = []

        def function(x, u):
            rows.append(len(x))
            return x.square() * u.square()

        x, u = (torch.full((5, 1), v, dtype=torch.float64, requires_grad=True) for v in (2.0, 3.0))
        op = FiniteDifference(function, step=0.1, one_sided=(1,), name="product")
        by_x, by_u = torch.autograd.grad(op(x, u).sum(), (x, u))
        torch.testing.assert_close(by_x, torch.full_like(x, 2 * 2.0 * 9.0), rtol=1e-12, atol=0)  # central: exact
        torch.testing.assert_close(by_u, torch.full_like(x, 4.0 * (2 * 3.0 + 0.1)), rtol=1e-12, atol=0)
        assert rows == [5, (2 + 1 + 1) * 5]
        (again,) = torch.autograd.grad(op(x.detach(), u).sum(), u)
        assert torch.equal(again, by_u)
        assert rows[-1] == (1 + 1) * 5


def value(x, u):
    return x * u.sum(-1, keepdim=True).sin()


def by_u(x, u):
    return (x * u.sum(-1, keepdim=True).cos()).unsqueeze(-1).expand(*x.shape, u.shape[1])


class TestColumns:
    x = torch.randn(4, 3, dtype=torch.float64)
    u = torch.randn(4, 2, dtype=torch.float64)
    cotangent = torch.randn(4, 3, dtype=torch.float64)

    def test_gradient_is_the_cotangent_times_the_columns(self):
        u = self.u.clone().requires_grad_()
        (ours,) = torch.autograd.grad(ColumnsOp(value, by_u, name="sim")(self.x, u), u, self.cotangent)
        (autograd,) = torch.autograd.grad(value(self.x, u), u, self.cotangent)
        torch.testing.assert_close(ours, autograd, rtol=1e-14, atol=1e-14)

    def test_another_input_that_needs_a_gradient_is_refused(self):
        x, u = self.x.clone().requires_grad_(), self.u.clone().requires_grad_()
        y = ColumnsOp(value, by_u, name="sim")(x, u)
        with pytest.raises(
            InputError,
            match="sim: input 0 requires a gradient, but only the derivative with respect to input 1 is supplied",
        ):
            y.sum().backward()

    def test_another_input_by_finite_differences_on_request(self):
        x, u = self.x.clone().requires_grad_(), self.u.clone().requires_grad_()
        ours = torch.autograd.grad(ColumnsOp(value, by_u, others="fd", name="sim")(x, u), (x, u), self.cotangent)
        autograd = torch.autograd.grad(value(x, u), (x, u), self.cotangent)
        for a, b in zip(ours, autograd, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)

    def test_columns_are_not_computed_for_a_gradient_of_the_others(self):
        def never(x, u):
            raise AssertionError("asked for columns that nobody needs")

        x = self.x.clone().requires_grad_()
        ColumnsOp(value, never, others="fd", name="sim")(x, self.u).sum().backward()
        assert x.grad is not None

    def test_transposed_columns_are_refused(self):
        u = self.u.clone().requires_grad_()
        y = ColumnsOp(value, lambda x, u: by_u(x, u).transpose(1, 2), name="sim")(self.x, u)
        with pytest.raises(InputError, match=r"sim: columns have shape \(4, 2, 3\); accepted is \(4, 3, 2\)"):
            y.sum().backward()

    def test_unknown_treatment_of_the_others(self):
        with pytest.raises(InputError, match="unknown treatment of the other inputs 'zero': choose one of fd, refuse"):
            ColumnsOp(value, by_u, others="zero", name="sim")
