"""Section oracles: how long does one MAGE-TD3 update take on every oracle?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from rich.console import Console

from mage_diffsim.devices import torch_device
from mage_diffsim.dynamics import OracleDynamics
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.timing import interleaved
from throughput_sections.options import Options
from throughput_sections.rows import Failed, Row, row
from throughput_sections.sources import left_out, name_of, sources_of


def measure_oracles(options: Options, console: Console) -> Iterator[Row]:
    """Times one MAGE-TD3 update on the learned ensemble and on every oracle, in turns, and the physics' share of it.

    Raises:
        Failed: a target is not finite, or a critic diverged.
    """
    for task in options.task_names():
        # An update with the actor and one without make a pair.
        trainers = {"learned": options.trainer(task, updates=2)}
        for backend, derivative, residuals in sources_of(task, options, console):
            source = dict(backend=backend, derivative=derivative, residuals=residuals)
            try:
                trainer = options.trainer(task, updates=2, dynamics="oracle", **source)
            except (InputError, MissingExtra) as error:
                left_out(task, backend, error, console)
                continue
            assert isinstance(trainer.agent.dynamics, OracleDynamics)
            trainers[name_of(trainer.agent.dynamics.physics)] = trainer
        functions: dict[str, Callable[[], object]] = {}
        for name, trainer in trainers.items():
            functions[f"{name}: update"] = trainer.improve
            dynamics = trainer.agent.dynamics
            if isinstance(dynamics, OracleDynamics):
                batch = trainer.buffer.gather(trainer.draw(1)[0].index)
                state, action = batch.state.flatten(0, 1), batch.action.flatten(0, 1).requires_grad_()

                def step_and_pull_back(physics=dynamics.physics, state=state, action=action) -> None:
                    torch.autograd.grad(physics.step(state, action).sum(), action)

                functions[f"{name}: its physics"] = step_and_pull_back
        found = interleaved(functions, options.rounds(task), torch_device(options.device), until=options.until)
        for name, trainer in trainers.items():
            agent = trainer.agent
            masked = int(agent.nonfinite.sum())
            if agent.restarts.any() or not agent.critic.isfinite().all() or masked:
                raise Failed(f"{task} {name}: {masked} targets are not finite, or the critic diverged")
        for key, times in found.items():
            name, what = key.split(": ")
            against = ("learned", found["learned: update"]) if what == "update" and name != "learned" else None
            calls = 2 if what == "update" else 1
            yield row("oracles", f"{task} {what}", name, times, unit=what.split()[-1], against=against, calls=calls,
                      size=trainers[name].hyper.batch_size, check="all finite")  # fmt: skip
