"""The policy file and ``load_policy``: readable without the package, and equal to what was trained."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mage_diffsim
from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import InputError
from mage_diffsim.policy import load_policy
from mage_diffsim.run_folder import load_trainer
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from tests.tiny import HYPER, RUN

SETTINGS = RUN | {
    "steps": 40,
    "eval_every": 40,
    "gradient_episodes": 0,
    "dynamics": "oracle",
    "seeds": (0, 5),
    "lambdas": (0.05, 0.2),
    "hyper": HYPER | {"actor_hidden": (8, 6), "critic_hidden": (4,)},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished training of four runs. Read only: tests that change it take a copy."""
    run_dir = tmp_path_factory.mktemp("policy") / "run"
    train(make_config(make_task("Pendulum", clip_order="v0"), **SETTINGS), run_dir)
    return run_dir


def read_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A safetensors file by its specification: a length, a JSON header, the numbers."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header.pop("__metadata__")["mage_diffsim"])
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32"
        start, end = entry["data_offsets"]
        numbers = np.frombuffer(content[8 + length + start : 8 + length + end], np.float32)
        tensors[name] = numbers.reshape(entry["shape"])
    return tensors, metadata


def test_the_policy_file_is_read_with_numpy_alone_as_its_documentation_says(trained):
    tensors, metadata = read_file(trained / "policy.safetensors")
    assert metadata["runs"] == [{"seed": s, "lambda": lam} for lam in (0.05, 0.2) for s in (0, 5)]
    assert (metadata["task"], metadata["task_options"]) == ("Pendulum", {"clip_order": "v0"})
    assert (metadata["action_low"], metadata["action_high"]) == ([-2.0], [2.0])
    assert metadata["obs_names"] == ["cos_theta", "sin_theta", "theta_dot"] and metadata["action_names"] == ["torque"]
    assert (metadata["activation"], metadata["output"], metadata["layers"], metadata["env_step"]) == (
        "silu",
        "tanh",
        3,
        40,
    )
    trainer = load_trainer(trained)
    obs = torch.randn(7, 3)
    expected = trainer.agent.policy(obs.expand(4, 7, 3))
    for run in range(4):
        x = (obs.numpy() - tensors[f"run{run}.obs_mean"]) / tensors[f"run{run}.obs_std"]
        for layer in range(3):
            weight = tensors[f"run{run}.layer{layer}.weight"]
            assert weight.shape == [(8, 3), (6, 8), (1, 6)][layer]
            x = x @ weight.T + tensors[f"run{run}.layer{layer}.bias"]
            x = x / (1.0 + np.exp(-x)) if layer < 2 else np.tanh(x)
        np.testing.assert_allclose(x, expected[run].numpy(), rtol=1e-5, atol=1e-6)
    assert trainer.agent.obs.std.ne(1.0).all()  # so that the statistics matter
    assert not torch.allclose(expected[0], expected[1])


@pytest.mark.parametrize("of", ["folder", "text", "file", "checkpoint"])
def test_a_loaded_policy_is_the_trainers(of, trained, tmp_path):
    place: Any = {"folder": trained, "text": str(trained), "file": trained / "policy.safetensors"}.get(of)
    if of == "checkpoint":
        place = shutil.copytree(trained, tmp_path / "run")
        (place / "policy.safetensors").unlink()
    trainer = load_trainer(trained)
    obs = torch.randn(7, 3)
    for run in range(4):
        policy = mage_diffsim.load_policy(place, run)
        torch.testing.assert_close(policy(obs), trainer.agent.policy(obs.expand(4, 7, 3))[run])
        torch.testing.assert_close(policy(obs[0]), policy(obs)[0])
        torch.testing.assert_close(policy(obs.view(7, 1, 3)), policy(obs).view(7, 1, 1))
        assert policy.metadata["action_high"] == [2.0]
        assert not policy(obs).requires_grad
        layers = [m for m in policy.modules() if isinstance(m, torch.nn.Linear)]
        assert [(m.in_features, m.out_features) for m in layers] == [(3, 8), (8, 6), (6, 1)]


def test_a_policy_of_float32_takes_the_observations_of_an_environment_in_float64(trained):
    env = gymnasium.make("mage_diffsim.envs.gymnasium_env:mage_diffsim/Pendulum-v0", dtype="float64")
    obs = torch.from_numpy(env.reset(seed=0)[0])
    action = load_policy(trained)(obs)
    assert obs.dtype == action.dtype == torch.float64
    torch.testing.assert_close(action.float(), load_policy(trained)(obs.float()))
    env.step(action.numpy())


def test_a_run_that_trains_on_gives_its_newest_policy(trained, tmp_path):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    old = (run_dir / "policy.safetensors").read_bytes()
    resume(run_dir, steps=60)
    (run_dir / "policy.safetensors").write_bytes(old)  # as if it had been stopped at its last checkpoint
    policy = load_policy(run_dir)
    assert policy.metadata["env_step"] == 60
    obs = torch.randn(5, 3)
    torch.testing.assert_close(policy(obs), load_trainer(run_dir).agent.policy(obs.expand(4, 5, 3))[0])


def test_equal_runs_write_equal_files(trained, tmp_path):
    train(make_config(make_task("Pendulum", clip_order="v0"), **SETTINGS), tmp_path / "again")
    assert (tmp_path / "again" / "policy.safetensors").read_bytes() == (trained / "policy.safetensors").read_bytes()


def test_a_policy_is_exported_with_any_batch(trained):
    policy = load_policy(trained, 2)
    exported = torch.export.export(
        policy, (torch.randn(4, 3),), dynamic_shapes={"obs": {0: torch.export.Dim("batch", min=1)}}
    )
    obs = torch.randn(9, 3)
    torch.testing.assert_close(exported.module()(obs), policy(obs))


def test_a_policy_needs_neither_the_task_nor_a_simulator(trained):
    code = (
        "import sys, torch, mage_diffsim\n"
        f"print(mage_diffsim.load_policy({str(trained)!r}, run=1)(torch.zeros(3)).item())\n"
        "assert not {'jax', 'warp', 'mujoco', 'mage_diffsim.envs.tasks.pendulum'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(load_policy(trained, 1)(torch.zeros(3)).item())


def test_what_is_no_configuration_and_no_observation_is_refused_in_one_sentence(trained):
    code = (
        "import sys, numpy, torch\n"  # in a process without the hook, which refuses most of it before
        "from mage_diffsim import load_policy, train\n"
        "from mage_diffsim.errors import InputError\n"
        "policy = load_policy(sys.argv[1])\n"
        "for slip in (\n"
        "    lambda: train('Pendulum', sys.argv[2]), lambda: train(1, sys.argv[2]), lambda: policy(numpy.zeros(3)),\n"
        "    lambda: policy(torch.zeros(3, dtype=torch.int64)), lambda: policy(torch.zeros(2, 4)),\n"
        "    lambda: policy(torch.zeros(())),\n"
        "):\n"
        "    try: print('accepted', slip())\n"
        "    except InputError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(trained), str(trained.parent / "new")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "config is 'Pendulum'; accepted is a TrainConfig, which make_config gives",
        "config is 1; accepted is a TrainConfig, which make_config gives",
        "the observation is a ndarray; accepted is a float tensor, as torch.as_tensor(obs) gives",
        "the observation is a tensor of torch.int64; accepted is a float tensor, as torch.as_tensor(obs) gives",
        "the observation has shape (2, 4); accepted is [3] or [*batch, 3]",
        "the observation has shape (); accepted is [3] or [*batch, 3]",
    ]
    assert not (trained.parent / "new").exists()


@pytest.mark.parametrize("run", [4, -1, True])
def test_a_run_that_is_not_there_is_refused(run, trained):
    with pytest.raises(InputError, match=r"run is .*, and \S+ holds 4 runs; accepted is 0 to 3"):
        load_policy(trained, run)


def test_what_is_no_policy_is_refused_in_one_sentence(trained, tmp_path):
    with pytest.raises(InputError, match="there is no policy file or run folder"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"has no policy\.safetensors and no checkpoint"):
        load_policy(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="text is not a policy file"):
        load_policy(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="has no metadata of this package"):
        load_policy(tmp_path / "other.safetensors")
