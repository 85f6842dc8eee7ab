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
    return [torch.ones(10, 2**20) for _ in range(2)]  # 40 MiB each, which glibc by default always gives back

kept = keep_freed_memory()
for _ in range(10):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    update()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

LIBRARY, VERSION = platform.libc_ver()
glibc = pytest.mark.skipif(
    LIBRARY != "glibc" or tuple(map(int, VERSION.split("."))) < (2, 36),
    reason="needs glibc 2.36 or newer: old ones accept thresholds up to 32 MiB only",
)


def faults(**environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and page faults of ten updates of 80 MiB each, in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
    found = subprocess.run(
        [sys.executable, "-c", FAULTS], env=clean | environment, check=True, capture_output=True, text=True
    )
    kept, count = found.stdout.split()
    return kept == "1", int(count)


@glibc
def test_the_memory_of_an_update_serves_the_next_one():
    kept, count = faults()
    assert kept and count < 100


@glibc
def test_the_users_own_setting_wins():
    kept, count = faults(GLIBC_TUNABLES="")
    assert not kept and count > 300  # 200,000 pages of 4 KiB, or 400 of 2 MiB


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
