"""All sections on one page of a terminal, for ``--quick``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

from throughput_sections.rows import Row

LINES = 60
"""Lines of a page."""
LEAST = 4
"""Lines that every section keeps where the page is too long: its heading, and what counts most."""


def page(title: str, sections: Sequence[tuple[str, Sequence[Row]]], footer: Sequence[str]) -> str:
    """Returns a page of at most LINES lines; the longest sections give way, from their ends."""
    blocks = [block_of(section, rows) for section, rows in sections]
    room = LINES - 1 - len(footer) - len(blocks)  # a line between any two
    while sum(map(len, blocks)) > room and max(map(len, blocks)) > LEAST:
        longest = max(blocks, key=len)
        cut = longest[-1].startswith("... ")
        missing = 1 + (int(longest[-1].split()[1]) if cut else 1)
        del longest[-2:]
        longest.append(f"... {missing} more in summary.md")
    return "\n".join([title, *(line for block in blocks for line in ["", *block]), *footer])


def block_of(section: str, rows: Sequence[Row]) -> list[str]:
    """Returns the lines of one section: a heading and one line for everything that has numbers of its own."""
    header, cells = FORMS.get(section, in_general)(rows)
    return aligned([[f"{section}, {header[0]}", *header[1:]], *cells])


def in_general(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns every row: what, how, runs, size and its median time."""
    header = ["ms", "how", "R", "size", "ms", "against", "ratio"]
    cells = [[r.subject, r.variant, str(r.runs), str(r.size), number(r.median_ms), r.against, number(r.ratio)]
             for r in rows]  # fmt: skip
    return header, cells


def of_steps(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns one line per training, whose parts are columns."""
    parts = ("update", "model batch", "collection", "step", "step with models", "evaluation", "projected training")
    header = ["ms", "how", "R", "update", "batch", "collect", "step", "+models", "eval s", "100k h", "MiB/run"]
    header += ["TFLOP/s", "GB/s"]
    cells = []
    for (subject, variant, runs), found in grouped(rows, parts).items():
        update, batch, collection, step, share, evaluation, training = (found.get(part) for part in parts)
        any_row = next(iter(found.values()))
        times = [number(r and r.median_ms) for r in (update, batch, collection, step, share)]
        whole = [number(evaluation and evaluation.median_ms / 1e3), number(training and training.median_ms / 3.6e6)]
        speeds = [number(update and update.tflop_s), number(update and update.gb_s)]
        cells.append([subject, variant, str(runs), *times, *whole, number(any_row.peak_mib / runs), *speeds])
    return header, cells


def of_physics(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns one line per source and number of worlds."""
    parts = ("forward", "VJP", "action-Jacobian")
    header = ["ms", "how", "worlds", *parts, "steps/s with VJP"]
    cells = []
    for (subject, variant, size), found in grouped(rows, parts, by_size=True).items():
        pulled = found.get("VJP")
        times = [number((r := found.get(part)) and r.median_ms) for part in parts]
        cells.append([subject, variant, str(size), *times, number(pulled and pulled.per_s)])
    return header, cells


def of_kernels(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns every part of an update with what it launches."""
    return ["ms", "part", "ms", "launches"], [[r.subject, r.variant, number(r.median_ms), r.check] for r in rows]


FORMS: dict[str, Callable[[Sequence[Row]], tuple[list[str], list[list[str]]]]] = {
    "steps": of_steps,
    "physics": of_physics,
    "kernels": of_kernels,
}
"""Section to how its rows are shown, where that is not the general way."""


def grouped(
    rows: Sequence[Row], parts: Iterable[str], *, by_size: bool = False
) -> dict[tuple[str, str, int], dict[str, Row]]:
    """Returns the rows whose subjects end with a part: (rest of the subject, variant, runs or size) to part to row."""
    found: dict[tuple[str, str, int], dict[str, Row]] = {}
    for r in rows:
        part = max((part for part in parts if r.subject.endswith(f" {part}")), key=len, default=None)
        if part is not None:
            key = (r.subject.removesuffix(f" {part}"), r.variant, r.size if by_size else r.runs)
            found.setdefault(key, {})[part] = r
    return found


def number(value: float | None) -> str:
    """Returns a number with three significant digits, or a dash."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}" if abs(value) < 1e5 else f"{value / 1e6:.3g}M"


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines whose columns are aligned: text on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [all(_is_number(c) for c in column[1:]) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-|[-+.e\d]*\dM?|nan|inf", text) is not None
