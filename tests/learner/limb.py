"""A limb with two muscles and a filtered motor, whose target is a mocap body."""

import torch

from mage_diffsim.envs import MujocoTask, SitePosition


class Limb(MujocoTask):
    name = "Limb"
    mjcf = """<mujoco><option timestep="0.01"/><worldbody><body name="target" mocap="true" pos=".3 0 .2"/><body><joint
     name="elbow" axis="0 1 0" damping=".1" range="-60 60"/><geom type="capsule" size=".04" fromto="0 0 0 .4 0 0"/><site
     name="hand" pos=".4 0 0"/></body></worldbody><actuator><muscle name="flexor" joint="elbow" lengthrange="-2 2"
     force="20"/><muscle name="extensor" joint="elbow" gear="-1" lengthrange="-2 2" force="20"/><general name="motor"
     joint="elbow" dyntype="filter" dynprm=".05" forcerange="-1 1"/></actuator></mujoco>"""
    frame_skip = 2
    horizon = 20
    source = "a test"
    position_noise = velocity_noise = 0.1
    readouts = {"hand": SitePosition("hand")}  # noqa: RUF012

    def observe(self, state):
        to_target = self.mocap(state)[..., :3] - self.readout(state, "hand")
        return torch.cat([self.qpos(state), self.qvel(state), self.act(state), to_target], dim=-1)

    def reward(self, obs, action, next_obs):
        return -next_obs[..., -3:].square().sum(-1) - 0.01 * action.square().sum(-1)

    def terminated(self, next_obs):
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    def reset(self, n, generator):
        start = super().reset(n, generator)
        away = 0.1 * torch.randn(n, 3, dtype=torch.float64, device=start.device, generator=generator)
        poses = torch.cat([self.mocap(start)[:, :3] + away, self.mocap(start)[:, 3:]], dim=-1)
        return self.state_at(self.qpos(start), self.qvel(start), mocap=poses)
