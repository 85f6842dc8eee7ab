"""When do exact gradients through contact mislead? Five examples, each measured with backend warp in float64.

    python benchmarks/contact_gradients.py                        # all of them: minutes
    python benchmarks/contact_gradients.py --examples throw bounce

throw: a ball is thrown at a box, and its gradient is 0 where it misses. bounce: derivatives of a bounce over the
timestep and the contact's impedance. push: a box sticks or slides. tilt: a box falls onto one of two faces. horizon:
growth and variance of gradients with the number of steps. docs/misleading_gradients.md tells what they show. Writes a
CSV file and a figure per example, and summary.md.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from mage_diffsim.errors import unknown_name
from mage_diffsim.experiments.command import script_exit_code
from mage_diffsim.experiments.figures import write_figure
from mage_diffsim.experiments.summary import write_summary
from mage_diffsim.experiments.tables import write_csv
from mage_diffsim.files import make_folder

EXAMPLES = ("throw", "bounce", "push", "tilt", "horizon")
"""Modules of contact_examples."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    examples: tuple[str, ...] = EXAMPLES
    """Names of examples."""
    out: Path = Path("runs/contact_gradients")
    """Folder for results."""


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with numbers of six digits."""
    return {name: float(f"{x:.6g}") if isinstance(x, float) else x for name, x in row.items()}


def run(options: Options) -> int:
    """Measures the examples and writes what they show; returns exit code 0.

    Raises:
        InputError: an example is not known, or a file cannot be written.
    """
    for name in options.examples:
        if name not in EXAMPLES:
            raise unknown_name("example", name, EXAMPLES)
    make_folder(options.out)
    tables = []
    for name in options.examples:
        print(f"{name}: starts", flush=True)
        found = importlib.import_module(f"contact_examples.{name}").measure()
        write_csv(options.out / f"{name}.csv", tuple(found.rows[0]), [rounded(row) for row in found.rows])
        width, height = found.size
        write_figure(options.out / f"{name}.png", width, height, found.paint)
        tables.append(found.table)
    write_summary(options.out / "summary.md", "When gradients through contact mislead", (), tables)
    return 0


if __name__ == "__main__":
    sys.exit(script_exit_code(lambda: run(tyro.cli(Options, description=__doc__)), resumes=False))
