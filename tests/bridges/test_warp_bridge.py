"""Pairs of Warp kernels in torch: torch's own buffers, no tape, nothing accumulated from call to call."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

wp = pytest.importorskip("warp")

from mage_diffsim.bridges.warp import load_warp  # noqa: E402
from mage_diffsim.errors import InputError, MissingExtra  # noqa: E402


@pytest.fixture
def warp_op(make_op):
    return make_op("warp")


def test_kernels_see_torch_memory(warp_op, inputs, monkeypatch):
    """Every array a kernel is launched with is a tensor's own memory: the inputs', the output's."""
    launched = []
    original = wp.launch

    def spy(kernel, **arguments):
        launched.append([a.data for a in arguments["inputs"] if hasattr(a, "data")])
        return original(kernel, **arguments)

    monkeypatch.setattr(wp, "launch", spy)
    x, u = inputs
    y = warp_op(x, u)
    assert launched[0] == [x.data_ptr(), u.data_ptr(), y.data_ptr()]


def test_gradients_are_not_stored_on_the_tensors(warp_op, inputs):
    warp_op(*inputs)
    assert all(x.grad is None for x in inputs)


def test_an_open_tape_records_nothing(warp_op, inputs):
    with wp.Tape() as tape:
        warp_op(*inputs).sum().backward()
    assert tape.launches == []


def test_gradients_do_not_accumulate_between_calls(warp_op, inputs):
    found = [torch.autograd.grad(warp_op(*inputs).sum(), inputs) for _ in range(3)]
    for later in found[1:]:
        for a, b in zip(found[0], later, strict=True):
            assert torch.equal(a, b)


def test_the_other_float_type_is_refused(warp_op, inputs):
    with pytest.raises(InputError, match=r"warp: inputs are torch.float32; accepted is torch.float64"):
        warp_op(*(x.detach().float() for x in inputs))


def test_start_up_prints_no_banner():
    code = "from mage_diffsim.bridges.warp import load_warp; load_warp()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "Kernel cache" not in done.stderr


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(
        MissingExtra, match=r"warp-lang is not installed: pip install -e '\.\[warp\]' in the project's folder"
    ):
        load_warp.__wrapped__()


@pytest.mark.gpu
class TestCuda:
    """What only a GPU can show."""

    def test_parity_with_torch(self, warp_op, truth, inputs):
        x, u = (t.detach().cuda().requires_grad_() for t in inputs)
        y, expected = warp_op(x, u), truth(x, u)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        for a, b in zip(torch.autograd.grad(y.sum(), (x, u)), torch.autograd.grad(expected.sum(), (x, u)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_side_stream_with_a_delay(self, warp_op, truth):
        warp_op.load("cuda")
        stream = torch.cuda.Stream()
        x, u = (torch.zeros(1024, k, dtype=torch.float64, device="cuda") for k in (3, 2))
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)
            x.fill_(0.5)
            y = warp_op(x, u)
            x.fill_(99.0)
        stream.synchronize()
        torch.testing.assert_close(y, truth(torch.full_like(x, 0.5), u))

    def test_graph_capture(self, warp_op, truth):
        warp_op.load("cuda")
        x, u = (torch.zeros(64, k, dtype=torch.float64, device="cuda") for k in (3, 2))
        u.requires_grad_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.autograd.grad(warp_op(x, u).sum(), u)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = warp_op(x, u)
            (by_u,) = torch.autograd.grad(y.sum(), u)
        x.copy_(torch.randn_like(x))
        graph.replay()
        leaf = u.detach().requires_grad_()  # autograd ties u to the stream of the capture while y lives
        expected = truth(x, leaf)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(by_u, torch.autograd.grad(expected.sum(), leaf)[0])

    def test_memory_peak_is_flat(self, warp_op):
        x, u = (torch.zeros(1 << 16, k, dtype=torch.float64, device="cuda") for k in (3, 2))
        u.requires_grad_()
        torch.autograd.grad(warp_op(x, u).sum(), u)
        torch.cuda.reset_peak_memory_stats()
        torch.autograd.grad(warp_op(x, u).sum(), u)
        peak = torch.cuda.max_memory_allocated()
        for _ in range(500):
            torch.autograd.grad(warp_op(x, u).sum(), u)
        assert torch.cuda.max_memory_allocated() == peak

    def test_tensor_off_the_current_device(self, warp_op, truth):
        if torch.cuda.device_count() < 2:
            pytest.skip("needs two CUDA devices")
        x, u = (torch.ones(4, k, dtype=torch.float64, device="cuda:1") for k in (3, 2))
        torch.testing.assert_close(warp_op(x, u), truth(x, u))
