"""How constraint rows give way: MuJoCo's solref and solimp ("Solver parameters" in its documentation)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.mixing import LARGEST_IMPEDANCE, LEAST_IMPEDANCE, SMALLEST, STANDARD_SOLREF
from mage_diffsim.envs.mujoco.model import load_mujoco


@dataclasses.dataclass(frozen=True)
class Impedance:
    """The numbers of aref = -b v - k d(r) r, where d(r) is a curve in the violation r; one each, or arrays [n]."""

    smallest: Any
    """d(0)."""
    largest: Any
    """d(r) from the width on."""
    width: Any
    """Violation at which d(r) is the largest, in the unit of r."""
    midpoint: Any
    """Where the curve bends, as a share of the width."""
    power: Any
    """Of the curve: 1 is a straight line."""
    stiffness: Any
    """k [1/s^2]."""
    damping: Any
    """b [1/s]."""

    @classmethod
    def of(cls, model: Any, solref: Any, solimp: Any) -> Impedance:
        """As MuJoCo C reads the rows' solref [n, 2] and solimp [n, 5] of a ``mujoco.MjModel``."""
        low, high, width, midpoint, power = np.array(solimp, dtype=np.float64).reshape(-1, 5).T
        low, high, midpoint = (np.clip(x, LEAST_IMPEDANCE, LARGEST_IMPEDANCE) for x in (low, high, midpoint))
        stiffness, damping = spring(model, solref, high, STANDARD_SOLREF)
        return cls(low, high, np.maximum(width, 0.0), midpoint, np.maximum(power, 1.0), stiffness, damping)

    def single(self) -> Impedance:
        """The numbers of the only row."""
        return Impedance(*(getattr(self, field.name).item() for field in dataclasses.fields(self)))


def friction_damping(model: Any, solreffriction: Any, normal: Impedance) -> np.ndarray:
    """Damping b [n] of the friction rows of elliptic contacts: of their solreffriction [n, 2] where that is given."""
    solref = np.array(solreffriction, dtype=np.float64).reshape(-1, 2)
    given = ((solref[:, 0] > 0.0) == (solref[:, 1] > 0.0)) & solref.any(1)
    return np.where(given, spring(model, solref, normal.largest, (0.0, 0.0))[1], normal.damping)


def spring(model: Any, solref: Any, largest: np.ndarray, default: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Stiffness k and damping b [n] of solref [n, 2].

    A solref of one positive number and one that is not is replaced by the default. Unless the model's flag ``refsafe``
    is disabled, a time constant below two timesteps is raised to that.

    Args:
        model: ``mujoco.MjModel``.
        solref: (time constant [s], damping ratio), or (-k, -b) at d = 1.
        largest: the impedance's, [n].
        default: what takes the place of a solref that is neither.
    """
    solref = np.array(solref, dtype=np.float64).reshape(-1, 2)
    solref[(solref[:, 0] > 0.0) != (solref[:, 1] > 0.0)] = default
    first, second = solref.T
    if not model.opt.disableflags & load_mujoco().mjtDisableBit.mjDSBL_REFSAFE:
        first = np.where(first > 0.0, np.maximum(first, 2.0 * model.opt.timestep), first)
    standard = (
        1.0 / np.maximum(SMALLEST, largest**2 * first**2 * second**2),
        2.0 / np.maximum(SMALLEST, largest * first),
    )
    direct = -first / largest**2, -second / largest
    return np.where(first > 0.0, standard[0], direct[0]), np.where(second > 0.0, standard[1], direct[1])
