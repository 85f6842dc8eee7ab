"""Freed memory stays with the process: no page of an update's tensors is faulted in anew at the next update."""

from __future__ import annotations

import ctypes
import os
import sys

_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which a user tells glibc the same; whoever sets one, even to nothing, decides alone."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_THRESHOLDS = (2**30, 2**25)
"""Bytes from which an allocation still gets a mapping of its own; 32 MiB is the most that older versions accept."""


def keep_freed_memory() -> bool:
    """Tell the C library to keep what tensors on the CPU free for the next ones, instead of giving it to the system.

    An update allocates tens of tensors and frees them again. By glibc's defaults it depends on what the process did
    before how much of that is returned to the system; where it is, the next update pays a page fault for every 4 KiB it
    touches, which can be a third of its time. Told otherwise, the process stays about as large as it once was: a choice
    for programs, not for a library. The ``mage-diffsim`` command and the sweeps make it. It serves allocations up to
    32 MiB in any case, larger ones on newer versions, and in threads other than the main one only those well below
    64 MiB. CUDA memory has torch's own cache.

    Returns:
        whether glibc was told: not where the C library is another one, nor where the user has set one of the
        environment variables ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_`` and ``GLIBC_TUNABLES``.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _USERS_OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return any(mallopt(_M_MMAP_THRESHOLD, size) for size in _THRESHOLDS) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
