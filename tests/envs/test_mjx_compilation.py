"""What MJX compiles is shared between equal models and kept on disk."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco.mjx")
from mage_diffsim.bridges.jax import load_jax  # noqa: E402
from mage_diffsim.envs.mjx import MjxPhysics, kept_on_disk  # noqa: E402
from mage_diffsim.envs.physics import make_physics  # noqa: E402
from mage_diffsim.envs.tasks.inverted_pendulum import InvertedPendulum  # noqa: E402
from tests.envs.mjx_models import Ball, N, physics_of, samples  # noqa: E402


@pytest.mark.slow
def test_kept_residuals_give_the_gradient_of_recomputing(caplog):
    task = InvertedPendulum()
    generator = torch.Generator().manual_seed(0)
    state = task.reset(N, generator).double()
    action = torch.rand(N, task.action_dim, dtype=torch.float64, generator=generator).requires_grad_()
    cotangent = torch.randn(N, task.state_dim, dtype=torch.float64, generator=generator)
    found = []
    with caplog.at_level(logging.INFO, logger="mage_diffsim"):
        for residuals in ("recompute", "keep", "keep"):
            physics = make_physics(task, "mjx", dtype=torch.float64, residuals=residuals)
            y = physics.step(state, action)
            found.append((y.detach(), *torch.autograd.grad(y, action, cotangent, retain_graph=True)))
    assert torch.equal(torch.autograd.grad(y, action, cotangent)[0], found[-1][1])
    for kept in found[1:]:
        for a, b in zip(kept, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    h = 1e-6
    ends = [physics.step(state, action.detach() + step) for step in (h, -h)]
    central = ((ends[0] - ends[1]) * cotangent).sum(-1, keepdim=True) / (2.0 * h)
    torch.testing.assert_close(found[-1][1], central, rtol=1e-6, atol=1e-6 * central.abs().max().item())
    messages = [r.getMessage() for r in caplog.records]
    assert sum("(forward with residuals, batch" in m for m in messages) == 1, "compiled once, for both physics"
    assert sum("(implicit derivative from residuals, batch" in m for m in messages) == 1


def test_physics_of_equal_models_share_what_is_compiled(caplog):
    physics_of(Ball).step(*samples(Ball))
    with caplog.at_level(logging.INFO, logger="mage_diffsim"):
        MjxPhysics(Ball(), dtype=torch.float64).step(*samples(Ball))
        assert not caplog.records
        state, action = (x[:3] for x in samples(Ball))
        MjxPhysics(Ball(), dtype=torch.float64).step(state, action)
    (record,) = caplog.records
    assert record.getMessage().startswith("compiling MJX Ball (forward, batch of 3, float64 on cpu)")


class TestCompilationsOnDisk:
    @pytest.fixture(autouse=True)
    def _without_a_folder_of_jax(self, monkeypatch, tmp_path):
        """As a user has it who has set nothing; small functions are kept too."""
        from jax.experimental.compilation_cache import compilation_cache

        before = {
            name: getattr(load_jax().config, name)
            for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
        }
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
        yield
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    def compile_something(self, number):
        jax.jit(lambda x: x * number)(np.ones(3))

    def kept(self, folder):
        return {path for path in folder.rglob("*") if path.is_file()}

    def test_they_go_to_the_users_cache_folder_and_the_users_own_do_not(self, tmp_path):
        self.compile_something(2)
        assert not self.kept(tmp_path)
        with kept_on_disk(), kept_on_disk():
            self.compile_something(3)
        kept = self.kept(tmp_path / "mage_diffsim" / "jax")
        assert kept
        assert jax.config.jax_compilation_cache_dir is None
        self.compile_something(4)
        assert self.kept(tmp_path) == kept

    def test_a_folder_named_in_the_environment_or_to_jax_comes_first(self, monkeypatch, tmp_path):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "users"))
        with kept_on_disk():
            assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "users"))
        with kept_on_disk():
            self.compile_something(5)
        assert self.kept(tmp_path / "users") and not (tmp_path / "mage_diffsim").exists()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "users")

    def test_a_file_in_its_place_costs_a_warning(self, monkeypatch, tmp_path, caplog):
        (tmp_path / "mage_diffsim").touch()
        with kept_on_disk():
            self.compile_something(6)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.getMessage().startswith(f"what JAX compiles cannot be kept in {tmp_path}/mage_diffsim/jax (")
