"""Section runs: how long does an update of R runs side by side take?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from mage_diffsim.devices import torch_device
from mage_diffsim.experiments.timing import interleaved
from throughput_sections.options import Options
from throughput_sections.rows import Failed, Row, row
from throughput_sections.variants import updates_per_call, variants_of


def measure_runs(options: Options, console: Console) -> Iterator[Row]:
    """Times updates of R runs side by side, against R times one run.

    Raises:
        Failed: the first of several runs differs from that run alone.
    """
    method = options.methods[0]
    for task in options.task_names():
        counts = tuple(dict.fromkeys((1, *options.run_counts(task))))
        if counts == (1,):
            continue
        updates = updates_per_call(options, task)
        for name, settings in variants_of(options, "learner").items():
            shared: dict[str, Any] = dict(updates=updates, method=method, **settings)
            trainers = {n: options.trainer(task, seeds=tuple(range(n)), **shared) for n in counts}
            functions = {str(n): trainer.improve for n, trainer in trainers.items()}
            found = interleaved(functions, options.rounds(task), torch_device(options.device), until=options.until)
            apart = max(float((t.agent.critic[0] - trainers[1].agent.critic[0]).abs().max()) for t in trainers.values())
            if not apart <= 1e-5:
                raise Failed(f"{task} {method}: the first of several runs is {apart:.1e} from that run alone")
            size = trainers[1].hyper.batch_size
            for count in counts:
                alone = found["1"]._replace(rounds=tuple(x * count for x in found["1"].rounds))
                yield row("runs", f"{task} {method}", name, found[str(count)], unit="update", runs=count, size=size,
                          calls=updates, count=count, against=(f"{count} x 1 run", alone),
                          check=f"first run {apart:.0e} from it alone")  # fmt: skip
