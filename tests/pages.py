"""Code blocks and links of the README and of the pages under docs/."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SNIPPET = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language; those that include a file are left out."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language and not _SNIPPET.search(text)]


def commands(page: Path, program: str) -> list[list[str]]:
    """The commands of a page's bash blocks that call ``program``, split into words, without comments."""
    lines = [line for text in blocks(page, "bash") for line in text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [command for command in words if command[:1] == [program]]


def missing_targets(page: Path) -> list[Path]:
    """Files that a page links, shows, includes, names or runs, and that do not exist."""
    text = page.read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    linked = [page.parent / path for path in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", prose)]
    named = re.findall(r"\b((?:benchmarks|examples|tests)/[\w/]+\.(?:py|md|csv))\b", text) + _SNIPPET.findall(text)
    return [path for path in (p.resolve() for p in [*linked, *(ROOT / p for p in named)]) if not path.exists()]
