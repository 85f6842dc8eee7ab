"""The summary of a benchmark: a verdict, tables, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mage_diffsim.experiments.command import provenance
from mage_diffsim.experiments.tables import Table, markdown_table, rich_table
from mage_diffsim.files import write_atomically


def write_summary(
    path: Path, title: str, verdict: Sequence[str], tables: Sequence[Table], facts: Mapping[str, Any] | None = None
) -> None:
    """Prints a verdict and tables, and writes them to a Markdown file with the command and the versions.

    Args:
        path: the Markdown file.
        title: its heading.
        verdict: at most three sentences.
        tables: those without rows are left out.
        facts: further settings, by name.

    Raises:
        InputError: the file cannot be written.
    """
    console = Console()
    lines = [f"# {title}", "", *(f"- {sentence}" for sentence in verdict), ""]
    for sentence in verdict:
        print(sentence)
    for table in tables:
        if table.rows:
            console.print(rich_table(console, *table))
            lines += [f"## {table.title}", "", markdown_table(table.header, table.rows)]
    lines += provenance(dict(facts or {}))
    write_atomically(path, "\n".join(lines) + "\n")
    print(f"Written to {path.parent}")
