"""Section kernels: how many kernels does a compiled update launch?"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console

from mage_diffsim.devices import torch_device
from mage_diffsim.experiments.timing import interleaved
from throughput_sections.options import Options
from throughput_sections.rows import Row, row


class Kernels(NamedTuple):
    """What one compiled function launches."""

    library: int
    """Calls of a library, which are matrix products."""
    fused: int
    """Kernels that the compiler writes."""


def measure_kernels(options: Options, console: Console) -> Iterator[Row]:
    """Counts the kernels of each compiled part of an update, and times the part."""
    if not options.compile:
        return
    for task, method in itertools.product(options.task_names(), options.methods):
        trainer = options.trainer(task, method=method, compile="on")
        agent, (draws,) = trainer.agent, trainer.draw(1)
        batch = trainer.buffer.gather(draws.index)
        parts = {
            "critic": lambda agent=agent, batch=batch, draws=draws: agent.update_critic(batch, draws),
            "actor": lambda agent=agent, batch=batch: agent.update_actor(batch),
            "restarts": agent.renew_diverged,
        }
        with kernels_counted() as counted:
            times = interleaved(parts, options.rounds(task), torch_device(options.device))
        for name, kernels in zip(parts, counted, strict=True):
            yield row("kernels", f"{task} {method}", name, times[name], unit="update", size=trainer.hyper.batch_size,
                      check=f"{kernels.library} products, {kernels.fused} other kernels")  # fmt: skip


@contextlib.contextmanager
def kernels_counted() -> Iterator[list[Kernels]]:
    """Fills the list with the kernels of each graph that is compiled meanwhile, as the compiler has fused them."""
    from torch._inductor import config  # takes seconds to import
    from torch._inductor.scheduler import NopKernelSchedulerNode

    counted: list[Kernels] = []

    def note(nodes: list[Any]) -> list[Any]:
        launched = [node for node in nodes if not isinstance(node, NopKernelSchedulerNode)]
        library = sum(node.is_extern() for node in launched)
        counted.append(Kernels(library, len(launched) - library))
        return nodes

    with config.patch(_post_fusion_custom_pass=note, force_disable_caches=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        yield counted
