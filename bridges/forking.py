"""Refuses JAX in a forked process: the child inherits JAX's state without its threads and would wait for ever."""

from __future__ import annotations

import os
import sys

from mage_diffsim.errors import InputError

_running = False
_inherited = False


class ForkedJax(InputError):
    """JAX was asked for in a process that was forked from one in which it was running."""


def check_not_forked() -> None:
    """Raise where JAX would hang.

    Raises:
        ForkedJax: this process was forked from one in which JAX was running.
    """
    if _inherited:
        raise ForkedJax(
            "this process was forked from one in which JAX was running, and JAX would hang in it: start processes with "
            "the method spawn or forkserver, in gymnasium.make_vec with vector_kwargs={'context': 'spawn'}"
        )


def _before_fork() -> None:
    global _running
    bridge = sys.modules.get("jax._src.xla_bridge")
    _running = bridge is not None and bool(getattr(bridge, "backends_are_initialized", lambda: True)())


def _in_child() -> None:
    global _inherited
    _inherited = _inherited or _running


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)
