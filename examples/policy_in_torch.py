"""A trained policy in plain torch: the file is read without mage_diffsim and acts in Gymnasium's own environment.

    mage-diffsim train --task Pendulum --dynamics oracle --preset cpu --steps 3000 --out runs/first
    python examples/policy_in_torch.py runs/first/policy.safetensors

Expect a return above -200, which counts as solved. mage_diffsim's Pendulum has the equations of Pendulum-v1.
"""

import json
import sys
from collections.abc import Callable

import gymnasium
import torch
from safetensors import safe_open


def load(path: str, run: int = 0) -> tuple[Callable[[torch.Tensor], torch.Tensor], dict]:
    """The policy of one run, from an observation to an action in the actuator's units, and the file's metadata."""
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["mage_diffsim"])
        of_run = {name.removeprefix(f"run{run}."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    low, high = torch.tensor(metadata["action_low"]), torch.tensor(metadata["action_high"])

    def policy(obs: torch.Tensor) -> torch.Tensor:
        x = (obs - of_run["obs_mean"]) / of_run["obs_std"]
        for layer in range(metadata["layers"]):
            x = torch.nn.functional.silu(x) if layer else x
            x = torch.nn.functional.linear(x, of_run[f"layer{layer}.weight"], of_run[f"layer{layer}.bias"])
        return low + (x.tanh() + 1) / 2 * (high - low)

    return policy, metadata


def main(path: str, episodes: int = 5) -> None:
    policy, metadata = load(path)
    print(f"trained on {metadata['task']}; observes {metadata['obs_names']}, acts by {metadata['action_names']}")
    env = gymnasium.make("Pendulum-v1")
    for seed in range(episodes):
        obs, _ = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(policy(torch.from_numpy(obs)).numpy())
            total, ended = total + float(reward), terminated or truncated
        print(f"episode {seed}: return {total:.1f}")


if __name__ == "__main__":
    main(sys.argv[1])
