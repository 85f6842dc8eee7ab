"""Rows as a table and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mage_diffsim.experiments.figures import DASHES, PALETTE, write_figure
from mage_diffsim.experiments.tables import Table
from throughput_sections.rows import Row

HEADER = (
    "what", "how", "R", "size", "ms", "p95", "per s", "speed-up", "against", "first s", "faults", "peak MiB", "checked",
)  # fmt: skip
"""Columns of a section's table."""


def table_of(section: str, rows: Sequence[Row]) -> Table:
    """Returns a section's rows as text."""

    def number(x: float) -> str:
        return "-" if math.isnan(x) else f"{x:.3g}" if abs(x) < 1e4 else f"{x:,.0f}"

    cells = [
        [r.subject, r.variant, str(r.runs), str(r.size), *map(number, (r.median_ms, r.p95_ms, r.per_s, r.ratio)),
         r.against, *map(number, (r.first_s, r.faults, r.peak_mib)), r.check]
        for r in rows
    ]  # fmt: skip
    units = " or ".join(dict.fromkeys(r.unit for r in rows))
    return Table(f"{section}: ms per {units}", HEADER, cells)


def draw(path: Path, section: str, rows: Sequence[Row]) -> None:
    """Draws rate over size where a section sweeps sizes, else one bar of median time (whisker: p95) per row.

    Raises:
        InputError: the file cannot be written.
    """
    sweeps = section in ("physics", "env") and len({r.size for r in rows if r.unit != "evaluation"}) > 1

    def paint(page: Any) -> None:
        axis = page.subplots()
        if sweeps:
            lines: dict[str, list[Row]] = {}
            for r in rows:
                if r.unit != "evaluation":
                    lines.setdefault(f"{r.subject}, {r.variant}", []).append(r)
            for i, (name, points) in enumerate(lines.items()):
                look = dict(color=PALETTE[i % len(PALETTE)], linestyle=DASHES[i // len(PALETTE) % len(DASHES)])
                sizes, rates = [r.size for r in points], [r.per_s for r in points]
                axis.plot(sizes, rates, marker="o", markersize=3, label=name, **look)
            axis.set(xscale="log", yscale="log", xlabel="states side by side", ylabel="environment steps per second")
            axis.legend(fontsize="x-small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            names = [f"{r.subject}, {r.variant}" + (f", R={r.runs}" if r.runs > 1 else "") for r in rows]
            times = [max(r.median_ms, 1e-6) for r in rows]
            axis.barh(range(len(rows)), times, color=PALETTE[0])
            late = [max(r.p95_ms - r.median_ms, 0.0) if not math.isnan(r.p95_ms) else 0.0 for r in rows]
            ends = [[0.0] * len(rows), late]
            axis.errorbar(times, range(len(rows)), xerr=ends, fmt="none", color="black", linewidth=0.8)
            axis.set_yticks(range(len(rows)), names, fontsize="x-small")
            axis.set(xscale="log", xlabel="ms (median; whisker: 95th percentile)")
            axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.25)
        axis.set_title(section)

    write_figure(path, 9.0, 5.0 if sweeps else 1.2 + 0.28 * len(rows), paint)
