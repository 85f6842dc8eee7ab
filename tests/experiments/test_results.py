"""The committed results: every folder is in the index, nothing is loose, and all of it comes from a clean commit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FILES = sorted(path for path in RESULTS.rglob("*") if path.is_file() and path != RESULTS / "README.md")
FOLDERS = sorted({path.parent for path in FILES})
LINK = re.compile(r"\]\(([^)#]+)\)")


def test_the_index_has_one_line_for_every_folder_and_no_other():
    rows = [line for line in (RESULTS / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| [")]
    indexed = [LINK.search(row)[1] for row in rows]
    assert indexed == [path.relative_to(RESULTS).as_posix() for path in FOLDERS]
    assert all(len(row.split(" | ")) == 5 for row in rows), "folder, question, setting, command, commit"


def test_no_file_lies_beside_folders_or_outside_a_setting():
    for folder in FOLDERS:
        assert len(folder.relative_to(RESULTS).parts) >= 2, f"{folder} is not <script>/<setting>"
        assert not [path.name for path in folder.iterdir() if path.is_dir()], f"{folder} has loose files"


def test_no_result_comes_from_a_tree_with_uncommitted_changes():
    texts = [path for path in FILES if path.suffix in (".md", ".csv", ".txt", ".json")]
    assert [path for path in texts if "-dirty" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("page", ["benchmarks/RESULTS.md", "benchmarks/results/README.md"])
def test_links_to_results_resolve(page):
    path = ROOT / page
    links = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert links
