"""Runs native code that needs much stack on a thread whose stack is large enough.

A frame that does not fit ends the process with a signal. What is left of a stack cannot be found out, so a function
runs on its caller's thread if it needs at most half of that thread's stack, and otherwise on a thread made for it. A
stack takes memory only where it is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mage_diffsim.errors import InputError

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

T = TypeVar("T")

UNKNOWN = 512 << 10
"""Bytes of stack assumed where the system does not tell: the least that a common system gives."""
LARGEST = 1 << 40
"""Bytes that an unlimited stack counts as."""


class _Known(threading.local):
    """The stack of a thread, and the limit in force when it was measured, which moves the main thread's."""

    limit: int | None = None
    size = 0


_known = _Known()
_making = threading.Lock()
"""Held while ``threading.stack_size`` differs from the process's."""
_pools = threading.Lock()


def stack_of_thread() -> int:
    """Bytes of stack that the calling thread may come to use in all."""
    limit = resource.getrlimit(resource.RLIMIT_STACK)[0] if resource else 0
    if _known.limit != limit:
        _known.limit, _known.size = limit, _measured()
    return _known.size


def _measured() -> int:
    attributes, size = ctypes.create_string_buffer(512), ctypes.c_size_t()
    try:
        libc = ctypes.CDLL(None)
        if libc.pthread_getattr_np(ctypes.c_void_p(threading.get_ident()), attributes):
            return UNKNOWN
    except (TypeError, OSError, AttributeError):  # Windows; a C library without it
        return UNKNOWN
    libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))
    libc.pthread_attr_destroy(attributes)
    return min(size.value, LARGEST)


def fits(needed: int) -> bool:
    """Whether a function may use this many bytes of the calling thread's stack."""
    return 2 * needed <= stack_of_thread()


def on_stack(needed: int, function: Callable[[], T]) -> T:
    """Run the function with at least this many bytes of stack; returns or raises what it does.

    Raises:
        InputError: the system refuses a thread with such a stack.
    """
    return function() if fits(needed) else workers(1, needed).submit(function).result()


def workers(threads: int, needed: int) -> ThreadPoolExecutor:
    """A pool of threads on which this many bytes of stack may be used; it is kept for the next call.

    Raises:
        InputError: the system refuses a thread with such a stack.
    """
    with _pools:  # two first callers at once would make two pools
        return _workers(threads, max(1 << 20, 1 << (2 * needed - 1).bit_length()))


@functools.cache
def _workers(threads: int, size: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="mage_diffsim_stack")
    started = threading.Barrier(threads + 1)  # the pool would reuse a thread that ends its task before all have started
    with _making:
        before = threading.stack_size(size)
        try:
            for _ in range(threads):
                pool.submit(_wait, started)
            started.wait()
        except (RuntimeError, MemoryError) as error:
            started.abort()
            pool.shutdown(wait=False)
            raise InputError(
                f"a thread with {size >> 20} MiB of stack was needed, and the system refuses it ({error}): allow the "
                "process more threads and address space (ulimit -u, ulimit -v) or more stack (ulimit -s)"
            ) from error
        finally:
            threading.stack_size(before)
    return pool


def _wait(started: threading.Barrier) -> None:
    with contextlib.suppress(threading.BrokenBarrierError):
        started.wait()


def _in_child() -> None:
    """Forget the parent's threads, which a forked child does not have, and locks that they may hold."""
    global _making, _pools
    _making, _pools = threading.Lock(), threading.Lock()
    _workers.cache_clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)
