"""Warp kernels of MuJoCo models: rows, threads, stacks, caches and GPUs change no number."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("mujoco")
wp = pytest.importorskip("warp")
from mage_diffsim.bridges.warp import launch, load_module, load_warp  # noqa: E402
from mage_diffsim.envs import BatchedEnv, make_physics  # noqa: E402
from mage_diffsim.envs.warp import model as warp_model  # noqa: E402
from mage_diffsim.envs.warp.compiler import intake, program  # noqa: E402
from mage_diffsim.envs.warp.compiler.emit import prelude  # noqa: E402
from mage_diffsim.envs.warp.compiler.program import Program  # noqa: E402
from mage_diffsim.errors import InputError  # noqa: E402
from tests.envs.small_models import jacobian  # noqa: E402
from tests.envs.warp_models import EulerLeg, Leg, Pile, Trees, physics_of, samples, scaled  # noqa: E402


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 200])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_rows_and_threads_changes_nothing(rows, threads):
    _, state, action = samples(EulerLeg)
    state, action = state.repeat(2, 1)[:rows], action.repeat(2, 1)[:rows]
    physics = physics_of(EulerLeg)
    alone = torch.cat([physics.step(s[None], a[None]) for s, a in zip(state, action, strict=True)] or [state])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        state, action = state.clone().requires_grad_(), action.clone().requires_grad_()
        output = physics.step(state, action)
        gradients = torch.autograd.grad(output.square().sum(), (state, action))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(output.detach(), alone, rtol=1e-13, atol=1e-13)
    assert [g.shape for g in gradients] == [state.shape, action.shape]
    again = torch.autograd.grad(physics.step(state, action).square().sum(), (state, action))
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("threads", [1, 2])
def test_records_beside_the_stack_change_nothing(rows, threads, monkeypatch):
    """With contact records in memory that is handed to the kernel, as in larger models."""
    _, state, action = samples(EulerLeg)
    state, action = state.repeat(10, 1)[:rows], action.repeat(10, 1)[:rows]
    within = physics_of(EulerLeg)
    monkeypatch.setattr(program, "LOCAL", 0)
    monkeypatch.setattr(warp_model, "_shared", {})
    beside = make_physics(samples(EulerLeg)[0], "warp", dtype=torch.float64)
    kernels = (x._op._kernels.load("forward", state.device) for x in (within, beside))
    assert [x.scratch > 0 for x in kernels] == [False, True]
    before, results = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads)
        for physics in (within, beside):
            leaves = state.clone().requires_grad_(), action.clone().requires_grad_()
            output = physics.step(*leaves)
            results.append((output.detach(), *torch.autograd.grad(output.square().sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


SMALL_STACK = """
import resource, sys, threading, torch
torch.set_num_threads(2)
from mage_diffsim.envs import make_physics, make_task
from tests.envs.warp_models import Pile

def steps():
    for task in (Pile(), make_task("Pendulum")):
        physics = make_physics(task, "warp", dtype=torch.float64)
        state = task.reset(200, torch.Generator().manual_seed(0)).double()
        action = torch.zeros(200, task.action_dim, dtype=torch.float64, requires_grad=True)
        physics.step(state, action).sum().backward()
        assert action.grad.isfinite().all()

if sys.argv[1] == "main":
    resource.setrlimit(resource.RLIMIT_STACK, (256 << 10, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    steps()
else:
    threading.stack_size(256 << 10)
    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a thread's stack")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_small_stack_is_not_overflown(where):
    """Of 256 KiB, which Warp's own frame takes alone; what does not fit runs on a thread with a larger one."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_STACK, where], cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump reads the frames")
@pytest.mark.parametrize("model", [Pile, "Ant"], ids=str)
def test_the_stack_reserved_is_more_than_the_frames_are(model):
    for which in ("forward", "adjoint"):
        loaded = physics_of(model)._op._kernels.load(which, torch.device("cpu"))
        (object_file,) = Path(wp.config.kernel_cache_dir).glob(f"wp_{loaded.kernel.module.name}_*/*.o")
        code = subprocess.run(["objdump", "-d", object_file], capture_output=True, text=True, check=True).stdout
        frames = sum(int(x, 16) for x in re.findall(r"sub +\$0x([0-9a-f]+),%rsp", code))
        if frames:  # a processor that is not x86 says it otherwise
            assert loaded.stack > warp_model.OWN_STACK and 256 << 10 < frames < 0.6 * loaded.stack, (frames, loaded)


def test_a_bad_row_is_not_a_number_alone():
    """Next to it in the same vector, other environments are as without it."""
    _, state, action = samples(Leg)
    physics = physics_of(Leg)
    bad = state[:16].clone()
    bad[3, 2], bad[5, 1] = float("nan"), float("inf")
    bad.requires_grad_()
    output = physics.step(bad, action[:16])
    (gradient,) = torch.autograd.grad(output.sum(), bad)
    good = torch.ones(16, dtype=torch.bool)
    good[[3, 5]] = False
    torch.testing.assert_close(output.detach()[good], physics.step(state[:16], action[:16])[good], rtol=0, atol=0)
    assert output[good].isfinite().all() and gradient[good].isfinite().all()
    assert not output[~good].isfinite().all(1).any()
    assert gradient[3].isnan().any()


@pytest.mark.slow
def test_models_do_not_take_one_anothers_kernels():
    """Each native function has a name of its own; two threads may build two models at once."""
    found = {}

    def build(model):
        task, state, action = samples(model)
        warp_model._shared.pop((task.simulation.fingerprint, torch.float64, "cpu"), None)
        physics = make_physics(task, "warp", dtype=torch.float64)
        found[model] = physics.step(state, action)

    threads = [threading.Thread(target=build, args=(model,)) for model in (Leg, EulerLeg, Trees)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model in (Leg, EulerLeg, Trees):
        _, state, action = samples(model)
        torch.testing.assert_close(found[model], physics_of(model).step(state, action), rtol=0, atol=0)


def test_physics_of_equal_models_share_kernels_and_say_when_they_compile(caplog, monkeypatch, tmp_path):
    physics_of(Leg)
    with caplog.at_level(logging.INFO, "mage_diffsim"):
        make_physics(Leg(), "warp", dtype=torch.float64)
    assert not caplog.records

    class Other(Leg):
        frame_skip = 1
        name = "Other"

    monkeypatch.setattr(wp.config, "kernel_cache_dir", str(tmp_path))  # where nothing has been compiled
    with caplog.at_level(logging.INFO, "mage_diffsim"):
        make_physics(Other(), "warp", dtype=torch.float64)
    assert [r.getMessage() for r in caplog.records] == [
        f"compiling Warp Other ({which}, float64 on cpu): some seconds" for which in ("forward", "adjoint")
    ]
    caplog.clear()
    monkeypatch.setattr(warp_model, "_shared", {})
    with caplog.at_level(logging.INFO, "mage_diffsim"):  # as in another process: what was compiled is found on disk
        make_physics(Other(), "warp", dtype=torch.float64)
    assert not caplog.records


def test_wrong_dtypes_sources_and_models_are_refused():
    task, state, action = samples(Leg)
    with pytest.raises(InputError, match=r"accepted are torch\.float32 and torch\.float64"):
        make_physics(task, "warp", dtype=torch.float16)
    with pytest.raises(InputError, match="unknown derivative source of backend warp 'fd': choose one of adjoint, jvp"):
        make_physics(task, "warp", derivative="fd")
    with pytest.raises(InputError, match=r"state is torch\.float32 on cpu; this physics takes torch\.float64"):
        physics_of(Leg).step(state.float(), action)
    deep = type("Deep", (Leg,), {"name": "Deep", "frame_skip": 100_000})()
    numbers = r"would keep \d+ KiB for a tape of 100000 simulator steps per action, and 4096 are .* lower frame_skip"
    with pytest.raises(InputError, match=numbers):
        make_physics(deep, "warp")


def test_a_batched_environment_runs_on_it():
    task, _, _ = samples("HalfCheetah")
    env = BatchedEnv(task, physics_of("HalfCheetah", torch.float32), 12, [torch.Generator().manual_seed(0)])
    env.reset()
    for _ in range(5):
        transition = env.step(torch.zeros(12, 6))
    assert transition.next_obs.isfinite().all() and not transition.diverged.any()


FORKED = """
import os, torch
torch.set_num_threads(2)
from mage_diffsim.envs import make_physics, make_task
task = make_task("InvertedPendulum")
physics = make_physics(task, "warp")
state, action = task.reset(200, torch.Generator()).float(), torch.zeros(200, 1)
physics.step(state, action)
child = os.fork()
if child == 0:
    physics.step(state, action)
    os._exit(7)
assert os.waitpid(child, 0)[1] >> 8 == 7
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_steps_on_threads_of_its_own():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


AOT = """
import sys, torch, warp
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.warp.compiler.intake import read
from mage_diffsim.envs.warp.compiler.program import Program
from mage_diffsim.envs.warp.model import build

simulation = make_task("HalfCheetah").simulation
for real, kind in (("double", warp.float64), ("float", warp.float32)):
    program = Program(read(simulation), real, lanes=1)
    for which in ("forward", "adjoint"):
        module = build(getattr(program, which)(), which, kind).module
        warp.compile_aot_module(module, arch=90, use_ptx=True, module_dir=sys.argv[1], strip_hash=False)
"""


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    """For sm_90, with the scalar form of the same code."""
    subprocess.run([sys.executable, "-c", AOT, str(tmp_path)], check=True, timeout=600, capture_output=True)
    listings = [p.read_text() for p in tmp_path.rglob("*.ptx")]
    assert len(listings) == 4 and all(".target sm_90" in text for text in listings)


@pytest.fixture
def scalar(monkeypatch):
    """Makes physics of one lane, as on a GPU, that run here on the CPU."""

    def make(model, dtype=torch.float64):
        monkeypatch.setattr(warp_model, "VECTOR", dtype.itemsize)
        monkeypatch.setattr(warp_model, "_shared", {})
        task, _, _ = samples(model)
        made = make_physics(task, "warp", dtype=dtype)
        (kernels,) = warp_model._shared.values()
        assert (kernels.lanes, kernels.tile) == (1, 32)
        return made

    return make


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("model", [EulerLeg, Leg, Pile, "HalfCheetah"], ids=str)
def test_the_scalar_form_computes_the_same(model, threads, scalar):
    """One lane, with the tapes of 32 environments interleaved; its sines differ in the last place."""
    _, state, action = samples(model)
    vectors, made = physics_of(model), scalar(model)
    before, results = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads)
        for physics in (made, vectors):
            leaves = state.clone().requires_grad_(), action.clone().requires_grad_()
            output = physics.step(*leaves)
            results.append((output.detach(), *torch.autograd.grad(output.square().sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(*results, strict=True):
        assert scaled(ours - theirs, theirs).max() <= 1e-11


@pytest.mark.slow
def test_the_scalar_form_computes_the_same_in_float32(scalar):
    """Its sine and cosine are its own."""
    task, state, action = samples("HalfCheetah")
    state, action = state.float(), action.float()
    state[0, 2] += 1e4  # a body that has turned often
    theirs = make_physics(task, "warp", dtype=torch.float32).step(state, action)
    apart = scaled(scalar("HalfCheetah", torch.float32).step(state, action) - theirs, theirs)
    assert apart.median() <= 1e-6 and apart.max() <= 2e-3


def test_a_derivative_can_be_taken_twice_and_after_other_steps():
    """The tape belongs to the call."""
    _, state, action = samples(Leg)
    physics = physics_of(Leg)
    leaf = action.clone().requires_grad_()
    output = physics.step(state, leaf)
    (first,) = torch.autograd.grad(output.square().sum(), leaf, retain_graph=True)
    other = action.flip(0).requires_grad_()
    torch.autograd.grad(physics.step(state.flip(0), other).sum(), other)
    (again,) = torch.autograd.grad(output.square().sum(), leaf)
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_warps_own_adjoint_of_such_code_is_wrong():
    """Why the adjoint is emitted: the tape differentiates a loop that changes a variable without a word, wrongly."""

    @wp.kernel(enable_backward=True, module="unique")
    def substeps(u: wp.array(dtype=float), out: wp.array(dtype=float)):
        x = float(1.0)  # noqa: UP018  (in Warp a variable, not a constant)
        count = int(3)  # noqa: RUF046, UP018
        for _ in range(count):
            x = x + 0.5 * x * u[0]
        out[0] = x

    u, out = wp.array([2.0], dtype=float, requires_grad=True), wp.zeros(1, dtype=float, requires_grad=True)
    tape = wp.Tape()
    with tape:
        wp.launch(substeps, 1, inputs=[u], outputs=[out])
    tape.backward(grads={out: wp.array([1.0], dtype=float)})
    true = 3 * 0.5 * (1 + 0.5 * 2.0) ** 2
    assert out.numpy()[0] == pytest.approx((1 + 0.5 * 2.0) ** 3)
    assert abs(u.grad.numpy()[0] - true) > 0.1 * true, "Warp differentiates loops now: simplify the compiler"


def test_programs_of_one_model_are_equal_text():
    """What is compiled depends on the model only, so that the cache on disk is found again."""
    first, second = (Program(intake.read(Leg().simulation), "double", 8) for _ in range(2))
    assert first.forward() == second.forward() and first.adjoint() == second.adjoint()
    assert first.tangent() == second.tangent()


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["HalfCheetah", Pile], ids=str)
def test_equal_on_a_gpu(model):
    task, state, action = samples(model)
    gpu = make_physics(task, "warp", dtype=torch.float64, device="cuda")
    found = jacobian(gpu.step, state.cuda(), action.cuda()).cpu()
    expected = jacobian(physics_of(model).step, state, action)
    assert scaled(found - expected, expected).max() <= 1e-8


@pytest.mark.gpu
def test_a_step_and_its_derivative_are_captured_in_a_cuda_graph():
    task, state, action = samples("HalfCheetah")
    physics = make_physics(task, "warp", dtype=torch.float32, device="cuda")
    state, action = state.float().cuda(), action.float().cuda()

    def once():
        leaf = action.detach().requires_grad_()  # autograd ties a leaf to the stream that first used it
        output = physics.step(state, leaf)
        return output.detach(), torch.autograd.grad(output.sum(), leaf)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, gradient = once()
    state.copy_(state.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    expected = once()
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(gradient, expected[1])


@pytest.mark.parametrize(("real", "lanes"), [("double", 8), ("float", 16), ("float", 1)])
def test_sine_and_cosine_of_all_lanes_are_to_a_unit_in_the_last_place(real, lanes):
    dtype = torch.float64 if real == "double" else torch.float32
    code = prelude(real, lanes) + "\nvec x = load(state.data, 1, 0);\nstore(next_state.data, 2, 0, each_sin(x));\n"
    code += "store(next_state.data, 2, 1, each_cos(x));\n"
    kernel = warp_model.build(code, "forward", load_warp().dtype_from_torch(dtype))
    load_module(kernel, torch.device("cpu"))
    scale = torch.tensor([1.0, 1e1, 1e3, 9.9e4, 1e7]).repeat_interleave(200)
    x = (scale * torch.linspace(-1.0, 1.0, 1000)).to(dtype)
    x[::7] = (torch.arange(len(x[::7])) * (torch.pi / 4)).to(dtype)
    x[5], x[998] = torch.inf, torch.nan
    found = torch.empty(len(x), 2, dtype=dtype)
    launch(kernel, -(-len(x) // lanes), (x[:, None], x[:, None], found, 0, 0))
    expected = torch.stack([x.double().sin(), x.double().cos()], 1).to(dtype)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=torch.finfo(dtype).eps, equal_nan=True)
