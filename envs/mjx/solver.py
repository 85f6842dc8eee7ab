"""The constraint solver: Newton's method on MuJoCo's convex problem, differentiated at its solution, without LAPACK.

The acceleration q minimises ``1/2 (q - M^-1 b)^T M (q - M^-1 b) + s(J q - aref)``, where b are the smooth forces and s
is the constraints' potential, so that at the solution ``M q = b + J^T f(J q - aref)`` with the constraint forces
f = -ds/dx (MuJoCo documentation, "Computation", "Constraint model"). All arrays are those of one environment.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ITERATIONS = 50
"""Largest number of Newton steps; one to three are common, and a batch takes as many as its slowest row."""
LINE_SEARCH_ITERATIONS = 30
"""Largest number of points that a line search evaluates; one or two are common."""
TOLERANCE = {"float64": 1e-12, "float32": 3e-6}
"""Residual force at which the solver stops, relative to the sum of the forces, in the norm of M^-1. The cost is
strongly convex with M, so the acceleration's error in the norm of M is at most the residual in the norm of M^-1."""
SLOPE = 0.01
"""Slope at which a line search stops, relative to the one it started with."""


@dataclasses.dataclass(frozen=True)
class Cones:
    """The rows of elliptic contacts, known when the step is compiled."""

    rows: np.ndarray
    """Rows of each contact, the normal first; a contact of fewer dimensions repeats its first row, [k, 6]."""
    used: np.ndarray
    """Which of those entries are rows of the contact, [k, 6]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem for the constrained acceleration; every array may carry a derivative."""

    inertia: Any
    """M, [nv, nv]."""
    smooth: Any
    """All forces but those of the constraints, b, [nv]."""
    jacobian: Any
    """J, [nefc, nv]."""
    reference: Any
    """aref, [nefc]."""
    stiffness: Any
    """D, [nefc]."""
    friction: Any
    """Largest force of a friction-loss row, 0 in the others, [nefc]."""
    cone: Any
    """Regularised friction mu, then the friction coefficients, of each elliptic contact, [k, 6]; else None."""
    quadratic: int = dataclasses.field(metadata=dict(static=True))
    """Number of rows at the front that push and pull (equalities, friction loss); the others only push."""
    cones: Cones | None = dataclasses.field(metadata=dict(static=True))
    """Elliptic contacts, if there are any."""


def inverse_factor(a: jax.Array) -> jax.Array:
    """X, lower triangular, with ``X^T X = A^-1`` for a symmetric positive definite A [n, n].

    Row i of the Cholesky factor L = X^-1 follows from the rows above it: ``l = X A[:, i]`` (rows not yet found are 0),
    ``X[i] = (e_i - l X) / sqrt(A[i, i] - l l)``. A pivot that rounding made negative counts as one of rounding's size.
    """
    n = a.shape[0]
    eye = jnp.eye(n, dtype=a.dtype)
    smallest = jnp.finfo(a.dtype).eps

    def add_row(i: jax.Array, x: jax.Array) -> jax.Array:
        known = x @ a[:, i]
        left = jnp.maximum(a[i, i] - known @ known, smallest * a[i, i])
        return x.at[i].set((eye[i] - known @ x) / jnp.sqrt(left))

    return lax.fori_loop(0, n, add_row, jnp.zeros_like(a))


def solve_with(factor: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """``x = A^-1 b`` for ``factor = inverse_factor(A)``, b [n], with the derivative ``dx = A^-1 (db - dA x)``."""
    factor, x = lax.stop_gradient((factor, factor.T @ (factor @ b)))
    return x + factor.T @ (factor @ (b - a @ x))


def constraint_force(problem: Problem, x: jax.Array) -> jax.Array:
    """The force f of every constraint at the violation ``x = J q - aref`` [nefc]."""
    pushed = -problem.stiffness * x
    force = jnp.where(x < 0.0, pushed, 0.0)
    if problem.quadratic:
        lossy = problem.friction > 0.0
        pulled = jnp.where(lossy & (pushed > problem.friction), problem.friction, pushed)
        pulled = jnp.where(lossy & (pushed < -problem.friction), -problem.friction, pulled)
        force = jnp.where(jnp.arange(x.shape[0]) < problem.quadratic, pulled, force)
    if problem.cones is not None:
        force = _with_cones(problem, problem.cones, x, force, pushed)
    return force


def _with_cones(problem: Problem, cones: Cones, x: jax.Array, force: jax.Array, pushed: jax.Array) -> jax.Array:
    """The forces, with those of elliptic contacts set: a contact is free, sticks (quadratic), or slides on the cone."""
    u = x[cones.rows] * problem.cone * cones.used
    mu, normal = problem.cone[:, 0], u[:, 0]
    squared = (u[:, 1:] ** 2).sum(-1)
    moving = squared > 0.0
    tangent = jnp.where(moving, jnp.sqrt(jnp.where(moving, squared, 1.0)), 0.0)
    sticks = jnp.where(moving, mu * normal + tangent <= 0.0, normal < 0.0)
    slides = moving & (normal < mu * tangent) & ~sticks
    weight = problem.stiffness[cones.rows[:, 0]] / (mu**2 * (1.0 + mu**2))
    along = -weight * (normal - mu * tangent) * mu
    across = -(along / jnp.where(moving, tangent, 1.0))[:, None] * u[:, 1:] * problem.cone[:, 1:]
    sliding = jnp.concatenate([along[:, None], across], axis=1)
    sticking = jnp.where(sticks[:, None], pushed[cones.rows], 0.0)
    of_contact = jnp.where(slides[:, None], sliding, sticking)
    return force.at[cones.rows[cones.used]].set(of_contact[cones.used])


def _hessian(problem: Problem, x: jax.Array) -> jax.Array:
    """M + J^T (-df/dx) J at the violation x."""

    def column(direction: jax.Array) -> jax.Array:
        return -jax.jvp(lambda y: constraint_force(problem, y), (x,), (direction,))[1]

    weighted = jax.vmap(column, in_axes=1, out_axes=1)(problem.jacobian)
    return problem.inertia + problem.jacobian.T @ weighted


def _residual(problem: Problem, q: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient of the cost ``M q - b - J^T f``, the violation, and the size of the gradient's terms, each [n]."""
    x = problem.jacobian @ q - problem.reference
    force = constraint_force(problem, x)
    inertial, constrained = problem.inertia @ q, problem.jacobian.T @ force
    terms = jnp.abs(inertial) + jnp.abs(problem.smooth) + jnp.abs(problem.jacobian).T @ jnp.abs(force)
    return inertial - problem.smooth - constrained, x, terms


def _line_search(problem: Problem, x: jax.Array, gradient: jax.Array, search: jax.Array, floor: jax.Array) -> jax.Array:
    """The step along ``search`` at which the cost's slope vanishes: Newton's method kept inside a bracket."""
    jv = problem.jacobian @ search
    curved = search @ (problem.inertia @ search)
    # The slope at 0 without the constraints' share, which is evaluated at every point.
    smooth = gradient @ search + jv @ constraint_force(problem, x)
    enough = SLOPE * jnp.abs(gradient @ search) + floor

    def slope(alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
        force, change = jax.jvp(lambda y: constraint_force(problem, y), (x + alpha * jv,), (jv,))
        return smooth + alpha * curved - jv @ force, curved - jv @ change

    def unfinished(carry: Any) -> jax.Array:
        i, _, _, _, first, _ = carry
        return (i < LINE_SEARCH_ITERATIONS) & (jnp.abs(first) > enough)

    def improve(carry: Any) -> Any:
        i, alpha, low, high, first, second = carry
        low, high = jnp.where(first < 0.0, alpha, low), jnp.where(first < 0.0, high, alpha)
        alpha = alpha - first / second
        alpha = jnp.where((alpha > low) & (alpha < high), alpha, 0.5 * (low + jnp.minimum(high, 1e6)))
        return (i + 1, alpha, low, high, *slope(alpha))

    one = jnp.ones((), x.dtype)
    start = (0, one, jnp.zeros_like(one), jnp.full_like(one, jnp.inf), *slope(one))
    return lax.while_loop(unfinished, improve, start)[1]


def newton(problem: Problem, factor: jax.Array, unconstrained: jax.Array, warm: jax.Array) -> jax.Array:
    """The constrained acceleration [nv].

    Every start takes at least one step, which near the solution is a full Newton step. The forward-mode derivative of
    the result is therefore the solution's, whatever the start's is.

    Args:
        problem: with at least one row.
        factor: ``inverse_factor(M)``.
        unconstrained: M^-1 b, one start.
        warm: another start; the one with the smaller residual is taken.
    """
    tolerance = TOLERANCE[problem.smooth.dtype.name]

    def energy(force: jax.Array) -> jax.Array:
        return jnp.sum((factor @ force) ** 2)

    def measured(q: jax.Array) -> tuple[Any, ...]:
        gradient, x, terms = _residual(problem, q)
        return q, gradient, x, energy(gradient), energy(terms)

    def improve(carry: Any) -> Any:
        i, (q, gradient, x, before, scale), _ = carry
        hessian = _hessian(problem, x)
        search = -solve_with(inverse_factor(hessian), hessian, gradient)
        alpha = _line_search(problem, x, gradient, search, tolerance**2 * scale)
        return i + 1, measured(q + alpha * search), before

    def unfinished(carry: Any) -> jax.Array:
        i, (_, _, _, now, scale), before = carry
        # A residual that is not finite compares false and ends the loop; so does one at the level of rounding.
        stuck = (now < tolerance * scale) & (now > 0.25 * before)
        return (i == 0) | ((i < ITERATIONS) & (now > tolerance**2 * scale) & ~stuck)

    cold, hot = measured(unconstrained), measured(warm)
    start = jax.tree.map(lambda a, b: jnp.where(hot[3] < cold[3], a, b), hot, cold)
    _, (q, *_), _ = lax.while_loop(unfinished, improve, (0, start, start[3]))
    return q


def solve(problem: Problem, warm: jax.Array, implicit: bool) -> jax.Array:
    """The constrained acceleration q [nv] with its derivative.

    Args:
        problem: inertia, forces and constraints.
        warm: where the solver may start.
        implicit: whether the derivative, in both modes, is that of the implicit function theorem at the solution:
            ``dq = -H^-1 dg`` with ``g = M q - b - J^T f`` and H = dg/dq. Otherwise the loop itself is differentiated,
            in forward mode only.
    """
    factor = inverse_factor(lax.stop_gradient(problem.inertia))
    unconstrained = solve_with(factor, problem.inertia, problem.smooth)
    if problem.jacobian.shape[0] == 0:
        return unconstrained
    if not implicit:
        return newton(problem, factor, unconstrained, warm)
    fixed = lax.stop_gradient(problem)
    q = newton(fixed, factor, lax.stop_gradient(unconstrained), lax.stop_gradient(warm))
    hessian = _hessian(fixed, fixed.jacobian @ q - fixed.reference)
    inverse = inverse_factor(hessian)
    step = inverse.T @ (inverse @ _residual(problem, q)[0])
    # The value stays the solver's; only the derivative of the step is added.
    return q - (step - lax.stop_gradient(step))
