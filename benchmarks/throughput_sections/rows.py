"""One measurement as a row of throughput.csv, and the error of a wrong result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mage_diffsim.experiments.timing import Times


@dataclass(frozen=True)
class Row:
    """One measurement."""

    section: str
    subject: str
    """What is measured: task, method or operation."""
    variant: str
    """Which way of doing it."""
    runs: int
    """Runs side by side (R)."""
    size: int
    """Rows of a batch, or environments."""
    unit: str
    """What one time belongs to: an update, a batch, a step, ..."""
    median_ms: float
    p95_ms: float
    per_s: float
    """Units per second, of all runs or environments together."""
    ratio: float
    """How many times faster than the variant ``against``, median over rounds; NaN where there is none."""
    against: str
    first_s: float
    """What the first call took beyond a warm one: compilation and loading."""
    faults: float
    """Page faults per unit, mean over rounds."""
    peak_mib: float
    """CUDA: memory at the peak of a call. CPU: largest resident size of the process so far."""
    check: str
    """What was verified of the results."""
    tflop_s: float = math.nan
    """Billions of floating-point operations per millisecond, of the matrix products that ``check`` counts."""
    gb_s: float = math.nan
    """Gigabytes per second that these products read and write at least."""
    hardware: str = ""
    """The card's or the processor's name."""


FIELDS = tuple(Row.__dataclass_fields__)
"""Columns of throughput.csv, one row per subject and variant; see :class:`Row`."""


def row(
    section: str, subject: str, variant: str, times: Times, *, unit: str, runs: int = 1, size: int = 0, calls: int = 1,
    count: int = 1, against: tuple[str, Times] | None = None, check: str = "", tflop_s: float = math.nan,
    gb_s: float = math.nan,
) -> Row:  # fmt: skip
    """Returns the row of a function that did ``calls`` units per call, each worth ``count`` for the rate."""
    ratio = times.speed_against(against[1]) if against else math.nan
    return Row(
        section, subject, variant, runs, size, unit, 1e3 * times.median_s / calls, 1e3 * times.p95_s / calls,
        count * calls / times.median_s, ratio, against[0] if against else "", times.first_s, times.faults / calls,
        times.peak_mib, check, tflop_s, gb_s,
    )  # fmt: skip


class Failed(RuntimeError):
    """A function that was to be timed gives wrong results."""
