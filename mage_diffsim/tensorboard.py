"""Evaluations as TensorBoard scalars (the ``log`` extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mage_diffsim.errors import missing_extra
from mage_diffsim.tables import EVAL_FIELDS, METRIC_FIELDS


class TensorBoardSink:
    """A sink of :func:`mage_diffsim.session.train`: one TensorBoard run per (seed, lambda), below ``folder``.

    Columns of eval.csv go to ``evaluation/<column>``, those of metrics.csv to ``training/<column>``.

    Args:
        folder: where the event files go; created with the first rows, so that a training that is refused leaves none.

    Raises:
        MissingExtra: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tensorboard  # noqa: F401  (torch's own message does not name the extra)
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("tensorboard", "log") from error
        self._make = SummaryWriter
        self.folder = folder
        self.writers: dict[str, SummaryWriter] = {}

    def __call__(self, env_step: int, rows: list[dict[str, Any]]) -> None:
        """Write one evaluation, one row per run; numbers a run does not have are left out."""
        for row in rows:
            name = f"seed{row['seed']}_lambda{row['lambda']:g}"
            if name not in self.writers:
                # What a killed training wrote after its last checkpoint is about to be written again: hide it.
                self.writers[name] = self._make(str(self.folder / name), purge_step=env_step)
            for group, fields in (("evaluation", EVAL_FIELDS[3:]), ("training", METRIC_FIELDS[3:])):
                for field in fields:
                    if row.get(field) is not None:
                        self.writers[name].add_scalar(f"{group}/{field}", row[field], env_step)
            self.writers[name].flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self.writers.values():
            writer.close()
