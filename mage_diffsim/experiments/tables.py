"""Tables of results: as CSV and Markdown files and on a terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.console import Group as Stack
from rich.markup import escape
from rich.table import Table as RichTable

from mage_diffsim.experiments.statistics import Interval
from mage_diffsim.files import write_atomically


class Table(NamedTuple):
    """A table of results."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole CSV file in one go; None and NaN are empty cells.

    Raises:
        InputError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    for row in rows:
        writer.writerow(["" if _absent(row[name]) else row[name] for name in fields])
    write_atomically(path, text.getvalue())


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def text(value: Interval) -> str:
    """``mean ± half-width``, or ``geometric mean [low, high]``, to three significant digits; ``-`` for no value."""
    if value.n == 0:
        return "-"
    if not math.isfinite(value.mean):
        return str(value.mean)
    digits = decimals(value.mean)
    if not value.known:
        return f"{value.mean:.{digits}f}"
    if value.ends is not None:
        return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    if value.geometric:
        return f"{value.mean:.{digits}f} [{value.low:.3g}, {value.high:.3g}]"
    return f"{value.mean:.{digits}f} ± {value.half:.{digits}f}"


def decimals(value: float) -> int:
    """Digits after the point that show three significant ones, at most 6."""
    return min(max(0, 2 - math.floor(math.log10(abs(value)))), 6) if value else 2


WRAPPED = 28
"""Characters beyond which a cell may be wrapped where a table has to be narrow."""


def rich_table(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Stack:
    """The table for a terminal: as few tables below each other as its width allows, with all columns and no cell cut.

    Every one of them begins with the leftmost columns, as many as tell the rows apart.
    """
    keys = next((k for k in range(1, len(header)) if len({tuple(row[:k]) for row in rows}) == len(rows)), 1)

    def table(columns: Sequence[int], width: int | None, title: str | None) -> RichTable:
        found = RichTable(title=title, title_justify="left")
        for column in columns:
            found.add_column(header[column], max_width=width, overflow="fold")
        for row in rows:
            found.add_row(*(escape(row[column]) for column in columns))
        return found

    def fits(columns: Sequence[int], width: int | None) -> bool:
        unlimited = console.options.update(max_width=100_000)
        return console.measure(table(columns, width, None), options=unlimited).maximum <= console.width

    every = range(len(header))
    if fits(every, None):
        return Stack(table(every, None, title))
    # Keys that leave no room for a column beside them are wrapped to what does.
    widths = [w for w in range(WRAPPED, 5, -1) if all(fits([*range(keys), c], w) for c in every[keys:])]
    width = widths[0] if widths else 6
    parts: list[list[int]] = []
    for column in every[keys:]:
        if parts and fits([*range(keys), *parts[-1], column], width):
            parts[-1].append(column)
        else:
            parts.append([column])
    tables = [table([*range(keys), *part], width, None if i else title) for i, part in enumerate(parts)]
    return Stack(*tables)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table for a Markdown file."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in lines) + "\n"


def told_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows without the columns that hold "-" or nothing in every row."""
    kept = [i for i in range(len(header)) if any(row[i] not in ("", "-") for row in rows)]
    return tuple(header[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]


NAME_WIDTH = 30
"""Characters beyond which a cell of :func:`screen_table` is wrapped."""


def screen_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], lines: int) -> str:
    """The first columns and rows of a table that fit into a console's width and a number of lines.

    Columns whose cells are all the same are left out, if there is more than one row.
    """
    kept = [i for i in range(len(header)) if len(rows) < 2 or len({row[i] for row in rows}) > 1]

    def drawn(columns: Sequence[int], shown: Sequence[Sequence[str]]) -> list[str]:
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in columns:
            table.add_column(header[column], max_width=NAME_WIDTH)
        for row in shown:
            table.add_row(*(escape(row[column]) for column in columns))
        wide = console.options.update(max_width=100_000)
        return [
            "".join(segment.text for segment in line).rstrip() for line in console.render_lines(table, wide, pad=False)
        ]

    columns = kept[:1]
    for column in kept[1:]:
        if max(map(len, drawn([*columns, column], rows))) <= console.width:
            columns.append(column)
    shown = list(rows)
    while len(drawn(columns, shown)) + (len(shown) < len(rows)) > lines and len(shown) > 1:
        shown.pop()
    more = [f"... and {len(rows) - len(shown)} more rows"] if len(shown) < len(rows) else []
    return "\n".join(drawn(columns, shown) + more)


def enumeration(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
