"""What mkdocs.yml adds to MkDocs: equations as MathML, links to objects, and the pages generated from the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import reference
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def _block(source: str, language: str, css_class: str, options: dict[str, Any], md: Any, **_: Any) -> str:
    lines = [line for line in source.splitlines() if line.strip()]
    return "".join(f'<div class="equation">{convert(line, display="block")}</div>' for line in lines)


def _inline(source: str, language: str, css_class: str, md: Any) -> str:
    return convert(source)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fences of language ``math`` (one equation a line) and inline code that begins with ``#!math``."""
    fence = {"name": "math", "class": "math", "format": _block}
    inline = {"name": "math", "class": "math", "format": _inline}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    config.mdx_configs.setdefault("pymdownx.inlinehilite", {})["custom_inline"] = [inline]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the figures and tables of the committed results."""
    for uri, text in reference.pages().items():
        files.append(File.generated(config, uri, content=text))
    for path, uri in reference.addresses().items():
        if path.suffix != ".md":
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page of docs/ from files of the clone to pages and objects of the site."""
    source = page.file.abs_src_path
    if source is None or page.file.generated_by is not None:
        return markdown
    return reference.in_the_site(markdown, Path(source), page.file.src_uri)
