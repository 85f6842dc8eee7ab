"""Random numbers by counting: Philox's published answers, distributions, and what they depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mage_diffsim.randomness import Philox, Streams, integers, normal, normal_words, permutations, uniform

CPU = torch.device("cpu")
COUNTS = {"batch": 4000, "target": 6001, "imagine": 2}
PI = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # kat_vectors of Random123: philox4x32 10
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (PI[:4], PI[4:], [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ],
)
def test_philox_gives_the_published_answers(counter, key, answer):
    found = Philox(torch.tensor(key).view(2, 1))(torch.tensor(counter).view(4, 1))
    assert found.flatten().tolist() == answer


def words(seeds=(0, 1), step=7, counts=COUNTS):
    return Streams(seeds, CPU, torch.float32).words(torch.tensor(step), counts)


def test_a_run_sees_the_same_numbers_whatever_runs_share_the_process():
    together, alone = words((5, 3, 5)), words((3,))
    for purpose, count in COUNTS.items():
        assert together[purpose].shape == (3, count)
        assert torch.equal(together[purpose][1], alone[purpose][0])
        assert torch.equal(together[purpose][0], together[purpose][2])


def test_a_purpose_is_not_shifted_by_others_nor_by_how_much_is_drawn():
    whole, part = words(), words(counts={"target": 10})
    assert torch.equal(whole["target"][:, :10], part["target"])


def test_seeds_steps_purposes_and_places_have_numbers_of_their_own():
    one = words((0, 1), 1, {"batch": 8192, "target": 8192})
    two = words((0, 1), 1 + 2**32, {"batch": 8192, "target": 8192})  # steps count in 64 bits
    drawn = torch.cat([x for found in (one, two) for x in found.values()], dim=-1).flatten()
    # of 65536 words of 32 bits half a pair is equal by chance
    assert len(drawn.unique()) >= len(drawn) - 5
    assert drawn.min() >= 0 and 2**31 < drawn.max() < 2**32


def test_numbers_have_their_distributions():
    drawn = words(counts={"batch": 200_000})["batch"]
    u = uniform(drawn, torch.float64, 200_000)
    assert u.min() >= 0.0 and u.max() < 1.0
    for run in u:  # Kolmogorov and Smirnov's distance; 1.95 / sqrt(n) is passed once in a thousand
        ordered = run.sort().values
        assert (ordered - torch.arange(1, 200_001) / 200_000).abs().max() < 1.95 / math.sqrt(200_000)
    z = normal(drawn, torch.float64, 200_000)
    for run in z:
        ordered = torch.special.ndtr(run.sort().values)
        assert (ordered - torch.arange(1, 200_001) / 200_000).abs().max() < 1.95 / math.sqrt(200_000)
        assert abs(np.corrcoef(run[:-1].numpy(), run[1:].numpy())[0, 1]) < 0.01
        half = len(run) // 2  # the two numbers of a pair
        assert abs(np.corrcoef(run[:half].numpy(), run[half:].numpy())[0, 1]) < 0.01
    i = integers(drawn, 7, 200_000)
    shares = torch.stack([(i == k).double().mean(dim=1) for k in range(7)])
    assert i.min() == 0 and i.max() == 6 and (shares - 1 / 7).abs().max() < 0.004
    assert torch.equal(i, integers(drawn, torch.tensor(7), 200_000))


def test_extreme_words_give_finite_numbers_inside_their_ranges():
    ends = torch.tensor([[0, 2**32 - 1, 0, 2**32 - 1]])
    for dtype in (torch.float32, torch.float64):
        assert normal(ends, dtype, 4).isfinite().all()
        assert uniform(ends, dtype, 4).max() < 1.0
    assert integers(ends, 2**31 - 1, 4).max() == 2**31 - 2


def test_float32_and_float64_see_the_same_numbers():
    drawn = words()["target"][:, :6000]
    assert torch.equal(uniform(drawn, torch.float32, 6000).double(), uniform(drawn, torch.float64, 6000))
    single, double = (normal(drawn, dtype, 6000).double() for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single, double, rtol=1e-3, atol=1e-5)


def test_permutations_are_permutations_and_odd_numbers_are_served():
    drawn = words(counts={"control": 300, "explore": normal_words(3)})
    order = permutations(drawn["control"], 3, 100)
    assert order.shape == (2, 3, 100) and (order.sort().values == torch.arange(100)).all()
    assert not torch.equal(order[0, 0], order[0, 1])
    assert normal(drawn["explore"], torch.float64, 3).shape == (2, 3)


def test_generators_of_networks_and_initial_states_are_of_run_purpose_and_number():
    streams = Streams((4, 9), CPU, torch.float32)
    numbers = [
        torch.rand(1, generator=streams.generator(run, purpose, n)).item()
        for run in (0, 1)
        for purpose in ("initialise", "environment")
        for n in (0, 1)
    ]
    assert len(set(numbers)) == 8
    assert torch.rand(1, generator=Streams((9,), CPU, torch.float32).generator(0, "environment", 1)) == numbers[7]


@pytest.mark.parametrize("counts", [{"explore": 6}, {"batch": 3000, "target": 5}, {"batch": 20_000}], ids=str)
def test_words_of_a_step_are_the_same_whether_the_host_or_the_device_knows_the_step(counts):
    streams = Streams((0, 4), CPU, torch.float32)
    for step in (0, 1, 2, 3, 17, 5, 40_000, 2**32 + 1):
        by_number, on_device = streams.words(step, counts), streams.words(torch.tensor(step), counts)
        for purpose, count in counts.items():
            assert by_number[purpose].shape == (2, count)
            assert torch.equal(by_number[purpose], on_device[purpose])
