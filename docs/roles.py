"""A griffe extension: the roles of docstrings, such as :func:`.name`, as code or as links."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`(~?)(\.*)([\w.]+)`")


def _shown(match: re.Match[str]) -> str:
    short, relative, name = match.groups()
    text = name.rpartition(".")[2] if short else name
    return f"[`{text}`][{name}]" if not relative and name.startswith("mage_diffsim.") else f"`{text}`"


class Roles(Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(_shown, obj.docstring.value)
