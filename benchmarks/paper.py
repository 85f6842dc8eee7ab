"""Experiments of the MAGE paper, one subcommand each. Each is resumable and writes CSV, a figure and what was found."""

from __future__ import annotations

import sys

import tyro
from paper_experiments.asymptotic import Asymptotic
from paper_experiments.capacity import Capacity
from paper_experiments.gradient_error import GradientError
from paper_experiments.graph import Graph
from paper_experiments.lambda_ import Lambda
from paper_experiments.learned_reward import LearnedReward
from paper_experiments.performance import Performance
from paper_experiments.unconstrained import Unconstrained

from mage_diffsim import IMPORTED
from mage_diffsim.errors import unknown_name
from mage_diffsim.experiments.command import Experiment, main

EXPERIMENTS: dict[str, type[Experiment]] = {
    "performance": Performance,
    "gradient-error": GradientError,
    "unconstrained": Unconstrained,
    "learned-reward": LearnedReward,
    "capacity": Capacity,
    "lambda": Lambda,
    "asymptotic": Asymptotic,
    "graph": Graph,
}
"""Subcommand to its experiment."""


def parse() -> Experiment:
    """The experiment that the command line names.

    Raises:
        InputError: there is none of that name.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "-"
    if not name.startswith("-") and name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    return tyro.extras.subcommand_cli_from_dict(EXPERIMENTS, description=__doc__)


if __name__ == "__main__":
    sys.exit(main(parse, IMPORTED))
