"""Stage 6, the solver's code for scalar rows: what they add to gradient and Hessian at a, and along a step x.

Variables of row n: ``pull{n}`` is J a - aref, ``active{n}`` what of D the Hessian has; ``high{n}`` and ``low{n}`` say
whether a force with two ends is at one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.emit import Writer, literal, reference, total, vector
from mage_diffsim.envs.warp.compiler.graph import add, is_constant, mul, neg
from mage_diffsim.envs.warp.compiler.rows import Row


def product(*factors: Any) -> str:
    """Code of a product of expressions and pieces of code; the number 1 is left out."""
    texts = [x if isinstance(x, str) else reference(x) for x in factors if not (is_constant(x) and x == 1.0)]
    return " * ".join(texts) if texts else literal(1.0)


def along(row: Row, x: str) -> str:
    """Code of J x for the vector of variables ``{x}{i}``."""
    terms = [product(share, f"{x}{d}") for d, share in row.direction.items()]
    return product(row.sign, terms[0] if len(terms) == 1 else f"({total(terms)})")


def with_unbounded(mass: Sequence[Sequence[Any]], rows: Sequence[Row]) -> list[list[Any]]:
    """The mass matrix with D J' J of the rows that have one zone: the Hessian where no other row is active."""
    matrix = [list(row) for row in mass]
    for row in rows:
        if not row.bounded:
            for i, share in row.direction.items():
                for j, other in row.direction.items():
                    matrix[i][j] = add(matrix[i][j], mul(mul(row.weight, share), other))
    return matrix


def at(w: Writer, n: int, row: Row, hessian: Any) -> None:
    """Add row n to the Hessian, and to ``x``, which is minus the gradient."""
    w(f"const vec pull{n} = {along(row, 'a')} + {reference(row.offset)};")
    push = f"active{n} * pull{n}"
    if not row.bounded:
        push = product(row.weight, f"pull{n}")
    elif row.one_sided:
        w(f"const vec active{n} = select(pull{n} < real(0), {vector(row.weight)}, splat(0));")
    else:
        push = _between(w, row, f"pull{n}", str(n))
    dofs = list(row.direction)
    if row.bounded:
        for place, i in enumerate(dofs):
            for j in dofs[: place + 1]:
                w(f"{hessian[i, j]} += {product(f'active{n}', row.direction[i], row.direction[j])};")
    for d in dofs:
        w(f"x{d} -= {product(row.direction[d], row.sign, push)};")


def _between(w: Writer, row: Row, pull: str, suffix: str) -> str:
    """Emit active, high and low of a row with two ends; returns code of minus its force."""
    w(f"const vec linear{suffix} = {product(row.weight, pull)};")
    w(f"const mask high{suffix} = linear{suffix} <= {reference(neg(row.high))};")
    w(f"const mask low{suffix} = linear{suffix} >= {reference(neg(row.low))};")
    w(f"const vec active{suffix} = select(high{suffix} | low{suffix}, splat(0), {vector(row.weight)});")
    at_low = f"select(low{suffix}, {vector(neg(row.low))}, linear{suffix})"
    return f"select(high{suffix}, {vector(neg(row.high))}, {at_low})"


def along_unbounded(w: Writer, rows: Sequence[Row]) -> tuple[str, str]:
    """Code of the derivatives along the step at its start, of the rows that have one zone: first and second."""
    first, second = [], []
    for n, row in enumerate(rows):
        if not row.bounded:
            w(f"const vec along{n} = {along(row, 'x')};")
            first.append(f" + {product(row.weight, f'pull{n}', f'along{n}')}")
            second.append(f" + {product(row.weight, f'along{n}', f'along{n}')}")
    return "".join(first), "".join(second)


def search(w: Writer, n: int, row: Row) -> None:
    """Add row n to the derivatives along the step, and to ``flips`` whether its zone changes."""
    with w.block(""):
        w(f"const vec along = {along(row, 'x')};")
        w(f"const vec value = pull{n} + size * along;")
        if row.one_sided:
            w(f"const vec active = select(value < real(0), {vector(row.weight)}, splat(0));")
            push, changed = "active * value", f"(active != active{n})"
        else:
            push = _between(w, row, "value", "")
            changed = f"(high != high{n}) | (low != low{n})"
        w(f"first_order += {push} * along; second_order += active * along * along;")
        w(f"flips = flips | {changed};")
