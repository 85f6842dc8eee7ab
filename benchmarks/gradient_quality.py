"""How accurate are the gradients of one environment step, of every simulator backend and of the learned model?

    python benchmarks/gradient_quality.py --quick                      # three tasks, a few minutes on a CPU
    python benchmarks/gradient_quality.py --backends mujoco --states 128
    python benchmarks/gradient_quality.py --sweep                      # which step should finite differences take?
    python benchmarks/gradient_quality.py --soak 100000                # is anything not finite in so many states?

The truth is central differences of the task's first backend in float64, each state at its best step size. The error of
a state is max|J - J_fd| / max|J_fd|, apart for the derivatives by action, position and velocity. States with a kink
(the set of active constraints changes there) are unclean and reported apart. Every finished part is kept in the out
folder and not measured again. Writes gradient_quality.csv, figure.png and summary.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import tyro
from jacobian_checks.accuracy import run_accuracy
from jacobian_checks.options import Options
from jacobian_checks.soak import run_soak
from jacobian_checks.sweep import run_sweep

from mage_diffsim.display import show_log
from mage_diffsim.experiments.command import script_exit_code


def main(parse: Callable[[], Options]) -> int:
    """Answers the question that the flags ask; returns the exit code."""

    def run() -> int:
        options = parse()
        with show_log(lambda text: print(text, file=sys.stderr, flush=True)):
            if options.soak is not None:
                return run_soak(options, options.soak)
            return run_sweep(options) if options.sweep else run_accuracy(options)

    return script_exit_code(run)


if __name__ == "__main__":
    sys.exit(main(lambda: tyro.cli(Options, description=__doc__)))
