"""What TF32 products do to the critic gradient."""

from __future__ import annotations

import pytest
import torch
from gradient_precision import Settings, relative_errors, rounded_to_tf32


def test_tf32_has_ten_bits_of_mantissa():
    unit = 2.0**-10
    given = torch.tensor([0.0, 1.0, 1.0 + unit, 1.0 + 0.49 * unit, -1.0 - 0.51 * unit])
    assert rounded_to_tf32(given).tolist() == [0.0, 1.0, 1.0 + unit, 1.0, -1.0 - unit]
    x = torch.randn(1000) * torch.logspace(-20, 20, 1000)
    assert ((rounded_to_tf32(x) - x).abs() <= 0.5 * unit * x.abs()).all()
    assert torch.equal(rounded_to_tf32(rounded_to_tf32(x)), rounded_to_tf32(x))


def test_errors_of_float32_and_tf32_are_of_their_units_of_rounding():
    found = relative_errors("Pendulum", Settings(updates=2))
    assert list(found) == ["float32", "TF32, emulated"]
    assert max(found["float32"]) < 1e-5 and 1e-5 < min(found["TF32, emulated"]) < 1e-2


@pytest.mark.gpu
def test_errors_of_the_cards_own_tf32_products():
    found = relative_errors("Pendulum", Settings(updates=2, device="cuda"))
    assert max(found["float32"]) < 1e-5 and 1e-5 < min(found["TF32"]) < 1e-2
