"""Draws figures: a thick curve for the mean and thin ones for single runs, in colours that everyone can tell apart."""

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

COLOURS: dict[tuple[str, str], str] = {
    ("mage", "learned"): "#0072B2",
    ("mage", "oracle"): "#D55E00",
    ("mage", "hybrid-oracle-gradients"): "#009E73",
    ("mage", "hybrid-learned-gradients"): "#CC79A7",
    ("dyna", "learned"): "#E69F00",
    ("dyna", "oracle"): "#56B4E9",
    ("dyna", "hybrid-oracle-gradients"): "#B8A038",
    ("dyna", "hybrid-learned-gradients"): "#8A6FB0",
    ("model-free", ""): "#000000",
    ("data-efficient", ""): "#999999",
}
"""Colour of a cell in every figure, by kind of method and dynamics; Okabe and Ito's as far as they go."""

BACKEND_DASHES = {"jax": "--", "warp": "-.", "mjx": "--"}
"""Line style of an oracle's backend; solid for the others. Lines that should coincide so differ in style alone."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart by all common forms of colour vision; without yellow, unreadable on white."""

Dash = str | tuple[float, tuple[float, ...]]
"""A line style of matplotlib: its name, or an offset and the lengths of strokes and gaps in line widths."""

DASHES: tuple[Dash, ...] = (
    "-", "--", "-.", ":", (0.0, (8.0, 2.0)), (0.0, (1.0, 4.0)), (0.0, (6.0, 1.5, 1.0, 1.5, 1.0, 1.5)),
    (0.0, (2.0, 1.0)),
)  # fmt: skip
"""Line styles, so that colour is never the only difference between lines that lie on each other."""


def styles(cells: Mapping[str, tuple[str, str, str]]) -> dict[str, tuple[str, Dash]]:
    """Colours and line styles of named curves, each of a cell given by method, dynamics and backend.

    The colour depends on the cell alone. Curves that share one (variants, lambdas, TD3 and DDPG) take the next line
    style, of which there are eight.
    """
    found: dict[str, tuple[str, Dash]] = {}
    for name, (method, dynamics, backend) in cells.items():
        kind = method.partition("-")[0]
        kind = {"mage": "mage", "dyna": "dyna", "data": "data-efficient"}.get(kind, "model-free")
        colour = COLOURS[kind, dynamics]
        preferred: Dash = BACKEND_DASHES.get(backend, "-") if dynamics == "oracle" else "-"
        dashes = dict.fromkeys((preferred, *DASHES))
        free = (dash for dash in dashes if (colour, dash) not in found.values())
        found[name] = (colour, next(free, preferred))
    return found


@dataclass(frozen=True)
class Line:
    """One curve, and thin ones of what it is the mean of."""

    label: str
    """Name in the legend; lines of the same label share an entry."""
    points: tuple[tuple[int, Interval], ...]
    """(x, value) in order of x."""
    colour: str
    dash: Dash = "-"
    runs: tuple[tuple[tuple[int, float], ...], ...] = ()
    """(x, value) in order of x, of every run."""


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
    """Ends of the y axis; by default those of the curves, of a logarithmic axis those of the thick ones."""
    level: tuple[float, str] | None = None
    """A horizontal line and its name in the legend."""
    note: str = ""
    """Written in the middle of a panel that has nothing to show."""


def line(
    label: str,
    rows: Sequence[Mapping[str, Any]],
    column: str,
    colour: str,
    dash: Dash = "-",
    *,
    geometric: bool = False,
    median: bool = False,
) -> Line:
    """The curve of a column's (geometric) mean or median over runs, and those of its runs.

    Args:
        label: name in the legend.
        rows: rows of curves.csv.
        column: what is drawn over ``env_step``; None and NaN are left out.
        colour, dash: of the curve.
        geometric: whether the mean is geometric.
        median: whether it is the median instead.
    """
    by_step: dict[int, list[float | None]] = {}
    runs: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
    for row in sorted(rows, key=lambda row: row["env_step"]):
        step, value = row["env_step"], row[column]
        by_step.setdefault(step, []).append(value)
        if value is not None and math.isfinite(value):
            runs.setdefault((row["seed"], row.get("lambda")), []).append((step, value))
    points = (
        (step, middle(values) if median else interval(values, geometric=geometric)) for step, values in by_step.items()
    )
    shown = tuple((step, value) for step, value in points if value.n)
    return Line(label, shown, colour, dash, tuple(map(tuple, runs.values())) if len(runs) > 1 else ())


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


_mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="")


@contextlib.contextmanager
def marked(text: str) -> Iterator[None]:
    """Meanwhile, write a text behind the title of every figure."""
    token = _mark.set(text)
    try:
        yield
    finally:
        _mark.reset(token)


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
    """Draw panels in rows and columns, one legend below them all, into a PNG file.

    Raises:
        InputError: the file cannot be written.
    """
    rows, columns = len(grid), max(len(row) for row in grid)
    width = max(4.6 * columns, 6.4)
    labels = {line.label for row in grid for panel in row for line in panel.lines}
    longest = max(map(len, labels), default=1)
    across = max(1, int(width / (0.08 * longest + 0.6)))
    legend_lines = math.ceil((len(labels) + 1) / across)

    def paint(page: Figure) -> None:
        page.suptitle(f"{title}{_mark.get()}", fontsize="medium")
        axes = page.subplots(rows, columns, squeeze=False)
        legend: dict[str, Any] = {}
        for i in range(rows):
            for j in range(columns):
                if j >= len(grid[i]):
                    axes[i, j].axis("off")
                    continue
                legend |= _draw_panel(axes[i, j], grid[i][j])
                if i == rows - 1 or j >= len(grid[i + 1]):
                    axes[i, j].set_xlabel(xlabel)
        page.legend(
            list(legend.values()), list(legend), loc="outside lower center", ncols=across, frameon=False,
            fontsize="small",
        )  # fmt: skip

    write_figure(path, width, 3.4 * rows + 0.5 + 0.2 * legend_lines, paint)


def _draw_panel(axis: Any, panel: Panel) -> dict[str, Any]:
    """Draw one panel; returns its legend entries."""
    entries: dict[str, Any] = {}
    for curve in panel.lines:
        for run in curve.runs:
            axis.plot(*zip(*run, strict=True), color=curve.colour, linewidth=0.6, alpha=0.45, zorder=1)
    for curve in panel.lines:
        if not curve.points:
            continue
        x, means = [p[0] for p in curve.points], [p[1].mean for p in curve.points]
        marker = "." if len(x) < 3 else ""
        (entries[curve.label],) = axis.plot(
            x, means, color=curve.colour, linestyle=curve.dash, marker=marker, linewidth=2.0, zorder=2
        )
    if panel.level is not None:
        entries[panel.level[1]] = axis.axhline(panel.level[0], color="#777777", linestyle=":", linewidth=1)
    axis.set_title(panel.title, fontsize="medium")
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
    limits = panel.limits or (_log_limits(panel) if panel.log else None)
    if limits is not None:
        axis.set_ylim(*limits)
    return entries


def _log_limits(panel: Panel) -> tuple[float, float] | None:
    """Room for the thick curves: a single run may exceed them by orders of magnitude."""
    means = [v.mean for curve in panel.lines for _, v in curve.points if 0.0 < v.mean < math.inf]
    return (0.3 * min(means), 3.0 * max(means)) if means else None
