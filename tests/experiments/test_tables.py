"""Tables as files and on a terminal."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from mage_diffsim.envs.registry import make_task
from mage_diffsim.experiments import tables
from mage_diffsim.experiments.command import SCREEN_LINES, Findings, markdown, screen
from mage_diffsim.experiments.comparison import HEADER, table_rows
from mage_diffsim.experiments.groups import groups_of
from mage_diffsim.experiments.statistics import Interval
from mage_diffsim.experiments.tables import Table, told_columns
from tests.experiments.summaries import rows

HYBRIDS = [
    row
    for kind in ("oracle", "hybrid-oracle-gradients", "hybrid-learned-gradients")
    for row in rows(dynamics=kind, backend="torch", returns=-1434.0, spread=30.0, solved=(2500, 3000, None))
]
TABLE = table_rows(groups_of([*rows(), *HYBRIDS]), {"Pendulum": make_task("Pendulum")})


def printed(table, width):
    """The table as a console of this width prints it, whole."""
    console = Console(file=io.StringIO(), width=width)
    console.print(tables.rich_table(console, "title", HEADER, table))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_every_column_is_shown_whole_whatever_the_terminals_width(width):
    text = printed(TABLE, width)
    assert all(len(line) <= width for line in text.splitlines()) and "…" not in text
    cells = {cell.strip() for line in text.splitlines() for cell in line.replace("┃", "│").split("│")}
    assert set(HEADER) <= cells
    keys, rest = {c for row in TABLE for c in row[:2]}, {c for row in TABLE for c in row[2:]}
    assert rest <= cells, "no number is wrapped"
    for key in keys:  # a name may be, at its spaces
        assert key in cells or all(any(word in cell.split() for cell in cells) for word in key.split())


def test_a_reason_of_any_length_leaves_the_other_columns_readable():
    reason = "failed: RuntimeError: " + "something went wrong " * 20
    failed = ("Pendulum", "MAGE-TD3, oracle (jax)", reason, *[""] * (len(HEADER) - 3))
    text = printed([*TABLE, failed], 80)
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text and "0.999 [0.882, 1.13]" in text
    assert text.count("something") == 20


def shown(table, width=80, warnings=(), header=HEADER):
    found = Findings(Table("title", header, table), ["one", "two", "three"])
    return screen(Console(file=io.StringIO(), width=width), found, warnings, "Written to runs: " + "file.csv, " * 12)


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("copies", [1, 2, 5])
def test_the_end_of_a_sweep_fits_into_one_screen(width, copies):
    table = [(row[0], f"{row[1]} {i}", *row[2:]) for i in range(copies) for row in TABLE]
    lines = shown(table, width).splitlines()
    assert len(lines) < SCREEN_LINES and max(map(len, lines)) <= width
    assert lines[:4] == ["one", "two", "three", ""] and "file.csv," in lines[-1] and "return" in lines[4]
    left_out = [line for line in lines if line.startswith("... and")]
    assert left_out == ([] if copies < 3 else left_out) and (copies < 5 or left_out)


def test_a_failed_cell_and_warnings_fit_into_one_screen_too():
    failed = ("Pendulum", "MAGE-TD3, oracle (jax)", "failed: " + "something " * 9, *[""] * (len(HEADER) - 3))
    lines = shown([*TABLE, failed], warnings=["x was skipped: " + "why " * 30]).splitlines()
    assert len(lines) < SCREEN_LINES and max(map(len, lines)) <= 80


def test_columns_that_are_alike_in_every_row_are_not_on_the_screen():
    text = shown([("Pendulum", "a", "1", "0"), ("Pendulum", "b", "2", "0")], header=("task", "cell", "return", "nans"))
    assert "task" not in text and "nans" not in text and "return" in text
    assert "task" in shown([("Pendulum", "a", "1", "0")], header=("task", "cell", "return", "nans"))


def test_columns_without_any_value_are_left_out():
    assert told_columns(("a", "b", "c"), [("1", "-", ""), ("2", "", "-")]) == (("a",), [("1",), ("2",)])


def test_a_table_without_rows_is_not_in_the_summary():
    found = Findings(Table("first", ("a",), [("1",)]), tables=[Table("second", ("b",), [])])
    assert "# first" in markdown(found, (), {}) and "second" not in markdown(found, (), {})


def test_markdown_escapes_what_would_end_a_cell():
    assert tables.markdown_table(("|x|", "y"), [("1", "2")]) == "| \\|x\\| | y |\n| --- | --- |\n| 1 | 2 |\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Interval(-149.73, 12.31, 3), "-150 ± 12"),
        (Interval(0.04567, 0.0123, 3), "0.0457 ± 0.0123"),
        (Interval(2.0, math.nan, 1), "2.00"),
        (Interval(2.0, 1.5, 3, geometric=True), "2.00 [1.33, 3]"),
        (Interval(2.0, math.nan, 1, geometric=True), "2.00"),
        (Interval(math.nan, math.nan, 0), "-"),
        (Interval(math.inf, math.nan, 3), "inf"),
        (Interval(0.0, 0.0, 3), "0.00 ± 0.00"),
    ],
)
def test_numbers_are_shown_to_three_digits(value, shown):
    assert tables.text(value) == shown


def test_csv_leaves_absent_numbers_empty_and_no_temporary_file(tmp_path):
    path = tmp_path / "x.csv"
    tables.write_csv(path, ("a", "b", "c"), [{"a": 1, "b": None, "c": math.nan, "more": 5}])
    assert path.read_text() == "a,b,c\n1,,\n"
    assert list(tmp_path.iterdir()) == [path]
