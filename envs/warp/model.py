"""MuJoCo models as fused Warp kernels: what the compiler emits, compiled by Warp and wrapped as a torch operation."""

# Warp's kernel annotations are values, not types.
# pyright: reportInvalidTypeForm=false

from typing import Any

import torch

from mage_diffsim.bridges.warp import kernel, load_warp


def make_kernels(real: Any, forward_code: str, adjoint_code: str) -> tuple[Any, Any]:
    wp = load_warp()

    @wp.func_native(forward_code)
    def forward_body(thread: int, state: wp.array2d(dtype=real), control: wp.array2d(dtype=real), next_state: wp.array2d(dtype=real)): ...

    @wp.func_native(adjoint_code)
    def adjoint_body(thread: int, state: wp.array2d(dtype=real), control: wp.array2d(dtype=real), cotangent: wp.array2d(dtype=real), state_gradient: wp.array2d(dtype=real), control_gradient: wp.array2d(dtype=real)): ...

    @kernel
    def forward(state: wp.array2d(dtype=real), control: wp.array2d(dtype=real), next_state: wp.array2d(dtype=real)):
        forward_body(wp.tid(), state, control, next_state)
        real(0.0)

    @kernel
    def adjoint(state: wp.array2d(dtype=real), control: wp.array2d(dtype=real), cotangent: wp.array2d(dtype=real), state_gradient: wp.array2d(dtype=real), control_gradient: wp.array2d(dtype=real)):
        adjoint_body(wp.tid(), state, control, cotangent, state_gradient, control_gradient)
        real(0.0)

    return forward, adjoint
