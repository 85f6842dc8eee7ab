"""The flat optimiser against torch's own."""

from __future__ import annotations

import pytest
import torch

from mage_diffsim.cuda_graphs import NothingForTheHost
from mage_diffsim.optim import RAdam, polyak_average


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_equals_torch_radam_with_clipping_and_decoupled_decay(weight_decay):
    start = torch.randn(1, 2, 30, dtype=torch.float64)
    ours, theirs = start.clone(), start.clone().requires_grad_()
    optimizer = RAdam(ours, 1e-2, 0.5, weight_decay)
    reference = torch.optim.RAdam([theirs], lr=1e-2, weight_decay=weight_decay, decoupled_weight_decay=True)
    for _ in range(60):  # rectification begins at the sixth step
        gradient = torch.randn_like(start) * 2.0
        optimizer.step(ours, gradient)
        theirs.grad = gradient.clone()
        torch.nn.utils.clip_grad_value_([theirs], 0.5)
        reference.step()
    assert (ours - start).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("steps_before", [49_990, 3_000_000])
def test_late_steps_equal_those_of_torch(steps_before):
    """Beyond the last entry of the table, too: the bias corrections no longer change."""
    start, first, second = (torch.randn(1, 2, 30, dtype=torch.float64) for _ in range(3))
    ours, theirs = start.clone(), start.clone().requires_grad_()
    optimizer = RAdam(ours, 1e-2, 5.0)
    state = {"first": first, "second": second.square(), "count": torch.tensor([steps_before])}
    optimizer.load_state_dict(state)
    reference = torch.optim.RAdam([theirs], lr=1e-2)
    reference.state[theirs] = {
        "step": torch.tensor(float(steps_before)),
        "exp_avg": first.clone(),
        "exp_avg_sq": second.square(),
    }
    for _ in range(20):
        gradient = torch.randn_like(start)
        optimizer.step(ours, gradient)
        theirs.grad = gradient.clone()
        reference.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-13)


def test_neither_a_step_nor_a_restart_waits_for_the_host():
    parameters = torch.ones(3, 1, 4)
    optimizer = RAdam(parameters, 1e-2, 5.0, 1e-4)
    with NothingForTheHost():
        optimizer.step(parameters, torch.ones_like(parameters))
        optimizer.restart(torch.tensor([True, False, True]))
    assert optimizer.count.tolist() == [0, 1, 0]
    assert optimizer.first[:, 0, 0].bool().tolist() == [False, True, False]


def test_a_restarted_run_goes_on_like_a_fresh_optimiser_and_leaves_the_other_alone():
    parameters = torch.zeros(2, 1, 4, dtype=torch.float64)
    optimizer = RAdam(parameters, 1e-2, 5.0)
    alone = torch.zeros(1, 1, 4, dtype=torch.float64)
    undisturbed = RAdam(alone, 1e-2, 5.0)
    for _ in range(10):
        gradient = torch.randn(2, 1, 4, dtype=torch.float64)
        optimizer.step(parameters, gradient)
        undisturbed.step(alone, gradient[1:])
    optimizer.restart(torch.tensor([True, False]))
    parameters[0] = 0.0
    fresh = torch.zeros(1, 1, 4, dtype=torch.float64)
    fresh_optimizer = RAdam(fresh, 1e-2, 5.0)
    for _ in range(10):
        gradient = torch.randn(2, 1, 4, dtype=torch.float64)
        optimizer.step(parameters, gradient)
        fresh_optimizer.step(fresh, gradient[:1])
        undisturbed.step(alone, gradient[1:])
    torch.testing.assert_close(parameters[:1], fresh)
    torch.testing.assert_close(parameters[1:], alone)


def test_does_not_change_the_gradient_it_is_given():
    parameters = torch.zeros(1, 1, 3)
    gradient = torch.tensor([[[9.0, -9.0, 1.0]]])
    RAdam(parameters, 1e-2, 5.0).step(parameters, gradient)
    assert gradient.tolist() == [[[9.0, -9.0, 1.0]]]


def test_polyak_average_moves_by_the_given_share():
    target, online = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    polyak_average(target, online, 0.25)
    assert target.tolist() == [1.5, 1.0]
