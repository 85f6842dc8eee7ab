"""The words say what the numbers say; files and figures hold what they should."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from mage_diffsim.experiments import report
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.figures import Panel, draw, line
from mage_diffsim.experiments.statistics import Interval
from mage_diffsim.settings import make_config

SPREAD = (-1.0, 0.0, 1.0)
"""Three seeds around a mean; the 95% interval is then +- 2.48 spreads."""


def rows(
    method="mage-td3",
    dynamics="learned",
    backend="",
    *,
    task="Pendulum",
    returns=-500.0,
    error=1.0,
    cosine=0.5,
    solved=(None, None, None),
    nonfinite=0,
    restarts=0,
    spread=1.0,
    seeds=3,
):
    """Summary rows of one cell."""
    return [
        dict(
            task=task,
            method=method,
            dynamics=dynamics,
            backend=backend,
            variant="",
            seed=seed,
            env_steps=1000,
            final_return=returns + 10.0 * spread * SPREAD[seed],
            mean_return=returns - 100.0 + 10.0 * spread * SPREAD[seed],
            steps_to_threshold=solved[seed],
            gradient_error=error * (1.0 + 0.05 * spread * SPREAD[seed]),
            gradient_cosine=cosine,
            nonfinite=nonfinite,
            restarts=restarts,
            updates_per_s=100.0,
            wall_s=10.0,
        )
        | {"lambda": 0.2}
        for seed in range(seeds)
    ]


def said(*cells, threshold=-200.0):
    """All sentences about these cells."""
    return report.findings([row for cell in cells for row in cell], {"Pendulum": threshold, "CartPole": 475.0})


def sentence(sentences, *words):
    """The only sentence with all of these words."""
    found = [s for s in sentences if all(w in s for w in words)]
    assert len(found) == 1, f"{words}: {found or sentences}"
    return found[0]


def test_solved_and_unsolved_cells_are_named_with_when():
    text = said(
        rows(dynamics="oracle", backend="torch", solved=(400, 500, 600)),
        rows(solved=(None, 800, None)),
        rows("dyna-td3"),
    )[0]
    assert "by every seed: MAGE-TD3, oracle (torch) (step 500)" in text
    assert "by some seeds: MAGE-TD3, learned (1 of 3, step 800)" in text
    assert "by no seed: Dyna-TD3, learned" in text


def test_when_nothing_solves_the_task_the_sentence_says_so():
    assert said(rows())[0] == "Pendulum was solved by no cell: no evaluation reached a mean return of -200."


SOLVED = {"Pendulum": -200.0, "CartPole": 195.0}


@pytest.mark.parametrize(("threshold", "cell"), [(None, "-"), (-200.0, "0 of 3 seeds")])
def test_the_table_counts_solving_seeds_only_where_a_return_counts_as_solved(threshold, cell):
    (row,) = report.table_rows(report.groups_of(rows()), {"Pendulum": threshold})
    assert row[report.HEADER.index("solved at step")] == cell


def test_a_task_without_a_solved_return_is_not_called_solved():
    assert said(rows(), threshold=None)[0] == "Pendulum: no return counts as solved."


def test_a_better_oracle_is_called_better_in_return_and_in_gradient_error():
    found = said(rows(returns=-500, error=1.0), rows(dynamics="oracle", backend="torch", returns=-150, error=0.2))
    text = sentence(found, "final return", "seed by seed")
    assert "oracle (torch) -150" in text and "against learned -500 ± 25: better (higher, by 350 ± 0" in text
    assert "better (lower, 0.200 [0.2, 0.2] times it" in sentence(found, "gradient error", "seed by seed")


def test_a_worse_oracle_is_called_worse():
    found = said(rows(returns=-150, error=0.2), rows(dynamics="oracle", backend="torch", returns=-500, error=1.0))
    assert "worse (lower, by -350 ± 0" in sentence(found, "final return", "seed by seed")
    assert "worse (higher, 5.00 [5, 5] times it" in sentence(found, "gradient error", "seed by seed")


def test_what_differs_less_than_its_interval_is_not_called_a_difference():
    oracle = rows(dynamics="oracle", backend="torch", returns=-150, error=1.0, spread=1)
    found = said(rows(returns=-180, spread=9), oracle)  # 30 ± 199 apart, seed by seed
    assert "not told apart (by 30.0 ± 198.7, seed by seed)" in sentence(found, "final return", "oracle (torch)")
    assert not any("better (" in s or "worse (" in s for s in found)
    assert any("need not be equal" in s for s in found)


def test_differences_are_paired_by_seed():
    wide = dict(dynamics="oracle", backend="torch", returns=-150)
    shared = said(rows(returns=-180, spread=9), rows(**wide, spread=9))
    assert "better (higher, by 30.0 ± 0.0" in sentence(shared, "final return", "oracle (torch)")
    others = [row | {"seed": row["seed"] + 3} for row in rows(**wide)]
    assert not any("final return: oracle" in s for s in said(rows(), others)), "no seed in common"


def test_one_seed_is_never_called_a_difference():
    found = said(rows(seeds=1, returns=-500), rows(dynamics="oracle", backend="torch", returns=-150, seeds=1))
    assert "too few seeds for an interval" in sentence(found, "final return", "oracle (torch)")
    assert any("With one seed there is no confidence interval" in s for s in found)
    assert not any("better (" in s for s in found)


def test_oracles_that_agree_and_that_do_not_are_told_apart():
    torch, jax = (rows(dynamics="oracle", backend=b) for b in ("torch", "jax"))
    assert sentence(said(torch, jax), "oracle (torch) and oracle (jax) are not told apart, as")
    warp = rows(dynamics="oracle", backend="warp", returns=-100)
    text = sentence(said(torch, jax, warp), "though their equations are the same")
    assert "oracle (torch) and oracle (warp) in final return" in text
    assert "oracle (torch) and oracle (jax)" not in text


def four(learned, values, gradients, both, **more):
    """Cells of the four kinds of dynamics with these returns."""
    kinds = (("learned", learned), ("hybrid-learned-gradients", values), ("hybrid-oracle-gradients", gradients),
             ("oracle", both))  # fmt: skip
    return [rows(dynamics=k, backend="" if k == "learned" else "warp", returns=y, **more) for k, y in kinds]


@pytest.mark.parametrize(
    ("returns", "values", "gradients", "interaction", "told"),
    [
        ((-500.0, -500.0, -150.0, -150.0), (0, 0), (350, 350), 0,
         "oracle gradients with learned values (above), oracle gradients with oracle values (above) and both (above)"),
        ((-500.0, -150.0, -500.0, -150.0), (350, 350), (0, 0), 0,
         "oracle values with learned gradients (above), oracle values with oracle gradients (above) and both (above)"),
        ((-500.0, -400.0, -600.0, -500.0), (100, 100), (-100, -100), 0,
         "oracle values with learned gradients (above), oracle values with oracle gradients (above), oracle gradients "
         "with learned values (below) and oracle gradients with oracle values (below)"),
        ((-500.0, -500.0, -500.0, -100.0), (0, 400), (0, 400), 400,
         "oracle values with oracle gradients (above), oracle gradients with oracle values (above) and both (above)"),
        ((-500.0, -500.0, -500.0, -500.0), (0, 0), (0, 0), 0, None),
    ],
)  # fmt: skip
def test_values_and_gradients_are_said_for_either_kind_of_the_other(returns, values, gradients, interaction, told):
    def bring(x):
        return f"{x}.00 ± 0.00" if x == 0 else f"{x} ± 0"

    verdict = f"Told apart: {told}" if told else "None is told apart from no effect"
    found = said(*four(*returns))
    for column in ("final return", "mean return over training"):
        text = sentence(found, f"{column}, seed by seed: oracle values")
        assert f"oracle values with learned gradients {bring(values[0])}; oracle values with" in text
        assert f"oracle values with oracle gradients {bring(values[1])}; oracle gradients" in text
        assert f"oracle gradients with learned values {bring(gradients[0])}; oracle gradients" in text
        both = bring(int(returns[3] - returns[0]))
        assert f"oracle gradients with oracle values {bring(gradients[1])}; both {both}; interaction" in text
        assert text.endswith(f"; interaction {bring(interaction)}. {verdict}.")


def test_values_and_gradients_are_paired_by_seed():
    learned, values, gradients, both = four(-500.0, -500.0, -400.0, -400.0, spread=10.0)
    start = "final return, seed by seed: oracle values"
    assert "oracle gradients with oracle values (above)" in sentence(said(learned, values, gradients, both), start)
    for row in gradients + both:
        row["final_return"] = -900.0 - row["final_return"]  # the same means and spreads, but of other seeds
    assert "None is told apart from no effect." in sentence(said(learned, values, gradients, both), start)


def test_of_fewer_cells_the_effects_that_can_be_said_are():
    learned, _, gradients, both = four(-500.0, -500.0, -150.0, -150.0)
    text = sentence(said(learned, gradients, both), "final return, seed by seed: oracle values")
    assert "oracle gradients with learned values 350 ± 0; both 350 ± 0. Told" in text and "interaction" not in text
    assert "with learned gradients" not in text
    assert not any("seed by seed: oracle" in s for s in said(learned, both))
    (text,) = (s for s in said(*four(-500.0, -500.0, -150.0, -150.0, seeds=1)) if "final return, seed by seed" in s)
    assert text.endswith("Too few seeds for an interval.")


def test_effects_on_the_gradient_are_ratios_of_errors_and_differences_of_cosines():
    learned, values, gradients, both = four(-500.0, -500.0, -500.0, -500.0)
    for row in gradients + both:
        row["gradient_error"] *= 0.5
        row["gradient_cosine"] += 0.25
    found = said(learned, values, gradients, both)
    assert "with learned values 0.500 [0.5, 0.5]" in sentence(found, "gradient error (ratios), seed by seed")
    assert "with learned values 0.250 ± 0.000" in sentence(found, "cosine, seed by seed")


def test_sentences_of_several_lambdas_say_which():
    both = [*four(-500.0, -500.0, -150.0, -150.0), rows("dyna-td3")]
    cells = [[row | {"lambda": lam} for row in cell] for lam in (0.05, 0.2) for cell in both]
    found = said(*cells)
    for start in ("final return, seed by seed: oracle", "final return: MAGE-TD3, learned"):
        mine = [s for s in found if start in s]
        assert [s.split(", ")[1] for s in mine] == ["λ = 0.05", "λ = 0.2"]


def test_one_exploding_trajectory_does_not_hide_a_smaller_gradient_error():
    exploded = rows(dynamics="oracle", backend="torch", error=0.01)
    exploded[0]["gradient_error"] *= 3.0  # the arithmetic interval would reach from below zero to over 0.05
    assert "0.0144 [" in sentence(said(rows(), exploded), "gradient error", "oracle (torch)", "better (lower, ")


def test_mage_is_compared_with_dyna_on_the_same_model():
    found = said(rows(error=0.3), rows("dyna-td3", error=2.0))
    text = sentence(found, "gradient error", "Dyna-TD3")
    assert "MAGE-TD3, learned 0.300 [" in text and "better (lower, 0.150 [" in text


def test_nonfinite_rows_are_reported_and_zero_is_not():
    assert "gave 6 batch rows that were not finite" in sentence(said(rows(nonfinite=2)), "not finite")
    assert not any("not finite" in s for s in said(rows()))


def test_a_cosine_without_a_true_gradient_is_a_dash_with_its_reason():
    cells = rows(task="CartPole", cosine=math.nan)
    table = report.table_rows(report.groups_of(cells), SOLVED)
    assert table[0][report.HEADER.index("cosine")] == "-"
    assert "true action-gradient is exactly zero" in sentence(said(cells), "cosine is undefined")
    assert not any("cosine is undefined" in s for s in said(rows()))


def test_table_shows_skipped_cells_with_the_reason(tmp_path):
    cell = Cell("x", make_config("Pendulum", dynamics="oracle", backend="jax"))
    skipped = Outcome(cell, tmp_path, "skipped", "jax is not installed: pip install 'mage-diffsim[mjx]'")
    table = report.table_rows(report.groups_of(rows(solved=(100, None, 300))), SOLVED, [skipped])
    assert table[0][:4] == ("Pendulum", "MAGE-TD3, learned", "-500 ± 25", "0.999 [0.882, 1.13]")
    assert table[0][report.HEADER.index("solved at step")] == "200 (2 of 3 seeds)"
    assert table[1][1:3] == ("MAGE-TD3, oracle (jax)", "skipped: " + skipped.reason)
    assert skipped.reason in printed(table, 300)
    assert report.markdown_table(report.HEADER, table).count("\n") == 4


def printed(table, width):
    """The table as a console of this width prints it."""
    console = Console(file=io.StringIO(), width=width)
    console.print(report.rich_table(console, "title", report.HEADER, table))
    return console.file.getvalue()


HYBRIDS = [
    row
    for kind in ("oracle", "hybrid-oracle-gradients", "hybrid-learned-gradients")
    for row in rows(dynamics=kind, backend="torch", returns=-1434.0, spread=30.0, solved=(2500, 3000, None))
]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_every_column_is_shown_whole_whatever_the_terminals_width(width):
    table = report.table_rows(report.groups_of([*rows(), *HYBRIDS]), SOLVED)
    text = printed(table, width)
    assert all(len(line) <= width for line in text.splitlines()) and "…" not in text
    cells = {cell.strip() for line in text.splitlines() for cell in line.replace("┃", "│").split("│")}
    assert set(report.HEADER) <= cells
    keys, rest = {c for row in table for c in row[:2]}, {c for row in table for c in row[2:]}
    assert rest <= cells, "no number is wrapped"
    for key in keys:  # a name may be, at its spaces
        assert key in cells or all(any(word in cell.split() for cell in cells) for word in key.split())


def test_a_reason_of_any_length_leaves_the_other_columns_readable(tmp_path):
    cell = Cell("x", make_config("Pendulum", dynamics="oracle", backend="jax"))
    failed = Outcome(cell, tmp_path, "failed", "Traceback ...\n" + "RuntimeError: " + "something went wrong " * 20)
    text = printed(report.table_rows(report.groups_of(rows()), SOLVED, [failed]), 80)
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text and "0.999 [0.882, 1.13]" in text
    assert text.count("something") == 20


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Interval(-149.73, 12.31, 3), "-150 ± 12"),
        (Interval(0.04567, 0.0123, 3), "0.0457 ± 0.0123"),
        (Interval(2.0, math.nan, 1), "2.00"),
        (Interval(2.0, 1.5, 3, geometric=True), "2.00 [1.33, 3]"),
        (Interval(2.0, math.nan, 1, geometric=True), "2.00"),
        (Interval(math.nan, math.nan, 0), "-"),
        (Interval(math.inf, math.nan, 3), "inf"),
        (Interval(0.0, 0.0, 3), "0.00 ± 0.00"),
    ],
)
def test_numbers_are_shown_to_three_digits(value, shown):
    assert report.text(value) == shown


def test_lambdas_are_named_only_where_they_differ():
    two = [dict(row) | {"lambda": lam} for lam in (0.05, 0.2) for row in rows()]
    groups = report.groups_of(two)
    assert [report.label(g, groups) for g in groups] == ["MAGE-TD3, learned, λ = 0.05", "MAGE-TD3, learned, λ = 0.2"]
    assert report.label(groups[0], groups[:1]) == "MAGE-TD3, learned"


def test_csv_leaves_absent_numbers_empty_and_no_temporary_file(tmp_path):
    path = tmp_path / "x.csv"
    report.write_csv(path, ("a", "b", "c"), [{"a": 1, "b": None, "c": math.nan, "more": 5}])
    assert path.read_text() == "a,b,c\n1,,\n"
    assert list(tmp_path.iterdir()) == [path]


def test_figure_is_drawn_with_one_seed_with_bands_and_with_nothing(tmp_path):
    curves = [{"env_step": s, "seed": k, "y": 1.0 + s + k, "none": math.nan} for s in (0, 10, 20) for k in (0, 1)]
    shown, empty = line("both", curves, "y", "#000000"), line("none", curves, "none", "#000000")
    single = line("one", [r for r in curves if r["seed"] == 0], "y", "#0072B2", "--")
    assert [v.n for _, v in shown.points] == [2, 2, 2] and empty.points == () and not single.points[0][1].known
    panels = [Panel("a", "y", (shown, single), log=True, level=(5.0, "level")), Panel("b", "y", (empty,), note="none")]
    draw(tmp_path / "f.png", "title", [panels])
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


def test_runs_that_began_anew_are_named():
    assert not any("began anew" in sentence for sentence in said(rows()))
    (sentence,) = (s for s in said(rows(restarts=2, seeds=1)) if "began anew" in s)
    assert sentence.endswith("less training: Pendulum, MAGE-TD3, learned, seed 0 (2x).")
