"""The names of ``mujoco.mjx`` that backend mjx uses and that are not exported."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

PRIVATE = {
    "smooth": ("kinematics", "com_pos", "com_vel", "subtree_vel", "tendon", "crb", "transmission"),
    "support": ("jac",),
    "constraint": ("_efc_equality_joint", "_efc_equality_tendon"),
    "forward": ("fwd_velocity", "fwd_actuation"),
    "derivative": ("deriv_smooth_vel",),
    "math": ("quat_to_axis_angle",),
    "types": ("DataJAX", "ModelJAX"),
}
"""Everything used here that ``mujoco.mjx`` does not export: module in ``mujoco.mjx._src`` to names."""


def private(module: str, name: str) -> Any:
    """One of the :data:`PRIVATE` names.

    Raises:
        ImportError: the installed mujoco-mjx does not have it.
    """
    if name not in PRIVATE[module]:
        raise ImportError(f"mujoco.mjx._src.{module}.{name} is not among the private names that are checked")
    try:
        return getattr(importlib.import_module(f"mujoco.mjx._src.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"mujoco-mjx {importlib.metadata.version('mujoco-mjx')} has no mujoco.mjx._src.{module}.{name}, which "
            "backend mjx is built on: install the version this package was tested with"
        ) from error


def missing_names() -> list[str]:
    """What the installed mujoco-mjx lacks of the :data:`PRIVATE` names, one sentence each."""
    missing = []
    for module, names in PRIVATE.items():
        for name in names:
            try:
                private(module, name)
            except ImportError as error:
                missing.append(str(error))
    return missing
