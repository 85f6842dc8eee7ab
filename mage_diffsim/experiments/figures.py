"""Figures: curves with confidence bands, drawn so that they can be read in print and by colour-blind readers."""

from __future__ import annotations

import contextlib
import contextvars
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mage_diffsim.experiments.statistics import Interval, interval, middle
from mage_diffsim.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart by all common forms of colour vision; without yellow, unreadable on white."""

DASHES = ("-", "--", "-.", ":")
"""Line styles, so that colour is never the only difference between lines that lie on each other."""


@dataclass(frozen=True)
class Line:
    """One curve with its band."""

    label: str
    """Name in the legend; lines of the same label share an entry."""
    points: tuple[tuple[int, Interval], ...]
    """(x, value) in order of x."""
    colour: str
    dash: str = "-"


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    ylabel: str
    lines: tuple[Line, ...]
    log: bool = False
    """Logarithmic y axis."""
    log_x: bool = False
    """Logarithmic x axis."""
    limits: tuple[float, float] | None = None
    """Ends of the y axis; by default chosen from the means, with room for the bands."""
    level: tuple[float, str] | None = None
    """A horizontal line and its name in the legend."""
    note: str = ""
    """Written in the middle of a panel that has nothing to show."""


def line(
    label: str,
    rows: Sequence[Mapping[str, Any]],
    column: str,
    colour: str,
    dash: str = "-",
    *,
    geometric: bool = False,
    median: bool = False,
) -> Line:
    """The curve of a column's (geometric) mean or median over seeds: one point per ``env_step`` in ``rows``."""
    by_step: dict[int, list[float | None]] = {}
    for row in rows:
        by_step.setdefault(row["env_step"], []).append(row[column])
    points = (
        (step, middle(values) if median else interval(values, geometric=geometric))
        for step, values in sorted(by_step.items())
    )
    return Line(label, tuple((step, value) for step, value in points if value.n), colour, dash)


_failed: contextvars.ContextVar[list[tuple[Path, str]] | None] = contextvars.ContextVar("failed figures", default=None)


@contextlib.contextmanager
def failures_kept() -> Iterator[list[tuple[Path, str]]]:
    """Let a figure that cannot be drawn or written not end the report that it belongs to.

    Yields:
        a list that grows by the file and the reason of every figure that failed meanwhile; an older file of that name
        is removed, so that it does not pass for this report's.
    """
    failed: list[tuple[Path, str]] = []
    token = _failed.set(failed)
    try:
        yield failed
    finally:
        _failed.reset(token)


def not_drawn(failed: Sequence[tuple[Path, str]]) -> list[str]:
    """What :func:`failures_kept` has kept, in sentences."""
    return [
        f"{path.name} could not be drawn ({reason.rstrip('.')}); the numbers are complete." for path, reason in failed
    ]


def write_figure(path: Path, width: float, height: float, paint: Callable[[Figure], None]) -> None:
    """Draw a figure and write it as a PNG file, whole or not at all.

    It has a canvas of its own, so neither pyplot nor a backend takes part, and matplotlib's defaults, whatever the
    user's settings are.

    Args:
        path: the file.
        width, height: in inches.
        paint: draws on an empty figure; what it needs of matplotlib it imports itself.

    Raises:
        InputError: the file cannot be written. Within :func:`failures_kept`, neither this nor any other error.
    """
    try:
        # Here and not above: it is slow to load, and worker processes never draw.
        _import_matplotlib()
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        content = io.BytesIO()
        with style.context("default", after_reset=True):
            figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
            FigureCanvasAgg(figure)
            paint(figure)
            figure.savefig(content, format="png")
        _write(path, content.getvalue())
    except Exception as error:  # a picture of the numbers is worth less than the numbers
        failed = _failed.get()
        if failed is None:
            raise
        logging.getLogger(__name__).warning("%s could not be drawn", path, exc_info=True)
        failed.append((path, str(error) or type(error).__name__))
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _import_matplotlib() -> None:
    """Import it whatever MPLBACKEND names: it refuses to load under a backend that it does not know, such as that of a
    notebook whose kernel is installed elsewhere."""
    if "matplotlib" in sys.modules:
        return
    chosen = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    if chosen:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = chosen  # as the import would have set it, for others in this process


def _write(path: Path, content: bytes) -> None:
    """A file in one go.

    Raises:
        InputError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def draw(path: Path, title: str, grid: Sequence[Sequence[Panel]], xlabel: str = "environment steps") -> None:
    """Draw panels in rows and columns, one legend to the right of them all, into a PNG file.

    Raises:
        InputError: the file cannot be written.
    """
    rows, columns = len(grid), max(len(row) for row in grid)

    def paint(page: Figure) -> None:
        page.suptitle(title)
        axes = page.subplots(rows, columns, squeeze=False)
        legend: dict[str, Any] = {}
        for i, row in enumerate(grid):
            for j, panel in enumerate(row):
                legend |= _draw_panel(axes[i, j], panel)
                if i == rows - 1:
                    axes[i, j].set_xlabel(xlabel)
        page.legend(list(legend.values()), list(legend), loc="outside right center", frameon=False, fontsize="small")

    write_figure(path, 4.2 * columns + 2.6, 3.4 * rows + 0.7, paint)


def _draw_panel(axis: Any, panel: Panel) -> dict[str, Any]:
    """Draw one panel; returns its legend entries."""
    entries: dict[str, Any] = {}
    for curve in panel.lines:
        if not curve.points:
            continue
        x, means = [p[0] for p in curve.points], [p[1].mean for p in curve.points]
        marker = "." if len(x) < 3 else ""
        (entries[curve.label],) = axis.plot(x, means, color=curve.colour, linestyle=curve.dash, marker=marker)
        band = [(step, v.low, v.high) for step, v in curve.points if v.known]
        if band:
            axis.fill_between(*zip(*band, strict=True), color=curve.colour, alpha=0.15, linewidth=0)
    if panel.level is not None:
        entries[panel.level[1]] = axis.axhline(panel.level[0], color="#777777", linestyle=":", linewidth=1)
    axis.set_title(panel.title)
    axis.set_ylabel(panel.ylabel)
    axis.grid(alpha=0.25)
    if not entries.keys() - {panel.level[1] if panel.level else None}:
        axis.text(0.5, 0.5, panel.note, ha="center", va="center", transform=axis.transAxes)
    if panel.log:
        axis.set_yscale("log")
    if panel.log_x:
        axis.set_xscale("log")
    else:
        axis.locator_params(axis="x", nbins=5)
    limits = panel.limits or _limits(panel)
    if limits is not None:
        axis.set_ylim(*limits)
    return entries


def _limits(panel: Panel) -> tuple[float, float] | None:
    """Room for every mean, and for bands up to as far again: with two or three seeds they can dwarf the curves."""
    values = [v for curve in panel.lines for _, v in curve.points if math.isfinite(v.mean)]
    if panel.log:
        positive = [v.mean for v in values if v.mean > 0]
        return (0.3 * min(positive), 3.0 * max(positive)) if positive else None
    if not values:
        return None
    ends = [v.mean for v in values] + ([panel.level[0]] if panel.level else [])
    room = max(max(ends) - min(ends), 1e-6)
    low = min(v.low if v.known else v.mean for v in values)
    high = max(v.high if v.known else v.mean for v in values)
    low, high = max(min(low, *ends), min(ends) - room), min(max(high, *ends), max(ends) + room)
    return low - 0.03 * (high - low), high + 0.03 * (high - low)
