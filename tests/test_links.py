"""The files that README and documentation link, include, name or run exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import ROOT, blocks, missing_targets

PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "benchmarks/RESULTS.md",
    ROOT / "benchmarks/results/README.md",
]
NAVIGATION = (ROOT / "mkdocs.yml").read_text()


def is_made_by_the_site(path: Path) -> bool:
    """Whether `make docs` writes the page: the reference is the only part of the site that the clone lacks."""
    reference = ROOT / "docs/reference"
    return path.is_relative_to(reference) and f" reference/{path.name}\n" in NAVIGATION


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_points_to_exists(page):
    assert [path for path in missing_targets(page) if not is_made_by_the_site(path)] == []


def test_a_missing_file_would_be_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```text\ny\n```\n\n[there](page.md) and [not there](other.md)\n")
    assert blocks(page, "python") == ["x = 1\n"]
    assert missing_targets(page) == [tmp_path / "other.md"]
    assert not is_made_by_the_site(ROOT / "docs/nowhere.md") and is_made_by_the_site(ROOT / "docs/reference/cli.md")
