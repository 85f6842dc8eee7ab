"""Appendix B.1: the cell and the words."""

from __future__ import annotations

import pytest


def last(q0, q2, reward=0.005):
    """Last rows of two seeds per lambda, with |grad_a Q| of lambda = 0 and of 0.2."""
    return {
        lam: [{"grad_q": q * f, "grad_reward": reward, "grad_q_next": q} for f in (0.9, 1.1)]
        for lam, q in ((0.0, q0), (0.2, q2))
    }


def test_unconstrained_trains_every_lambda_and_seed_in_one_cell(paper):
    (cell,) = paper.Unconstrained(seeds=(3, 4), steps=600).cells()
    config = cell.config
    assert (config.method, config.dynamics, config.backend) == ("mage-ddpg", "oracle", "torch")
    assert config.runs == ((3, 0.0), (4, 0.0), (3, 0.2), (4, 0.2)) and (config.steps, config.eval_every) == (600, 20)


def test_a_gradient_below_a_hundredth_of_the_rewards_has_collapsed(paper):
    found = paper.unconstrained_findings(last(1e-5, 1.0))
    assert found[0].startswith("λ = 0:") and "it fell below 1% of |∇ₐ r| in every seed" in found[0]
    assert "it did not fall below 1% of |∇ₐ r| (0 of 2 seeds did)" in found[1]
    assert "collapse, as in the paper" in found[2]


def test_a_gradient_of_the_rewards_size_has_collapsed_only_beside_the_contrast(paper):
    found = paper.unconstrained_findings(last(0.005, 1.0))
    assert "it did not fall below 1%" in found[0] and "collapse, as in the paper" in found[2]


def test_a_large_gradient_has_not_collapsed(paper):
    found = paper.unconstrained_findings(last(0.5, 1.0))
    assert "it did not fall below 1%" in found[0] and "no collapse like the paper's" in found[2]


def test_a_run_that_ended_in_its_warm_up_has_nothing_to_say(paper):
    rows = [{"grad_q": None, "grad_reward": None}]
    assert "ended before its first critic update" in paper.unconstrained_findings({0.0: rows})[0]


@pytest.mark.parametrize("steps", [0, -5])
def test_steps_are_not_silently_replaced(paper, steps):
    with pytest.raises(ValueError, match=f"steps is {steps}; accepted is 1 or more"):
        paper.Unconstrained(steps=steps).cells()
