"""Shapes, named once.

Annotations read ``Float[Tensor, "R B O"]``. They are documentation at run time; the test suite's import hook
(jaxtyping with beartype, see ``tests/conftest.py``) enforces them. jaxtyping itself is optional.

Axis letters: ``R`` runs, ``B`` rows of a batch, ``N`` environments, ``S`` simulator state, ``O`` observation,
``A`` action, ``C`` critics, ``M`` ensemble members, ``P`` parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:  # what jaxtyping shows to type checkers, whether or not it is installed
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Unchecked:
            """Stands in for a jaxtyping dtype: ``Float[Tensor, "..."]`` is then just ``Tensor``."""

            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = _Unchecked

__all__ = ["Bool", "Float", "Int", "Tensor"]
