"""The helper that differentiates: against closed forms, and traced by torch.compile against itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from mage_diffsim.autodiff import pull_back, value_and_gradients


def test_value_and_gradients_are_those_of_a_closed_form_and_come_detached():
    x, y, unused = (torch.randn(2, 3, dtype=torch.float64) for _ in range(3))
    value, gradients = value_and_gradients(lambda x, y, unused: x.square() * y.sin(), x, y, unused)
    assert torch.equal(value, x.square() * y.sin()) and not value.requires_grad
    expected = (2.0 * x * y.sin(), x.square() * y.cos(), torch.zeros_like(x))
    for gradient, closed_form in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, closed_form, rtol=1e-14, atol=0.0)
        assert not gradient.requires_grad
    assert not x.requires_grad


def test_a_constant_has_gradient_zero():
    x = torch.randn(2, 3, dtype=torch.float64)
    value, (gradient,) = value_and_gradients(lambda x: torch.ones(2, dtype=x.dtype), x)
    assert value.tolist() == [1.0, 1.0] and torch.equal(gradient, torch.zeros_like(x))


def test_a_pull_back_is_differentiable_with_respect_to_the_cotangent():
    x, v = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64).requires_grad_()
    (pulled,) = pull_back(torch.sin, x, [v])
    torch.testing.assert_close(pulled.detach(), v.detach() * x.cos(), rtol=1e-14, atol=0.0)
    (derivative,) = torch.autograd.grad(pulled.sum(), v)
    torch.testing.assert_close(derivative, x.cos(), rtol=1e-14, atol=0.0)


def test_traced_derivatives_equal_those_of_autograd():
    """Of functions that ask, hook, write in place, cut or have a derivative of their own, as a task's may."""
    script = Path(__file__).with_name("traced_derivatives.py")
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    apart = json.loads(found.stdout.splitlines()[-1])
    assert len(apart) == 6 and max(apart.values()) <= 1e-14, apart
