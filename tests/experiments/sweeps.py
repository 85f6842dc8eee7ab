"""What tests of sweeps share."""

from __future__ import annotations

from mage_diffsim.experiments.cells import Cell
from mage_diffsim.settings import make_config

CLOCK = ("updates_per_s", "wall_s")
"""Summary columns that no two runs share."""


def cell(tiny, name="a", **settings) -> Cell:
    return Cell(name, make_config("Pendulum", **{**tiny, "dynamics": "oracle", **settings}))


def without_clock(rows):
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
