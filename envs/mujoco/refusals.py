"""What a backend refuses of a model: the features that it does not cover, and the elements that have them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np

from mage_diffsim.envs.mujoco.model import element_name

KINDS = {
    "actuator": "ACTUATOR",
    "geom": "GEOM",
    "jnt": "JOINT",
    "nflex": "FLEX",
    "nplugin": "PLUGIN",
    "pair": "PAIR",
    "tendon": "TENDON",
}
"""First word of the name of a field of ``mujoco.MjModel`` to the kind of its elements in ``mujoco.mjtObj``."""


class Refusal(NamedTuple):
    """A feature of a model that a backend does not cover."""

    sentence: str
    """The feature, and an element that has it, as error messages say it."""
    feature: str
    """The feature alone; refusals of equal features are counted together."""
    elements: tuple[str, ...] = ()
    """The elements that have it, by kind and name; none where it is one of the whole model."""


def with_first(feature: str, elements: tuple[str, ...]) -> str:
    """The feature with the first of the elements that have it, if there are any."""
    return f"{feature} of {elements[0]}" if elements else feature


def elements_of(mujoco: Any, model: Any, field: str) -> tuple[str, ...]:
    """The elements for which a field is not 0, by kind and name.

    Args:
        mujoco: the module.
        model: ``mujoco.MjModel``.
        field: an array with one row per element, or the number of elements of a kind; others have no elements.
    """
    prefix, value = field.partition("_")[0], getattr(model, field)
    if prefix == "dof":
        kind, found = "JOINT", np.unique(model.dof_jntid[np.asarray(value).reshape(model.nv, -1).any(1)])
    elif prefix not in KINDS:
        return ()
    elif isinstance(value, np.ndarray):
        kind, found = KINDS[prefix], np.flatnonzero(value.reshape(len(value), -1).any(1))
    else:
        kind, found = KINDS[prefix], np.arange(value)
    return tuple(f"{kind.lower()} {element_name(mujoco, model, kind, int(i))!r}" for i in found)


def flags_beyond(
    mujoco: Any, option: Any, disabled: Collection[str], enabled: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yields the option flags that a model sets and a backend does not cover, each with "disabled" or "enabled".

    Args:
        mujoco: the module.
        option: ``mujoco.MjOption``.
        disabled: names of ``mujoco.mjtDisableBit``, without mjDSBL_, that the backend covers.
        enabled: names of ``mujoco.mjtEnableBit``, without mjENBL_, that it covers.
    """
    for flags, prefix, given, covered, change in (
        (mujoco.mjtDisableBit, "mjDSBL_", option.disableflags, disabled, "disabled"),
        (mujoco.mjtEnableBit, "mjENBL_", option.enableflags, enabled, "enabled"),
    ):
        for flag, bit in flags.__members__.items():
            short = flag.removeprefix(prefix)
            if flag.startswith(prefix) and given & int(bit) and short not in covered:
                yield short.lower(), change
