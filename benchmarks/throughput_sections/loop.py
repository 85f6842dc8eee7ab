"""Section loop: how long does one environment step of the whole loop take?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from rich.console import Console

from mage_diffsim.devices import torch_device
from mage_diffsim.errors import InputError
from mage_diffsim.experiments.timing import Times, interleaved, percentile
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from throughput_sections.options import Options
from throughput_sections.rows import Row, row
from throughput_sections.variants import published_batches, published_updates, variants_of


def measure_loop(options: Options, console: Console) -> Iterator[Row]:
    """Times Algorithm 2 per environment step, over one period of model training.

    The published loop is a sum: the published updates and model batches of a step, timed in the same rounds. Its
    collection, normalisation and logging count as nothing.

    Raises:
        InputError: the preset trains models by whole epochs, whose number of batches grows with the buffer.
    """
    device = torch_device(options.device)
    for task in options.task_names():
        hyper = make_config(task, preset=options.preset).hyper
        if hyper.model_epochs:
            raise InputError(f"--preset {options.preset} trains by whole epochs: leave section loop out, or use paper")
        period, rounds = hyper.model_every, max(3, min(5, options.rounds(task) // 2))
        warm = options.trainer(task)
        run_updates, error = published_updates(warm, warm.draw(2))
        run_batches, _ = published_batches(warm)
        functions: dict[str, Callable[[], object]] = {"updates": run_updates, "batches": run_batches}
        trainers, steps = {}, (2 + rounds) * period
        for name, settings in variants_of(options, "loop").items():
            trainers[name] = Trainer(
                make_config(task, preset=options.preset, steps=steps, device=options.device,
                            hyper={"warmup_steps": 2}, **settings)
            )  # fmt: skip

            def run(trainer: Trainer = trainers[name], period: int = period) -> None:
                for _ in range(period):
                    trainer.step()

            functions[name] = run
        found = interleaved(functions, rounds, device, until=options.until)
        shares = hyper.updates_per_step / 2, hyper.model_batches / period / 2  # both were called twice
        sums = [shares[0] * u + shares[1] * b for u, b in zip(found["updates"].rounds, found["batches"].rounds,
                                                              strict=True)]  # fmt: skip
        published = Times(percentile(sums, 0.5), percentile(sums, 0.95), 0.0, tuple(sums), math.nan, math.nan)
        yield row("loop", task, "published, sum", published, unit="env step", size=1,
                  check=f"critic gradient {error:.0e}; a sum of updates and batches")  # fmt: skip
        per_period = published._replace(rounds=tuple(period * x for x in sums))
        apart = max(float((t.agent.critic - trainers["eager"].agent.critic).abs().max()) for t in trainers.values())
        check = f"critics of the variants {apart:.0e} apart after {steps} steps" if len(trainers) > 1 else ""
        for name in trainers:
            yield row("loop", task, name, found[name], unit="env step", size=1, calls=period,
                      against=("published, sum", per_period),
                      check=check)  # fmt: skip
