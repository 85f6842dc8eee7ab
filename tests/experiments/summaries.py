"""Summary rows of cells that were never trained."""

from __future__ import annotations

from typing import Any

SPREAD = (-1.0, 0.0, 1.0)
"""Three seeds around a mean; the 95% interval is then +- 2.48 spreads."""


def rows(
    method: str = "mage-td3",
    dynamics: str = "learned",
    backend: str = "",
    *,
    task: str = "Pendulum",
    returns: float = -500.0,
    error: float = 1.0,
    cosine: float = 0.5,
    solved: tuple[int | None, ...] = (None, None, None),
    nonfinite: int = 0,
    restarts: int = 0,
    spread: float = 1.0,
    seeds: int = 3,
) -> list[dict[str, Any]]:
    """Summary rows of one cell."""
    return [
        dict(
            task=task,
            method=method,
            dynamics=dynamics,
            backend=backend,
            variant="",
            seed=seed,
            env_steps=1000,
            final_return=returns + 10.0 * spread * SPREAD[seed],
            mean_return=returns - 100.0 + 10.0 * spread * SPREAD[seed],
            steps_to_threshold=solved[seed],
            gradient_error=error * (1.0 + 0.05 * spread * SPREAD[seed]),
            gradient_cosine=cosine,
            nonfinite=nonfinite,
            restarts=restarts,
            updates_per_s=100.0,
            wall_s=10.0,
        )
        | {"lambda": 0.2}
        for seed in range(seeds)
    ]


def oracle(backend: str = "torch", **more: Any) -> list[dict[str, Any]]:
    """Summary rows of MAGE on an oracle."""
    return rows(dynamics="oracle", backend=backend, **more)


def four(learned: float, values: float, gradients: float, both: float, **more: Any) -> list[list[dict[str, Any]]]:
    """Cells of the four kinds of dynamics with these returns."""
    kinds = {"learned": learned, "hybrid-learned-gradients": values, "hybrid-oracle-gradients": gradients}
    cells = [rows(dynamics=k, backend="" if k == "learned" else "warp", returns=y, **more) for k, y in kinds.items()]
    return [*cells, oracle("warp", returns=both, **more)]
