"""Fields that choose among names: the accepted names stand once, in the field's ``Literal``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mage_diffsim.errors import unknown_name


def choices_of(kind: type) -> dict[str, tuple[str | None, ...]]:
    """What every ``Literal`` field of a dataclass, and of the dataclasses that are its fields, accepts: names, and None
    where the field may be None."""
    found: dict[str, tuple[str | None, ...]] = {}
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= choices_of(hint)
        for part in (hint, *get_args(hint)):  # Literal[...], or Literal[...] | None
            if get_origin(part) is Literal:
                found[name] = ((None,) if type(None) in get_args(hint) else ()) + get_args(part)
    return found


def require_choices(kind: type, values: Mapping[str, Any]) -> None:
    """Refuse a value that is not among what its field accepts.

    Raises:
        InputError: names the field, what was given and what is accepted.
    """
    for name, accepted in choices_of(kind).items():
        if name in values and values[name] not in accepted:
            raise unknown_name(name, values[name], filter(None, accepted))
