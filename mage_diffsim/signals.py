"""Signals that end a training: the step under way is done and saved first."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SAME_SIGNAL_S = 1.0
"""Seconds within which a second signal is the first one again: schedulers send it to a process and to its group."""


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C (SIGINT) and SIGTERM wait until the step is done and saved; a second one acts as soon as Python sees
    it (signals within one native call, as compiling may be, count as one; SIGKILL always works).

    Yields whether one has come; on leaving, it has its ordinary effect. Handlers that somebody else has set stay, as
    does a signal that is ignored; outside the main thread Python allows none.
    """
    received: list[tuple[int, float]] = []

    def wait(signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not received:
            received.append((signum, now))
            logging.getLogger(__name__).warning("stopping: this step is done and saved first (again to stop at once)")
        elif now - received[0][1] > SAME_SIGNAL_S:
            restore()
            signal.raise_signal(signum)

    def restore() -> None:
        for signum, handler in ours.items():
            signal.signal(signum, handler)

    ours: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for signum, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(signum) is default:
                ours[signum] = signal.signal(signum, wait)
    try:
        yield lambda: bool(received)
    finally:
        restore()
    if received:
        signal.raise_signal(received[0][0])
