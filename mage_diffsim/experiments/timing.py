"""Measures wall times of functions in turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import ctypes
import gc
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from mage_diffsim.devices import wait_for


class Times(NamedTuple):
    """Wall times of one function."""

    median_s: float
    p95_s: float
    """95th percentile; the slowest of fewer than 20 repeats."""
    first_s: float
    """What the first call took beyond a warm one: compilation, loading, allocation."""
    rounds: tuple[float, ...]
    """Every repeat's time; entry i of two functions was taken in the same round."""
    faults: float
    """Page faults of the process per repeat, their mean: above all memory that was given back and is fetched again."""
    peak_mib: float
    """CUDA: largest memory allocated by torch during a call. CPU: largest resident size of the process so far."""

    def speed_against(self, other: Times) -> float:
        """How many times faster this one is: the median over rounds of the other's time by this one's."""
        return percentile([b / a for a, b in zip(self.rounds, other.rounds, strict=True)], 0.5)


def interleaved(
    functions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, *, until: float = math.inf
) -> dict[str, Times]:
    """Call every function twice to warm up, then all of them in turn, ``repeats`` times.

    Args:
        functions: name to function; each is one measurement, whatever it does inside.
        repeats: number of rounds.
        device: whose queue is waited for before a clock is read.
        until: reading of ``time.monotonic`` after which no further round begins, if there were three.
    """
    first: dict[str, float] = {}
    peaks: dict[str, float] = {}
    faults: dict[str, int] = dict.fromkeys(functions, 0)
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    for name, function in functions.items():
        first[name] = _seconds(function, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        first[name] -= _seconds(function, device)
        peaks[name] = _peak_mib(device)
    for done in range(repeats):
        if done >= 3 and time.monotonic() > until:
            break
        for name, function in functions.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            rounds[name].append(_seconds(function, device))
            faults[name] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {
        name: Times(
            percentile(r, 0.5),
            percentile(r, 0.95),
            max(first[name], 0.0),
            tuple(r),
            faults[name] / max(len(r), 1),
            peaks[name],
        )
        for name, r in rounds.items()
    }


def memory_growth(function: Callable[[], object], calls: int) -> int:
    """Bytes by which the process's memory grew over ``calls`` calls, after a tenth as many that fill its pools.

    Counts what malloc has given out and not got back. Where glibc does not tell (mallinfo2, 2.33), counts the resident
    set instead, which freed memory can hide a leak in. Needs Linux.
    """
    for _ in range(calls // 10):
        function()
    gc.collect()
    before = _held_bytes()
    for _ in range(calls):
        function()
    gc.collect()
    return _held_bytes() - before


class _MallocState(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = [
        ("before", 4 * ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),
        ("between", 2 * ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),
        ("after", 2 * ctypes.c_size_t),
    ]


def _held_bytes() -> int:
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    mallinfo2.restype = _MallocState
    state = mallinfo2()
    return state.uordblks + state.hblkhd


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; of an even number, the median's mean.

    NaN if there are none.
    """
    ordered = sorted(values)
    if not ordered:
        return math.nan
    if share == 0.5 and len(ordered) % 2 == 0:
        return 0.5 * (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2])
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    began = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - began


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    kilo = 1 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes on macOS, else KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 2**20
