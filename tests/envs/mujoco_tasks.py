"""The MuJoCo tasks on MuJoCo C, and a small model with readouts."""

import torch

from mage_diffsim.envs import BodyPosition, MeanVelocity, MujocoTask, SitePosition, make_physics, make_task, task_names

TASKS = tuple(name for name in task_names() if isinstance(make_task(name), MujocoTask))
OF_GYMNASIUM = tuple(name for name in TASKS if make_task(name).mjcf.startswith("gymnasium:"))
"""Those that Gymnasium has, too."""


def physics_of(task, **options):
    return make_physics(task, "mujoco", dtype=torch.float64, **options)


def jacobians(physics, state, action):
    """d next_state / d state and d action, [N, S, S] and [N, S, A]."""
    state, action = state.clone().requires_grad_(), action.clone().requires_grad_()
    columns = [
        torch.autograd.grad(physics.step(state, action)[:, j].sum(), (state, action)) for j in range(state.shape[1])
    ]
    by_state, by_action = zip(*columns, strict=True)
    return {"state": torch.stack(by_state, 1), "action": torch.stack(by_action, 1)}


SLIDER = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body name="cart">
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom size="0.1" mass="2"/>
      <site name="front" pos="0.5 0 0"/>
      <body name="pole" pos="0 0 0.2">
        <joint name="swing" type="hinge" axis="0 1 0"/>
        <geom size="0.05" pos="0 0 0.3" mass="1e-9"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="x" gear="3" ctrlrange="-1 4"/></actuator>
</mujoco>
"""


class Slider(MujocoTask):
    name = "Slider"
    mjcf = SLIDER
    frame_skip = 4
    horizon = 20
    source = "test"
    readouts = {"velocity": MeanVelocity("x"), "front": SitePosition("front"), "cart": BodyPosition("cart")}  # noqa: RUF012

    def observe(self, state):
        return state.clone()

    def reward(self, obs, action, next_obs):
        return -next_obs[..., 0].square()

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 10.0


def slider(**attributes):
    return type("Slider", (Slider,), attributes)()
