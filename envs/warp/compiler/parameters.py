"""Stage 0, parameters: numbers of the model that are inputs of a step, so that it can be differentiated by them.

A :class:`View` is an ``MjModel`` with inputs in place of some fields' numbers. The stages read it like the model, and
what was a constant becomes an expression. Nothing is computed again that MuJoCo's compiler derives from the fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mage_diffsim.envs.warp.compiler.graph import Graph, Node

NAMES = (
    *("body_mass", "body_inertia", "body_ipos"),
    *("dof_damping", "dof_armature", "dof_frictionloss", "jnt_stiffness"),
    *("actuator_gainprm", "actuator_biasprm", "actuator_gear"),
    *("gravity", "geom_friction", "geom_size"),
)
"""The fields of an ``MjModel`` that can be parameters, in the order in which a step takes them; ``gravity`` is that of
its options."""

OF_GEOMS = ("geom_friction", "geom_size")
"""Those of geoms; each has three numbers."""


def numbers(m: Any, name: str) -> np.ndarray:
    """The model's own numbers of a field, float64, in MuJoCo's shape."""
    return np.array(m.opt.gravity if name == "gravity" else getattr(m, name), dtype=np.float64)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Names of fields in the order of :data:`NAMES`, each once."""
    given = set(names)
    return tuple(name for name in NAMES if name in given)


class View:
    """An object some of whose attributes are replaced."""

    def __init__(self, of: Any, replaced: Mapping[str, Any]) -> None:
        self._of = of
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def inputs(graph: Graph, m: Any, names: Sequence[str]) -> list[Node]:
    """The inputs ``parameter{i}`` that stand for the numbers of the fields, one field after the other."""
    return graph.inputs("parameter", sum(numbers(m, name).size for name in names))


def with_inputs(graph: Graph, m: Any, names: Sequence[str]) -> Any:
    """The ``MjModel`` with :func:`inputs` in place of the fields' numbers; itself if there are no names."""
    if not names:
        return m
    nodes, at, replaced = inputs(graph, m, names), 0, {}
    for name in names:
        own = numbers(m, name)
        field = np.empty(own.size, dtype=object)
        field[:] = nodes[at : at + own.size]
        replaced[name] = field.reshape(own.shape)
        at += own.size
    if "gravity" in replaced:
        replaced["opt"] = View(m.opt, {"gravity": replaced.pop("gravity")})
    return View(m, replaced)
