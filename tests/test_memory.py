"""Freed memory is kept by the process that asks for it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from mage_diffsim.memory import keep_freed_memory

FAULTS = """
import resource, sys, torch
from mage_diffsim.memory import keep_freed_memory

def update():
    return [torch.ones(8, 1024, width) for width in (100, 200, 384, 512, 384, 200, 700)]

kept = keep_freed_memory()
for _ in range(10):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    update()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")


def faults(**environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and page faults of ten updates of 78 MiB each, in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
    found = subprocess.run(
        [sys.executable, "-c", FAULTS], env=clean | environment, check=True, capture_output=True, text=True
    )
    kept, count = found.stdout.split()
    return kept == "1", int(count)


@glibc
def test_the_memory_of_an_update_serves_the_next_one():
    kept, count = faults()
    assert kept and count < 10_000  # by glibc's defaults up to 200,000, each of the ten updates' 78 MiB


@glibc
def test_the_users_own_setting_wins():
    kept, count = faults(MALLOC_TRIM_THRESHOLD_="0", MALLOC_MMAP_THRESHOLD_="65536")
    assert not kept and count > 100


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
