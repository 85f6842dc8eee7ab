"""Section model: how long does one batch of model training take?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.console import Console

from mage_diffsim.devices import torch_device
from mage_diffsim.experiments.timing import interleaved
from mage_diffsim.training import Trainer
from throughput_sections.options import Options
from throughput_sections.rows import Failed, Row, row
from throughput_sections.variants import published_batches, variants_of


def measure_model(options: Options, console: Console) -> Iterator[Row]:
    """Times one batch of maximum likelihood, against the published formulation.

    Raises:
        Failed: the losses differ after the same batches.
    """
    device, calls = torch_device(options.device), 2
    for task in options.task_names():
        variants = {name: options.trainer(task, **settings) for name, settings in variants_of(options, "model").items()}
        eager = variants["eager"]
        assert eager.ensemble is not None
        size = eager.hyper.model_batch_size
        losses: dict[str, float] = {}
        run_published, index = published_batches(eager, losses, calls)

        def run_ours(name: str, trainer: Trainer, index=index, losses=losses) -> None:
            for _ in range(calls):
                loss = trainer.model_trainings["loss/model"].train_batch(trainer.buffer.gather(index))
            losses[name] = float(loss[0])

        functions: dict[str, Callable[[], object]] = {"published": run_published}
        functions |= {name: lambda n=name, t=trainer, f=run_ours: f(n, t) for name, trainer in variants.items()}
        found = interleaved(functions, options.rounds(task), device, until=options.until)
        apart = max(losses.values()) - min(losses.values())
        if not apart < 1e-3 * max(1.0, abs(losses["published"])):
            raise Failed(f"{task}: after the same batches the model losses are {losses}")
        for name, times in found.items():
            against = ("published", found["published"]) if name != "published" else None
            yield row("model", task, name, times, unit="batch", size=size, calls=calls, against=against,
                      check=f"losses {apart:.0e} apart")  # fmt: skip
