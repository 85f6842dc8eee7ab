"""Is a backend right on models that it has never seen? Every MJCF model of a folder against MuJoCo C, called directly.

    python benchmarks/against_mujoco.py gymnasium:                   # the models that come with gymnasium
    python benchmarks/against_mujoco.py tests/envs/models --quick    # small models, a minute
    python benchmarks/against_mujoco.py my_models robot.xml --backends warp --dtypes float64

Each model becomes a task around its unchanged XML: one simulator step per action, the state as observation. The
reference is ``mujoco.mj_step`` with the solver converged (Newton, tolerance 1e-26), started anew for every state.
States are *visited* (random actions from the model's initial configuration) or *thrown* (random joint angles, heights,
orientations and velocities, some of them in the ground). Derivatives are compared with central differences of the same
steps at clean states, in the tangent space where there are quaternions.

Each model and backend is measured in a process of its own with a time limit, so a crash is a row of the table.
Interrupt it at any time; the same command goes on where it stopped. Writes results.csv and summary.md. The error of a
value is |x - x_C| / max(1, |x_C|) of the next state, that of a derivative max|J - J_C| / max|J_C|. States from
which MuJoCo C itself diverges are left out and counted.
"""

from __future__ import annotations

import shlex
import sys

import tyro
from mujoco_agreement.measuring import FIELDS, measure_all
from mujoco_agreement.options import Options
from mujoco_agreement.report import tables, verdict

from mage_diffsim.experiments.command import script_exit_code
from mage_diffsim.experiments.summary import write_summary
from mage_diffsim.experiments.tables import write_csv
from mage_diffsim.files import make_folder, write_atomically
from mage_diffsim.model_checks.finding import find_models


def run(options: Options) -> int:
    """Measures what is not finished and reports the whole out folder; returns 1 if something crashed, else 0."""
    options = options.resolved()
    found = find_models(options.paths)
    models, left_out = found.models, found.parts | found.broken
    make_folder(options.out)
    rows = measure_all(models, options)
    order = {model.name: i for i, model in enumerate(models)}
    rows.sort(key=lambda r: (order.get(r["model"], len(order)), r["backend"]))
    write_csv(options.out / "results.csv", FIELDS, rows)
    title = f"Backends against MuJoCo C: {options.title or ', '.join(options.paths)}"
    earlier = _earlier_commands(options)
    facts = {"earlier commands": "; ".join(f"`{command}`" for command in earlier)} if earlier else {}
    write_summary(options.out / "summary.md", title, verdict(rows), tables(rows, left_out), facts)
    return int(any(r["status"].startswith("failed") for r in rows))


def _earlier_commands(options: Options) -> list[str]:
    """The other commands that measured into the same folder; this one is added to them."""
    command = shlex.join(["python", "benchmarks/against_mujoco.py", *sys.argv[1:]])
    kept = options.out / "commands.txt"
    earlier = [line for line in (kept.read_text().splitlines() if kept.exists() else []) if line != command]
    write_atomically(kept, "\n".join([*earlier, command]) + "\n")
    return earlier


if __name__ == "__main__":
    sys.exit(script_exit_code(lambda: run(tyro.cli(Options, description=__doc__))))
