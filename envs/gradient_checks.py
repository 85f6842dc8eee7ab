"""Checks of gradients against central differences, and at degenerate points."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch

from mage_diffsim.envs.checks import Check, Outcome, Tolerances, all_finite, row_text, run_check
from mage_diffsim.envs.differences import jacobian_error, scale_of, true_jacobians
from mage_diffsim.envs.value_checks import Subject
from mage_diffsim.shapes import Tensor


def check_gradients(subject: Subject, tolerances: Tolerances) -> Iterator[Check]:
    """Checks the derivative by every input: against differences, and finite at degenerate points."""
    if subject.call64 is None:
        return
    # One backward pass serves all inputs: some backends compile for each choice of inputs.
    sampled = functools.cache(lambda: subject.jacobians(subject.inputs))
    degenerated = functools.cache(lambda: subject.jacobians(subject.degenerate))
    for k in subject.inputs:
        yield from _check_gradient(subject, k, lambda k=k: sampled()[k], tolerances)

        def degenerate(k: str = k) -> Outcome:
            return all_finite(degenerated()[k], subject.degenerate)

        yield run_check(subject.name, f"degenerate gradient {k}", None, degenerate)


def _check_gradient(
    subject: Subject, wrt: str, by_autograd: Callable[[], Tensor], tolerances: Tolerances
) -> list[Check]:
    """Checks the derivative by one input against central differences. Kinks are a line of their own."""
    kinks: list[Check] = []
    tolerance = max(tolerances.gradient, subject.accuracy)

    def gradient() -> Outcome:
        x = subject.inputs[wrt]
        jacobian = by_autograd().double()
        if wrt not in subject.differences:
            columns = {wrt: range(x.shape[1])}
            subject.differences.update(true_jacobians(subject.by(wrt, exact=True), x.double(), columns))
        truth, uncertain, clean = subject.differences[wrt]
        error = jacobian_error(jacobian, truth)
        # The error of the finite difference is not held against the gradient.
        excess = ((jacobian - truth).abs() - uncertain - subject.rounding.get(wrt, 0.0)).clamp(min=0.0)
        beyond = (excess.amax((1, 2)) / scale_of(truth)).nan_to_num(nan=math.inf)
        n, number = len(error), int((~clean).sum())
        if number:
            worst = float(error[~clean].max())
            detail = f"{number} of {n} states are kinks, left out of the gradient check above"
            kinks.append(Check(subject.name, f"kinks {wrt}", "passed", worst, None, detail))
        if number == n:
            return False, math.inf, f"no clean state among {n}: one-sided differences disagree everywhere"
        in_float32 = subject.dtype == torch.float32
        statistic, which = (torch.median, "median") if in_float32 else (torch.amax, "worst")
        whole, worst = float(statistic(error[clean])), float(statistic(beyond[clean]))
        shown = beyond if beyond[clean].any() else error
        where = row_text(subject.inputs, int(shown.masked_fill(~clean, -1.0).argmax()))
        detail = (
            f"{which} relative error of {n - number} clean states beyond the finite difference's own error "
            f"({whole:.2g} with it); the largest at {where}"
        )
        return worst <= tolerance, worst, detail

    return [run_check(subject.name, f"gradient {wrt}", tolerance, gradient), *kinks]
