"""Section env: how long do a step of real environments and an evaluation take?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from rich.console import Console

from mage_diffsim.devices import torch_device
from mage_diffsim.envs.batched import BatchedEnv
from mage_diffsim.experiments.timing import interleaved
from throughput_sections.options import Options
from throughput_sections.rows import Row, row


def measure_env(options: Options, console: Console) -> Iterator[Row]:
    """Times a step of N real environments with their resets, and a whole evaluation."""
    device = torch_device(options.device)
    for task in options.task_names():
        trainer = options.trainer(task)
        physics = trainer.physics
        for n in options.batch_sizes():
            env = BatchedEnv(trainer.task, physics, n, [torch.Generator(device).manual_seed(0)])
            env.reset()
            action = torch.rand(n, trainer.task.action_dim, dtype=physics.dtype, device=device) * 2.0 - 1.0

            def run(env=env, action=action) -> None:
                for _ in range(20):
                    env.step(action)

            times = interleaved({"step": run}, options.rounds(task), device, until=options.until)["step"]
            check = f"{int((~env.state.isfinite().all(1)).sum())} states not finite"
            yield row("env", f"{task} step", physics.backend, times, unit="step", size=n, calls=20, count=n,
                      check=check)  # fmt: skip
        for count in (1, 5):
            several = options.trainer(task, seeds=tuple(range(count)), gradient_episodes=0)
            times = interleaved({"evaluate": several.evaluate}, min(3, options.rounds(task)), device)["evaluate"]
            episodes = several.config.eval_episodes
            returns = several.evaluate()["return/mean"].tolist()
            yield row("env", f"{task} evaluation", physics.backend, times, unit="evaluation", runs=count, size=episodes,
                      count=count * episodes, check=f"mean return {statistics.mean(returns):.3g}")  # fmt: skip
