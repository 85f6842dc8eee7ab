"""Calls in a process of their own: what they give, and how they may end."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time

import pytest

from mage_diffsim.model_checks.apart import Ended, Worker, peak_mib


@pytest.fixture(scope="module")
def worker():
    with Worker(60.0, math.inf) as made:
        yield made


def counted(n):
    yield from range(n)
    raise ValueError("no   more\nnumbers")


def killed():
    os.kill(os.getpid(), signal.SIGSEGV)


def filled(mebibytes):
    held = bytearray(mebibytes << 20)
    time.sleep(60.0)
    return len(held)


def test_values_come_back_and_an_error_is_one_line(worker):
    assert worker.call(math.hypot, 3.0, 4.0) == 5.0
    found = []
    with pytest.raises(Ended, match=r"^ValueError: no more numbers$"):
        for x in worker.each(counted, 3):
            found.append(x)
    assert found == [0, 1, 2]
    assert worker.call(os.getpid) == worker.call(os.getpid) != os.getpid()


def test_a_crash_ends_the_call_and_not_the_next_one(worker):
    with pytest.raises(Ended, match="the process ended by SIGSEGV"):
        worker.call(killed)
    with pytest.raises(Ended, match="the process ended with exit code 3"):
        worker.call(os._exit, 3)
    assert worker.call(math.sqrt, 4.0) == 2.0


def test_a_process_that_was_killed_between_two_calls_is_started_anew(worker):
    os.kill(worker.call(os.getpid), signal.SIGKILL)
    worker._process.join()
    assert worker.call(math.sqrt, 4.0) == 2.0


def slow():
    print("begun", flush=True)
    time.sleep(15.0)
    print("not ended", flush=True)


def test_a_process_ends_with_a_parent_that_is_killed():
    script = """if True:
        import math
        from mage_diffsim.model_checks.apart import Worker
        from tests.model_checks.test_apart import slow
        Worker(60.0, math.inf).call(slow)"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "begun\n"
        parent.kill()
        assert parent.stdout.read() == ""  # until nobody holds the other end


def test_what_is_late_is_ended():
    with Worker(0.3, math.inf) as worker, pytest.raises(Ended, match=r"not done after 0\.3 s"):
        worker.call(time.sleep, 60.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory of other processes is read on Linux")
def test_what_is_too_large_is_ended():
    with Worker(60.0, 600.0) as worker, pytest.raises(Ended, match="needed more than 600 MiB of memory"):
        worker.call(filled, 2000)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read on Linux")
def test_the_peak_of_a_process_is_its_own(worker):
    assert 5.0 < worker.call(peak_mib) < peak_mib()
