"""Locks that hold a file or folder against other processes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: two trainings in one folder are then the user's own business
    fcntl = None

from mage_diffsim.errors import InputError


@contextlib.contextmanager
def locked(path: Path, busy: str, flags: int = os.O_RDONLY) -> Iterator[None]:
    """Hold a file or folder, opened with ``flags``, against other processes; the lock dies with this process. Where
    the file system has no such locks (some network ones), and off POSIX, nothing is held.

    Raises:
        InputError: another process holds it; its text is ``busy``.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(busy) from error
        except OSError as error:  # NFS locks nothing that is opened to read, and some file systems nothing at all
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):
                raise
        yield
    finally:
        os.close(descriptor)
