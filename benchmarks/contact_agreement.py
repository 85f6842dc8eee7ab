"""Does backend ``warp`` find the contacts of two geoms that MuJoCo C finds, and if not, why?

    python benchmarks/contact_agreement.py                  # 10,000 states of each pair of kinds: minutes
    python benchmarks/contact_agreement.py --quick          # 500 states
    python benchmarks/contact_agreement.py --pairs box-box cylinder-box

The states have faces, edges, corners, rims and tips of two geoms together: face on face, edge on edge, a cylinder on
its rim or side, a capsule along an edge, centres inside. Angles between them are 0 or of any size from 1e-12 to 0.1,
gaps are 0 or the margin, exactly or nearly, or the geoms overlap. Sizes differ by up to 20 times; some ellipsoids are
nearly spheres or flat as coins. MuJoCo C looks for contacts to convergence. Writes results.csv and summary.md.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from contact_pairs.finding import Judge, finder
from contact_pairs.judging import VERDICTS, verdict
from contact_pairs.states import PAIRS, poses, shapes

from mage_diffsim.errors import InputError, unknown_name
from mage_diffsim.experiments.command import script_exit_code
from mage_diffsim.experiments.summary import write_summary
from mage_diffsim.experiments.tables import Table, write_csv
from mage_diffsim.files import make_folder

MODELS = 20
"""Sizes of the geoms that each pair is tried with."""
NAMES = {"-".join(kinds): kinds for kinds in PAIRS}
MEANING = {
    "equal": "the same contacts, in any order: to 1e-9 where C is exact, else to 1e-6, and single distances to 1e-10",
    "ill-posed": "C finds other contacts when the poses move by 1e-13",
    "C inexact": "C's distance is not the one along its normal, or C finds none of two geoms that touch",
    "same distance": "another point or normal at the same distance, to 1e-10",
    "equally short": "ways out of each other whose lengths differ by less than 1e-4 of the smallest size",
    "rest": "anything else",
}
FIELDS = ("pair", "states", "touching", "same number", "same order", *VERDICTS)


@dataclass(frozen=True)
class Options:
    """What to compare."""

    pairs: tuple[str, ...] = ()
    """Pairs of kinds, such as box-box; by default all."""
    states: int = 10_000
    """States of each pair."""
    seed: int = 0
    """Seed of the states."""
    out: Path = Path("runs/contact_agreement")
    """Folder for results."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """500 states of each pair."""

    def resolved(self) -> Options:
        """The options with the defaults that depend on other flags.

        Raises:
            InputError: a flag has a value that cannot be compared.
        """
        for name in self.pairs:
            if name not in NAMES:
                raise unknown_name("pair of kinds", name, NAMES)
        if self.states < MODELS:
            raise InputError(f"--states is {self.states}; accepted is {MODELS} or more")
        states = 500 if self.quick else self.states
        return dataclasses.replace(self, states=states, pairs=self.pairs or tuple(NAMES))


def compare(name: str, states: int, seed: int) -> dict[str, Any]:
    """A row of results.csv."""
    kinds, rng, counts = NAMES[name], np.random.default_rng(seed), collections.Counter()
    find = finder(kinds)
    for model in range(MODELS):
        judge = Judge(kinds, shapes(kinds, rng), (0.0, 0.02)[model % 2])
        tried, _ = poses(kinds, judge.sizes, judge.margin, rng, states // MODELS)
        places, expected = judge.every(tried)
        found = find.contacts(places, judge.sizes, judge.margin)
        for state, place, ours, theirs in zip(tried, places, found, expected, strict=True):
            counts["states"] += 1
            counts["touching"] += len(theirs) > 0
            counts["same number"] += len(ours) == len(theirs)
            said = verdict(ours, theirs, judge, state, place, rng)
            counts[said] += 1
            counts["same order"] += said == "equal" and bool(np.allclose(ours, theirs, rtol=0.0, atol=2e-6))
    return {"pair": name, **{field: counts[field] for field in FIELDS[1:]}}


def report(rows: list[dict[str, Any]], out: Path) -> None:
    """Writes results.csv and summary.md."""
    write_csv(out / "results.csv", FIELDS, rows)
    total = {field: sum(row[field] for row in rows) for field in FIELDS[1:]}
    explained = total["states"] - total["equal"] - total["rest"]
    sentences = [
        f"Of {total['states']} states, {total['equal']} have the same contacts on warp and in MuJoCo C.",
        f"Of the others, {explained} are explained, and {total['rest']} are not.",
    ]
    tables = [
        Table("Contacts", FIELDS, [[str(row[field]) for field in FIELDS] for row in rows]),
        Table("Columns", ("column", "meaning"), [list(x) for x in MEANING.items()]),
    ]
    write_summary(out / "summary.md", "Contacts of warp and MuJoCo C", sentences, tables)


def run(options: Options) -> int:
    """Compares every pair; returns 0."""
    options = options.resolved()
    make_folder(options.out)
    rows = []
    for name in options.pairs:
        rows.append(compare(name, options.states, options.seed))
        print(*(f"{field} {rows[-1][field]}" for field in FIELDS), sep=", ", flush=True)
    report(rows, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(script_exit_code(lambda: run(tyro.cli(Options, description=__doc__)), resumes=False))
