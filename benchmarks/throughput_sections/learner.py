"""Section learner: how long does one update take?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from rich.console import Console

from mage_diffsim.devices import torch_device
from mage_diffsim.experiments.timing import interleaved
from throughput_sections.options import Options
from throughput_sections.products import again, products_of
from throughput_sections.rows import Failed, Row, row
from throughput_sections.variants import published_updates, updates_per_call, variants_of


def measure_learner(options: Options, console: Console) -> Iterator[Row]:
    """Times updates of the learner's variants and of the published formulation, and their matrix products alone.

    The learner's updates include their random numbers, the published ones do not.

    Raises:
        Failed: the critics of the variants differ.
    """
    device = torch_device(options.device)
    for task, method in itertools.product(options.task_names(), options.methods):
        rounds, updates = options.rounds(task), updates_per_call(options, task)
        # Trainers of one seed start with equal parameters and have seen the same transitions.
        variants = {
            name: options.trainer(task, updates=updates, method=method, **settings)
            for name, settings in variants_of(options, "learner").items()
        }
        eager = variants["eager"]
        size = eager.hyper.batch_size
        run_published, error = published_updates(eager, eager.draw(updates))
        functions: dict[str, Callable[[], object]] = {"published": run_published}
        functions |= {name: trainer.improve for name, trainer in variants.items()}
        products = products_of(options.trainer(task, updates=updates, method=method).improve)
        functions["products"] = again(products)
        ours, theirs = (sum(p.flop for p in calls) / 1e9 for calls in (products, products_of(run_published)))
        found = interleaved(functions, rounds, device, until=options.until)
        apart = max(
            float((getattr(t.agent, name) - getattr(eager.agent, name)).abs().max())
            for t, name in itertools.product(variants.values(), ("actor", "critic", "critic_target"))
        )
        if not apart <= 1e-5:
            raise Failed(f"{task} {method}: variants are {apart:.1e} apart after the same updates")
        check = f"critic gradient {error:.0e} from published"
        if len(variants) > 1:
            check += f"; variants {apart:.0e} apart"
        alone = found.pop("products")
        for name, times in found.items():
            against = ("published", found["published"]) if name != "published" else None
            yield row("learner", f"{task} {method}", name, times, unit="update", size=size, calls=updates,
                      against=against, check=check)  # fmt: skip
        yield row("learner", f"{task} {method}", "matrix products of eager", alone, unit="update", size=size,
                  calls=updates, against=("eager", found["eager"]),
                  check=f"{ours / updates:.3g} GFLOP, published {theirs / updates:.3g}")  # fmt: skip
