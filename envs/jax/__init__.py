"""Physics written as a JAX function."""

from __future__ import annotations

from typing import Any, final

from mage_diffsim.bridges.fd import FiniteDifference
from mage_diffsim.bridges.jax import RESIDUALS, check_device, from_jax, load_jax, x64
from mage_diffsim.bridges.op import Op
from mage_diffsim.envs.physics import Physics, implementation
from mage_diffsim.errors import InputError
from mage_diffsim.shapes import Float, Tensor


@final
class JaxPhysics(Physics):
    """A task whose ``physics["jax"]`` is ``implementation(task) -> step(state[S], action[A]) -> next_state[S]``.

    ``step`` is a pure, jittable JAX function of one environment; it gets the action within [-1, 1] and scales it. It
    is batched with ``vmap``, and compiled for each number of environments, once for values and once for gradients.
    ``implementation`` and ``step`` run with JAX's 64-bit types on (see :func:`.from_jax`).

    Derivative sources: ``vjp`` is reverse mode, ``jvp`` forward mode by columns, ``fd`` central differences, which keep
    no residuals. ``jvp`` with residuals ``keep`` calls JAX once for the step and its derivative.

    Raises:
        InputError: JAX does not see the device, or residuals are to be kept of ``fd``.
        MissingExtra: jax is not installed.
    """

    backend = "jax"
    derivatives = ("vjp", "jvp", "fd")
    residual_policies = RESIDUALS

    def _build(self) -> None:
        jax = load_jax()
        check_device(self.device, str(self))
        with x64():
            step: Any = implementation(self.task, self.backend)
        self._op = _differentiated(jax.vmap(step), self.derivative, self.residuals, str(self))

    def _advance(self, state: Float[Tensor, "N S"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N S"]:
        return self._op(state, action)


def _differentiated(step: Any, derivative: str, residuals: str, name: str) -> Op:
    if derivative == "fd":
        if residuals == "keep":
            raise InputError(f"{name}: finite differences have no residuals to keep: use residuals 'recompute'")
        return FiniteDifference(from_jax(step, name=name).forward, name=name)
    return from_jax(step, derivative=derivative, residuals=residuals, name=name)
