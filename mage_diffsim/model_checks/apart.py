"""Runs functions in a process of its own, which may crash, take too long or need too much memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

POLL_S = 0.1
"""Seconds between two looks at the memory of the process."""


class Ended(Exception):
    """A call did not end well; the message says how, in a few words."""


class Worker:
    """A process that makes one call after the other. It starts with the first one, and anew after one that killed it.

    A context manager: leaving it ends the process.

    Args:
        seconds: time that one call may take.
        mebibytes: memory that the process may hold [MiB]; where the system does not tell, it is not limited.
    """

    def __init__(self, seconds: float, mebibytes: float) -> None:
        self.seconds = seconds
        self.mebibytes = mebibytes
        self._process: Any = None
        self._connection: Any = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns.

        Raises:
            Ended: it raised an error, or killed the process, or was late or too large.
        """
        (found,) = self.each(_returned, function, *arguments)
        return found

    def each(self, function: Callable[..., Iterable[Any]], *arguments: Any) -> Iterator[Any]:
        """Yields what the function's iterator gives, as it comes.

        Args:
            function: a function of a module, which the process imports.
            arguments: they are pickled, as is what is yielded.

        Raises:
            Ended: see :meth:`call`; what came before has been yielded.
        """
        if self._process is None or not self._process.is_alive():  # it may have been killed since the last call
            self.close()
            self._start()
        self._connection.send((function, arguments))
        deadline, done = time.monotonic() + self.seconds, False
        try:
            while True:
                kind, content = self._receive(deadline)
                if kind == "item":
                    yield content
                    continue
                done = True
                if kind == "error":
                    raise Ended(content)
                return
        finally:
            if not done:
                self.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def _receive(self, deadline: float) -> tuple[str, Any]:
        while not self._connection.poll(POLL_S):
            if time.monotonic() > deadline:
                raise Ended(f"not done after {self.seconds:g} s")
            if _resident(self._process.pid) > self.mebibytes:
                raise Ended(f"needed more than {self.mebibytes:g} MiB of memory")
        try:
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            code = self._process.exitcode or 0
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise Ended(f"the process ended {how}") from error

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _returned(function: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    yield function(*arguments)


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            for item in function(*arguments):
                connection.send(("item", item))
            connection.send(("done", None))
        except Exception as error:
            connection.send(("error", f"{type(error).__name__}: {' '.join(str(error).split())}"))


def _end_with_parent() -> None:
    """End this process where its parent was killed and could not do so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _resident(pid: int) -> float:
    """Memory that a process holds [MiB]; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    """Largest memory that this process has held so far [MiB]; NaN where the system does not tell.

    ``resource.getrusage`` counts what the process that started this one held, too.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), float("nan"))
