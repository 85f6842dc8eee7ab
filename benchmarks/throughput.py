"""Measures speed on this machine: updates, model training, the whole loop, environments, bridges and physics.

    python benchmarks/throughput.py                                 # everything, Pendulum and HalfCheetah sizes
    python benchmarks/throughput.py --quick                         # small sizes, few repeats, one page: minutes
    python benchmarks/throughput.py --quick --device cuda           # five minutes and one page
    python benchmarks/throughput.py --sections learner --tasks Pendulum --threads 1   # on a busy machine
    python benchmarks/throughput.py --sections oracles --tasks HalfCheetah   # one MAGE-TD3 update on every oracle

The baseline ``published`` is the published formulation (benchmarks/published.py) in the same process. Variants are
called in turn, so that drift of the machine hits all of them. A variant with wrong results fails: updates are
compared with the published ones, bridges with closed forms, pull-backs with Jacobians. A section that fails says why in
one line, the others go on, and the exit code is 1. The process keeps freed memory,
as training does; an empty ``GLIBC_TUNABLES`` in the environment leaves glibc's defaults.

Writes throughput.csv, summary.md and a figure per section. Columns:

    R          runs side by side
    size       rows of a batch, environments or episodes
    ms, p95    median and 95th percentile over rounds
    per s      units per second
    speed-up   median ratio to the time of the variant under "against"
    first s    what the first call took beyond a warm one
    faults     page faults per unit
    peak MiB   on CUDA of one call or of a training, on a CPU the process's largest so far
    checked    what was verified of the results, or counted

throughput.csv also has TFLOP/s and GB/s of an update's matrix products (section steps), by the operations they do and
the bytes of their operands and results, and the name of the card or processor.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import tyro
from rich.console import Console
from throughput_sections.bridges import measure_bridges
from throughput_sections.env import measure_env
from throughput_sections.kernels import measure_kernels
from throughput_sections.learner import measure_learner
from throughput_sections.loop import measure_loop
from throughput_sections.model import measure_model
from throughput_sections.options import Options, Section
from throughput_sections.oracles import measure_oracles
from throughput_sections.page import page
from throughput_sections.physics import measure_physics
from throughput_sections.rows import FIELDS, Row
from throughput_sections.runs import measure_runs
from throughput_sections.steps import measure_steps
from throughput_sections.tables import draw, table_of

from mage_diffsim.devices import torch_device
from mage_diffsim.display import show_log
from mage_diffsim.doctor import versions
from mage_diffsim.errors import InputError, reason_of
from mage_diffsim.experiments.command import provenance, script_exit_code
from mage_diffsim.experiments.figures import failures_kept, not_drawn
from mage_diffsim.experiments.tables import markdown_table, rich_table, write_csv
from mage_diffsim.files import make_folder, write_atomically
from mage_diffsim.memory import keep_freed_memory
from mage_diffsim.settings import make_config

SECTIONS: dict[Section, Callable[[Options, Console], Iterator[Row]]] = {
    "steps": measure_steps,
    "learner": measure_learner,
    "model": measure_model,
    "loop": measure_loop,
    "runs": measure_runs,
    "env": measure_env,
    "bridges": measure_bridges,
    "physics": measure_physics,
    "oracles": measure_oracles,
    "kernels": measure_kernels,
}
"""Section to what measures it."""


SHARES: dict[Section, float] = {"steps": 5.0, "physics": 2.0, "kernels": 0.5}
"""Parts of the time that sections get where it is limited; the others get 1."""


def measure(
    options: Options, console: Console, keep: Callable[[Row], None], failed: list[str]
) -> Iterator[tuple[Section, list[Row]]]:
    """Yields every chosen section that has rows, in the order of :data:`SECTIONS`.

    ``keep`` gets each row at once. A section that raises adds a line to ``failed``; its rows before that count.
    """
    end = time.monotonic() + options.seconds()
    left: list[Section] = [section for section in SECTIONS if section in options.section_names()]
    while left:
        now = time.monotonic()
        allowed = (end - now) * SHARES.get(left[0], 1.0) / sum(SHARES.get(section, 1.0) for section in left)
        section = left.pop(0)
        rows: list[Row] = []
        if allowed <= 0.0:
            console.print(f"{section} is left out for want of time", highlight=False)
            continue
        console.print(f"{section} ...", highlight=False)
        try:
            for row in SECTIONS[section](replace(options.of(section), began=now, until=now + allowed), console):
                rows.append(row)
                keep(row)
        except Exception as error:
            failed.append(f"{section} failed ({type(error).__name__}): {reason_of(error)}")
            console.print(failed[-1], highlight=False, markup=False)
            logging.getLogger("mage_diffsim").debug("section %s", section, exc_info=True)
        if rows:
            yield section, rows


def main(options: Options) -> int:
    """Measures the chosen sections, prints their tables or one page, and writes the files.

    Returns:
        the exit code: 0, or 1 if a section failed.

    Raises:
        InputError: a flag's value is not accepted, or nothing could be measured.
    """
    options.check()
    make_folder(options.folder)
    for left in ("throughput.csv", "summary.md"):
        (options.folder / left).unlink(missing_ok=True)  # results of an earlier measurement
    for task in options.task_names():
        make_config(task, preset=options.preset)  # refuses what is unknown before anything is measured
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    console = Console()
    found = versions()
    device = torch_device(options.device)
    hardware = found["cpu"] if device.type == "cpu" else torch.cuda.get_device_name(device)
    facts = {"hardware": hardware, "torch threads": threads, "preset": options.preset}
    facts["freed memory"] = "kept" if keep_freed_memory() else "as the C library does by default"
    console.print(", ".join(f"{k} {v}" for k, v in facts.items()), f"torch {found['torch']}", highlight=False)
    every: list[Row] = []
    sections: list[tuple[Section, list[Row]]] = []
    failed: list[str] = []
    lines = ["# Throughput", "", f"{hardware}, {threads} torch threads, preset {options.preset}", ""]

    def keep(r: Row) -> None:
        every.append(replace(r, hardware=hardware))
        write_csv(options.folder / "throughput.csv", FIELDS, [vars(r) for r in every])  # whoever ends it early has this

    for section, rows in measure(options, console, keep, failed):
        sections.append((section, rows))
        table = table_of(section, rows)
        if not options.quick:
            console.print(rich_table(console, *table))
        lines += [f"## {table.title}", "", markdown_table(table.header, table.rows)]
        with failures_kept() as undrawn:
            draw(options.folder / f"{section}.png", section, rows)
        for sentence in not_drawn(undrawn):
            console.print(sentence, highlight=False)
            lines += [sentence, ""]
        content = [*lines, *(line for sentence in failed for line in (sentence, "")), *provenance(facts)]
        write_atomically(options.folder / "summary.md", "\n".join(content) + "\n")
    if not every and not failed:
        raise InputError("nothing was measured: none of the chosen tasks has one of the chosen backends here")
    if options.json is not None:
        rows_of_json = [{k: None if v != v else v for k, v in vars(r).items()} for r in every]
        content = {"versions": found, **facts, "rows": rows_of_json}
        write_atomically(options.json, json.dumps(content, indent=1) + "\n")
    if options.quick:
        title = f"{hardware}, {threads} torch threads, torch {found['torch']}, preset {options.preset}"
        print("", page(title, sections, failed), sep="\n")
    console.print(f"Written to {options.folder}", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    with show_log(lambda text: print(text, file=sys.stderr, flush=True)):
        sys.exit(script_exit_code(lambda: main(tyro.cli(Options, description=__doc__)), resumes=False))
