"""Verdict, tables and figure of a sweep over dynamics say what the numbers say."""

from __future__ import annotations

import math

import pytest

from mage_diffsim.envs.registry import make_task
from mage_diffsim.experiments import comparison
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.comparison import EFFECTS_HEADER, HEADER, effect_rows, notes, table_rows, verdict
from mage_diffsim.experiments.groups import Group, groups_of, label, paired
from mage_diffsim.settings import make_config
from tests.experiments.summaries import four, oracle, rows

TASKS = {name: make_task(name) for name in ("Pendulum", "CartPole", "HalfCheetah")}


def groups(*cells):
    return groups_of([row for cell in cells for row in cell])


def told(*cells):
    """The table's rows as dictionaries."""
    return [dict(zip(HEADER, row, strict=True)) for row in table_rows(groups(*cells), TASKS)]


def changed(*cells):
    """(replaced by, beside) to the rest of the second table's rows."""
    found = (dict(zip(EFFECTS_HEADER, row, strict=True)) for row in effect_rows(groups(*cells), TASKS))
    return {(row["learned replaced by"], row["beside"]): row for row in found}


# --- verdict ---------------------------------------------------------------------------------------------------------


def test_the_verdict_is_three_lines_of_at_most_eighty_characters():
    cells = [*four(-500.0, -150.0, -900.0, -500.0, solved=(400, 500, None)), rows("dyna-td3", returns=-1400.0)]
    found = verdict(groups(*cells), TASKS)
    assert found == [
        "Solved: MAGE-TD3 8 of 12 runs, Dyna-TD3 0 of 3 runs.",
        "Return, oracle/hybrid against learned: 1 better, 1 worse, 1 not told apart.",
        "Return, MAGE against Dyna: 1 better.",
    ]
    assert max(map(len, found)) <= 80


def test_a_task_without_a_solved_return_is_not_called_solved():
    assert verdict(groups(rows(task="HalfCheetah")), TASKS) == []
    assert told(rows(task="HalfCheetah"))[0]["solved at step"] == "-"
    assert told(rows())[0]["solved at step"] == "(0 of 3)"
    assert told(rows(solved=(100, None, 300)))[0]["solved at step"] == "200 (2 of 3)"


def test_one_seed_is_never_called_a_difference():
    cells = rows(seeds=1, returns=-500.0), oracle(returns=-150.0, seeds=1)
    assert verdict(groups(*cells), TASKS)[1] == "Return, oracle/hybrid against learned: one seed tells nothing."
    assert told(*cells)[1]["against learned"] == "-" and told(*cells)[1]["return - learned's"] == "350"
    assert any("nothing here holds beyond that seed" in note for note in notes(groups(*cells), TASKS))


# --- table -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("learned", "both", "word"), [(-500.0, -150.0, "better"), (-150.0, -500.0, "worse")])
def test_an_oracle_is_better_or_worse_in_return_and_in_gradient_error(learned, both, word):
    row = told(rows(returns=learned, error=1.0), oracle(returns=both, error=0.2))[1]
    assert row["against learned"] == word
    assert row["return - learned's"] == f"{both - learned:.0f} ± 0 *"
    assert row["error / learned's"] == "0.200 [0.2, 0.2] *"


def test_what_differs_less_than_its_interval_is_not_called_a_difference():
    row = told(rows(returns=-180.0, spread=9.0), oracle(returns=-150.0))[1]  # 30 ± 199 apart, seed by seed
    assert row["against learned"] == "not told apart" and row["return - learned's"] == "30.0 ± 198.7"


def test_differences_are_paired_by_seed():
    shared = told(rows(returns=-180.0, spread=9.0), oracle(returns=-150.0, spread=9.0))[1]
    assert shared["return - learned's"] == "30.0 ± 0.0 *"
    others = [row | {"seed": row["seed"] + 3} for row in oracle(returns=-150.0)]
    assert told(rows(), others)[1]["return - learned's"] == "-", "no seed in common"


def test_mage_is_compared_with_dyna_on_the_same_dynamics():
    cells = rows(error=0.3), oracle(), rows("dyna-td3", error=2.0), rows("dyna-td3", "oracle", "jax")
    learned, torch, dyna, _ = told(*cells)
    assert learned["error / Dyna's"] == "0.150 [0.15, 0.15] *" and learned["return - Dyna's"] == "0.00 ± 0.00"
    assert torch["return - Dyna's"] == dyna["return - Dyna's"] == "-"
    weights = [[row | {"lambda": lam} for row in rows()] for lam in (0.05, 0.2)]
    assert all(row["return - Dyna's"] != "-" for row in told(*weights, rows("dyna-td3"))[:2])


def test_one_exploding_trajectory_does_not_hide_a_smaller_gradient_error():
    exploded = oracle(error=0.01)
    exploded[0]["gradient_error"] *= 3.0  # the arithmetic interval would reach from below zero to over 0.05
    assert told(rows(), exploded)[1]["error / learned's"].startswith("0.0144 [")
    assert told(rows(), exploded)[1]["error / learned's"].endswith(" *")


def test_masked_rows_and_restarts_are_counted():
    (row,) = told(rows(nonfinite=2, restarts=1))
    assert (row["non-finite"], row["restarts"]) == ("6", "3")


def test_a_cosine_of_one_dimension_or_without_a_truth_is_a_dash():
    assert told(rows(cosine=0.5))[0]["cosine"] == "-", "the sign of Pendulum's one action"
    assert told(rows(task="HalfCheetah", cosine=0.5))[0]["cosine"] == "0.500 ± 0.000"
    assert any(
        "true action-gradient is zero" in note for note in notes(groups(rows(task="CartPole", cosine=math.nan)), TASKS)
    )
    assert not any("gradient is zero" in note for note in notes(groups(rows()), TASKS))


def test_the_table_shows_skipped_cells_with_the_reason(tmp_path):
    cell = Cell("x", make_config("Pendulum", dynamics="oracle", backend="jax"))
    skipped = Outcome(
        cell, tmp_path, "skipped", "jax is not installed: pip install -e '.[mjx]' in the project's folder"
    )
    table = table_rows(groups(rows()), TASKS, [skipped])
    assert table[0][:3] == ("Pendulum", "MAGE-TD3, learned", "-500 ± 25") and len(table[1]) == len(HEADER)
    assert table[1][1:3] == ("MAGE-TD3, oracle (jax)", "skipped: " + skipped.reason)


def test_lambdas_are_named_only_where_they_differ():
    two = groups_of([dict(row) | {"lambda": lam} for lam in (0.05, 0.2) for row in rows()])
    assert [label(g, two) for g in two] == ["MAGE-TD3, learned, λ = 0.05", "MAGE-TD3, learned, λ = 0.2"]
    assert label(two[0], two[:1]) == "MAGE-TD3, learned"
    both = [[row | {"lambda": lam} for row in cell] for lam in (0.05, 0.2) for cell in four(-5.0, -5.0, -5.0, -5.0)]
    assert {row[1] for row in effect_rows(groups(*both), TASKS)} == {"MAGE-TD3, λ = 0.05", "MAGE-TD3, λ = 0.2"}


def test_ratios_leave_out_errors_of_zero():
    one, other = (Group("t", "m", "d", "b", "", 0.2, tuple(cell)) for cell in (rows(), rows(error=0.0)))
    assert paired(one, other, "gradient_error").n == 0


# --- values or gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returns", "values", "gradients", "interaction"),
    [
        ((-500.0, -500.0, -150.0, -150.0), (0, 0), (350, 350), 0),
        ((-500.0, -150.0, -500.0, -150.0), (350, 350), (0, 0), 0),
        ((-500.0, -400.0, -600.0, -500.0), (100, 100), (-100, -100), 0),
        ((-500.0, -500.0, -500.0, -100.0), (0, 400), (0, 400), 400),
        ((-500.0, -500.0, -500.0, -500.0), (0, 0), (0, 0), 0),
    ],
)
def test_values_and_gradients_are_told_beside_either_kind_of_the_other(returns, values, gradients, interaction):
    def bring(x):
        return f"{x}.00 ± 0.00" if x == 0 else f"{x} ± 0 *"

    found = changed(*four(*returns))
    for column in ("return", "mean return"):
        assert {key: row[column] for key, row in found.items()} == {
            ("oracle values", "learned gradients"): bring(values[0]),
            ("oracle values", "oracle gradients"): bring(values[1]),
            ("oracle gradients", "learned values"): bring(gradients[0]),
            ("oracle gradients", "oracle values"): bring(gradients[1]),
            ("both", ""): bring(int(returns[3] - returns[0])),
            ("interaction", ""): bring(interaction),
        }


def test_values_and_gradients_are_paired_by_seed():
    learned, values, gradients, both = four(-500.0, -500.0, -400.0, -400.0, spread=10.0)
    key = "oracle gradients", "oracle values"
    assert changed(learned, values, gradients, both)[key]["return"] == "100 ± 0 *"
    for row in gradients + both:
        row["final_return"] = -900.0 - row["final_return"]  # the same means and spreads, but of other seeds
    assert changed(learned, values, gradients, both)[key]["return"] == "0.00 ± 496.83"


def test_of_fewer_cells_the_effects_that_are_known_are_told():
    learned, _, gradients, both = four(-500.0, -500.0, -150.0, -150.0)
    assert set(changed(learned, gradients, both)) == {
        ("oracle values", "oracle gradients"), ("oracle gradients", "learned values"), ("both", "")
    }  # fmt: skip
    assert not changed(learned, both)


def test_effects_on_the_gradient_are_ratios_of_errors_and_differences_of_cosines():
    learned, values, gradients, both = four(-500.0, -500.0, -500.0, -500.0, task="HalfCheetah")
    for row in gradients + both:
        row["gradient_error"] *= 0.5
        row["gradient_cosine"] += 0.25
    row = changed(learned, values, gradients, both)["oracle gradients", "learned values"]
    assert (row["gradient error"], row["cosine"]) == ("0.500 [0.5, 0.5] *", "0.250 ± 0.000 *")


# --- figure ----------------------------------------------------------------------------------------------------------


def drawn(monkeypatch, tmp_path, task, **changes):
    """The panels that the figure of a task's curves has."""
    found = []
    monkeypatch.setattr(comparison, "draw", lambda path, title, grid: found.extend(grid))
    curves = [
        row | dict(env_step=step, return_mean=-5.0, gradient_error=0.5, gradient_cosine=0.1) | changes
        for cell in (rows(task=task), oracle(task=task))
        for row in cell
        for step in (0, 10)
    ]
    comparison.comparison_figure(tmp_path / "f.png", curves, TASKS)
    (row,) = found
    return {panel.title.partition(": ")[2]: panel for panel in row}


def test_panels_that_say_nothing_for_a_task_are_left_out(monkeypatch, tmp_path):
    assert set(drawn(monkeypatch, tmp_path, "Pendulum")) == {"return", "gradient error (Eq. 14)"}
    assert set(drawn(monkeypatch, tmp_path, "Pendulum", gradient_error=None)) == {"return"}
    panels = drawn(monkeypatch, tmp_path, "HalfCheetah")
    assert set(panels) == {"return", "gradient error (Eq. 14)", "gradient cosine"} and panels["return"].level is None
    assert [len(line.runs) for line in panels["return"].lines] == [3, 3]
