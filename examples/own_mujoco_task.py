"""Your own MuJoCo model as a task: an arm of two links that reaches for a point, with Warp kernels as the oracle.

    python examples/own_mujoco_task.py
    mage-diffsim check-task examples/own_mujoco_task.py:Arm --backend warp

Expect the return, minus the sum of 60 distances [m], to rise from -40 to above -5. It takes a minute or two.
"""

from pathlib import Path

import torch
import tyro

from mage_diffsim import make_config, register_task, train
from mage_diffsim.envs import MujocoTask, SitePosition

MODEL = """
<mujoco>
  <option timestep="0.01"/>
  <default><joint axis="0 0 1" damping="0.1"/><geom type="capsule" size="0.02" contype="0" conaffinity="0"/></default>
  <worldbody>
    <body><joint name="shoulder"/><geom fromto="0 0 0 0.3 0 0"/>
      <body pos="0.3 0 0"><joint name="elbow" range="-150 150" limited="true"/><geom fromto="0 0 0 0.3 0 0"/>
        <site name="hand" pos="0.3 0 0"/></body></body>
  </worldbody>
  <actuator><motor joint="shoulder" ctrlrange="-1 1"/><motor joint="elbow" ctrlrange="-0.5 0.5"/></actuator>
</mujoco>"""


@register_task
class Arm(MujocoTask):
    name = "Arm"
    mjcf = MODEL  # or the path of a file, or gymnasium:swimmer.xml
    frame_skip = 5
    horizon = 60
    source = "this file"
    network_size = "small"
    readouts = {"hand": SitePosition("hand")}
    position_noise = 2.0  # of the reset [rad]

    def observe(self, state):
        angles = self.qpos(state)
        return torch.cat([angles.cos(), angles.sin(), self.qvel(state), self.readout(state, "hand")[..., :2]], dim=-1)

    def reward(self, obs, action, next_obs):
        return -(next_obs[..., 6:] - next_obs.new_tensor([0.2, 0.4])).norm(dim=-1) - 1e-3 * action.square().sum(-1)

    def terminated(self, next_obs):
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)


def main(out: Path = Path("runs/arm"), steps: int = 4000) -> None:
    config = make_config(Arm(), dynamics="oracle", backend="warp", preset="cpu", steps=steps, gradient_episodes=0)
    train(config, out, sinks=(lambda step, rows: print(f"step {step}: return {rows[0]['return_mean']:.1f}"),))


if __name__ == "__main__":
    tyro.cli(main)
