"""Physics leave the process that uses them as it was: no setting of another package changes, and no stream of numbers.

Each backend runs in a process of its own, where nothing has been set by the tests before it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

SETTINGS = """
import json, logging, os, random, signal, sys, warnings

import numpy as np
import torch

backend = sys.argv[1]


def settings():
    import jax, scipy.sparse, scipy.special, warp  # importing scipy adds filters for its own warnings

    found = {f"jax.config.{name}": value for name, value in jax.config.values.items()}
    found |= {f"warp.config.{name}": v for name, v in vars(warp.config).items() if type(v) in (bool, int, float, str)}
    found |= {f"environment {name}": value for name, value in os.environ.items()}
    found |= {f"np.errstate {name}": value for name, value in np.geterr().items()}
    found |= {f"handler of {s.name}": signal.getsignal(s) for s in signal.valid_signals() if hasattr(s, "name")}
    found["jnp.ones"] = jax.numpy.ones(3).dtype
    found["jax.random.normal"] = np.asarray(jax.random.normal(jax.random.key(0), (3,))).tobytes()
    found["numpy's generator"] = np.random.get_state()[1].tobytes()
    found["Python's generator"] = hash(random.getstate())
    found["torch's generator"] = torch.get_rng_state().numpy().tobytes()
    found["torch's dtype"] = torch.get_default_dtype()
    found["torch's device"] = torch.get_default_device()
    found["torch's threads"] = (torch.get_num_threads(), torch.get_num_interop_threads())
    found["torch's gradients"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    found["torch's matmul"] = torch.get_float32_matmul_precision()
    found["torch's determinism"] = torch.are_deterministic_algorithms_enabled()
    found["warnings"] = warnings.filters[:]
    found["logging"] = [(l.level, l.handlers[:], l.disabled) for l in map(logging.getLogger, (None, "mage_diffsim"))]
    found["working directory"] = (os.getcwd(), sorted(os.listdir()))
    return {name: str(value) for name, value in found.items()}


before = settings()

from mage_diffsim.envs import MujocoTask, Task, make_physics, make_task


class Mass(MujocoTask):
    name = "Mass"
    mjcf = '''<mujoco><option timestep="0.01"/><worldbody><body><joint name="rail" type="slide" axis="1 0 0"/>
    <geom size="0.1" mass="1"/></body></worldbody>
    <actuator><motor joint="rail" ctrlrange="-1 1"/></actuator></mujoco>'''
    frame_skip, horizon, source = 1, 10, "a test"
    position_noise = velocity_noise = 0.1

    def observe(self, state):
        return state

    def reward(self, obs, action, next_obs):
        return next_obs[..., 0]

    def terminated(self, next_obs):
        return next_obs[..., 0] > 1.0


task = make_task("Pendulum") if backend in ("torch", "jax", "warp") else Mass()
for dtype in (torch.float32, torch.float64) if backend != "mujoco-warp" else (torch.float32,):
    physics = make_physics(task, backend, dtype=dtype)
    state = torch.zeros(2, task.state_dim, dtype=dtype, requires_grad=True)
    action = torch.zeros(2, task.action_dim, dtype=dtype, requires_grad=True)
    next_state = physics.step(state, action)
    assert next_state.dtype == dtype
    by_action, = torch.autograd.grad(next_state.sum(), action)
    assert by_action.dtype == dtype and by_action.abs().min() > 0
after = settings()
changed = {name: [before.get(name), after.get(name)] for name in before | after}
print(json.dumps({name: values for name, values in changed.items() if values[0] != values[1]}))
"""


@pytest.mark.parametrize(
    "backend",
    [
        "torch",
        "jax",
        "warp",
        "mujoco",
        pytest.param("mjx", marks=pytest.mark.slow),
        pytest.param("mujoco-warp", marks=pytest.mark.slow),
    ],
)
def test_building_stepping_and_differentiating_changes_no_setting(backend, tmp_path):
    for package in ("jax", "warp", "mujoco", *(["mujoco_warp"] if backend == "mujoco-warp" else [])):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    script, folder = tmp_path / "settings.py", tmp_path / "folder"
    script.write_text(SETTINGS)
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), backend],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "MUJOCO_GL"},
    )
    assert done.returncode == 0, done.stderr
    *shown, last = done.stdout.splitlines()
    changed = json.loads(last)
    # What load_jax documents: read once by JAX, and without influence on results.
    if backend in ("jax", "mjx"):
        assert changed.pop("jax.config.jax_cpu_enable_async_dispatch") == ["True", "False"]
    # What load_mujoco documents: MuJoCo reads the one, and writes the other, when it is imported.
    for variable in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        assert changed.pop(f"environment {variable}", [None, "egl"]) == [None, "egl"]
    # Warp notes the folder that it takes where it was told none.
    changed.pop("warp.config.kernel_cache_dir", None)
    assert not changed
    assert not shown
    assert not done.stderr
