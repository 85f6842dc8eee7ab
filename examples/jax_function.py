"""A JAX function of your own as a torch function with gradients.

    python examples/jax_function.py

Expect the gradient by the bridge and by central differences to agree to about ten digits, and a fitted mass near 0.7.

JAX's 64-bit types are on inside the function, so ``jnp.zeros(n)`` in it is float64, and float32 input is refused. Write
``jnp.zeros(n, height.dtype)``, or ``jnp.zeros_like(height)`` as here.
"""

import jax.numpy as jnp
import torch
from jax import lax

from mage_diffsim.bridges import from_jax


def fall(height, log_mass):
    """Height [N] after 1 s of fall with drag, for N balls of mass exp(log_mass) [1]."""

    def step(state, _):
        height, velocity = state
        velocity = velocity + 0.01 * (-9.81 - 0.5 * velocity * jnp.abs(velocity) / jnp.exp(log_mass))
        return (height + 0.01 * velocity, velocity), None

    (height, _), _ = lax.scan(step, (height, jnp.zeros_like(height)), length=100)
    return height


def main() -> None:
    op = from_jax(fall)  # arrays in, one array out; compiled once per shape
    height = torch.linspace(10.0, 20.0, 5, dtype=torch.float64)
    log_mass = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    measured = op(height, torch.tensor([0.7], dtype=torch.float64).log())

    def loss(log_mass: torch.Tensor) -> torch.Tensor:
        return (op(height, log_mass) - measured).square().sum()

    loss(log_mass).backward()
    assert log_mass.grad is not None
    with torch.no_grad():
        differences = (loss(log_mass + 1e-5) - loss(log_mass - 1e-5)) / 2e-5
    print(f"gradient by the bridge {log_mass.grad.item():.10f}, by central differences {differences.item():.10f}")

    optimizer = torch.optim.Adam([log_mass], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss(log_mass).backward()
        optimizer.step()
    print(f"fitted mass {log_mass.exp().item():.4f} kg, true mass 0.7 kg")


if __name__ == "__main__":
    main()
