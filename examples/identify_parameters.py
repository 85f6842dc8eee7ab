"""System identification: masses and friction of a cheetah from its trajectories, by gradients through Warp.

    python examples/identify_parameters.py

A cheetah with other masses and another friction moves under random actions, and is measured with noise. From every
measured state the model predicts the next four, and Adam moves its numbers to where predictions and measurements agree.
Expect errors to fall: of the masses from 28 % to about 2 %, of friction from 101 % to about 1 %.
"""

import torch
import tyro

from mage_diffsim.envs import make_physics, make_task


def main(updates: int = 150, n: int = 32, steps: int = 40, window: int = 4, noise: float = 1e-4) -> None:
    generator = torch.Generator().manual_seed(0)
    task = make_task("HalfCheetah")
    physics = make_physics(task, "warp", dtype=torch.float64, parameters=("body_mass", "geom_friction"))
    own = physics.parameters()  # the model's numbers, in MuJoCo's shapes: [nbody] and [ngeom, 3]

    def numbers(logs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Masses and friction, times factors whose logarithms are given: one per body, and one for all friction."""
        return {"body_mass": own["body_mass"] * logs[:-1].exp(), "geom_friction": own["geom_friction"] * logs[-1].exp()}

    truth = 0.25 * torch.randn(len(own["body_mass"]) + 1, dtype=torch.float64, generator=generator)
    truth[-1] = -0.7
    state, states, actions = physics.reset(n, generator), [], []
    for _ in range(steps):
        states.append(state)
        actions.append(2.0 * torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator) - 1.0)
        state = physics.step(state, actions[-1], numbers(truth))
    states = torch.stack(states)
    states = states + noise * torch.randn(states.shape, dtype=torch.float64, generator=generator)
    scale = states.std((0, 1))
    moving = scale > 10.0 * noise

    logs = torch.zeros_like(truth).requires_grad_()
    optimizer = torch.optim.Adam([logs], lr=0.05)
    for update in range(updates + 1):
        optimizer.param_groups[0]["lr"] = 0.05 * (1.0 - update / (updates + 1))
        if update % 25 == 0:
            error = ((logs - truth).exp() - 1.0).abs().detach()
            print(f"update {update}: masses {100 * error[1:-1].mean():.2f} %, friction {100 * error[-1]:.2f} %")
        at, loss = states[:-window].flatten(0, 1), torch.zeros((), dtype=torch.float64)
        for t in range(window):
            at = physics.step(at, torch.cat(actions[t : t + steps - window]), numbers(logs))
            error = (at - states[t + 1 : t + 1 + steps - window].flatten(0, 1)) / scale
            loss = loss + torch.nn.functional.huber_loss(error[:, moving], torch.zeros_like(error[:, moving]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    tyro.cli(main)
