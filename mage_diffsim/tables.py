"""The tables of a run folder, eval.csv and metrics.csv: how they are written and read."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
from pathlib import Path
from typing import Any

import torch

from mage_diffsim import columns
from mage_diffsim.errors import InputError
from mage_diffsim.files import AnyPath, as_path, write_atomically, writing

EVAL_FIELDS, METRIC_FIELDS = tuple(columns.EVAL), tuple(columns.METRICS)
"""Columns of eval.csv and of metrics.csv."""

_CURE = "restore the file that the training wrote, or delete it and --resume begins it anew"
"""What helps against a damaged table."""

WHOLE = ("env_step", "seed")
"""Columns of whole numbers."""


def read_evaluations(run_dir: AnyPath) -> list[dict[str, Any]]:
    """Rows of eval.csv; numbers as float, seed and env_step as int, empty cells as None."""
    return _read(as_path(run_dir) / "eval.csv", EVAL_FIELDS)


def read_metrics(run_dir: AnyPath) -> list[dict[str, Any]]:
    """Rows of metrics.csv; numbers as float, seed and env_step as int, empty cells as None."""
    return _read(as_path(run_dir) / "metrics.csv", METRIC_FIELDS)


def last_step(run_dir: AnyPath) -> int:
    """The last environment step that the tables of a run folder have a row of; 0 where they have none."""
    return max((row["env_step"] for row in read_evaluations(run_dir) + read_metrics(run_dir)), default=0)


def columns_of(metrics: dict[str, torch.Tensor]) -> dict[str, list[int | float | None]]:
    """CSV columns of metrics with shape [R]: the one place where they travel to the host.

    A gradient measure that is NaN does not exist and becomes None, an empty cell; a NaN loss is broken and stays NaN.
    """

    def numbers(name: str, value: torch.Tensor) -> list[int | float | None]:
        given = value.tolist()
        return [None if math.isnan(x) else x for x in given] if name.startswith("gradient/") else given

    return {name.replace("/", "_"): numbers(name, value) for name, value in metrics.items()}


def append_rows(path: Path, fields: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Append rows to a CSV file, under the columns that it has, or under ``fields`` if it is new.

    Raises:
        InputError: it cannot be written.
    """
    with writing(path):
        new = not path.exists() or not path.stat().st_size
        if not new:  # an earlier version may have begun the file with other columns
            with open(path, newline="", encoding="utf-8") as file:
                fields = tuple(next(csv.reader(file)))
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fields, restval="", extrasaction="ignore", lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)


def _read(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    header, rows = _table(path)
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    return [{name: _parse(name, row.get(name, "")) for name in fields} for row in cells]


def _parse(name: str, text: str) -> int | float | None:
    if text == "":
        return None
    return int(text) if name in WHOLE else float(text)


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table, as this module writes them, whatever a spreadsheet made of them: another separator,
    decimal commas, whole numbers with a decimal point, a byte-order mark, quotes, other ends of lines.

    A last line that is still being written, or never was because the process was killed, is left out.

    Raises:
        InputError: something cannot be read for certain; names file, line and cause.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}): save it as CSV in UTF-8") from error
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    complete = text.endswith(("\n", "\r"))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path} is no table ({error}): {_CURE}") from error
    lines = [(number, row) for number, row in lines if any(row)]
    if not lines or (len(lines) == 1 and not complete):
        return [], []
    (_, header), *lines = lines
    for name in ("env_step", "seed", "lambda"):
        if header.count(name) != 1:
            raise InputError(
                f"{path}, line 1: the column {name} is there {header.count(name)} times, and once is accepted; the "
                f"columns are: {', '.join(header)[:200]}; {_CURE}"
            )
    rows = []
    for number, row in lines:
        row += [""] * (len(header) - len(row)) if complete or number != lines[-1][0] else []
        while len(row) > len(header) and not row[-1]:
            row.pop()
        if len(row) < len(header):
            continue  # the half of a line
        if len(row) > len(header):
            raise InputError(f"{path}, line {number}: {len(row)} cells, and the header has {len(header)}: {_CURE}")
        rows.append([_number(path, number, *cell, separator) for cell in zip(header, row, strict=True)])
    return header, rows


def _number(path: Path, line: int, column: str, text: str, separator: str) -> str:
    """The text of a number as Python writes it, the same if it is that already."""
    given = text
    if column not in EVAL_FIELDS + METRIC_FIELDS:
        return text
    if separator != "," and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    try:
        if column not in WHOLE:
            _ = text and float(text)
        elif not re.fullmatch(r"-?\d+", text):
            if not text or not float(text).is_integer():
                raise ValueError
            text = str(int(float(text)))
    except (ValueError, OverflowError):
        what = "a whole number" if column in WHOLE else "a number"
        raise InputError(f"{path}, line {line}: {column} is {given!r}; accepted is {what}: {_CURE}") from None
    return text


def keep_rows(run_dir: Path, last_step: int) -> None:
    """Drop what was written after the checkpoint: it is about to happen again. Tables that are gone begin anew."""
    paths = [run_dir / name for name in ("eval.csv", "metrics.csv")]
    gone = [path.name for path in paths if not path.is_file()]
    if gone and last_step >= 0:
        logging.getLogger(__name__).warning(
            f"{run_dir} lacks {' and '.join(gone)}: begun anew, without the rows up to step {last_step}"
        )
    for path in paths:
        if path.name in gone:
            continue
        header, rows = _table(path)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if header:
            step = header.index("env_step")
            writer.writerows([header, *(row for row in rows if int(row[step]) <= last_step)])
        write_atomically(path, text.getvalue())
