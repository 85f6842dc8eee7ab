"""The paper's experiments: their cells, and that the words follow from the numbers."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from paper import EXPERIMENTS, parse
from paper_experiments.asymptotic import Asymptotic
from paper_experiments.capacity import Capacity
from paper_experiments.comparison import Comparison, best_of, peaks_of, smoothed
from paper_experiments.gradient_error import GradientError, error_rows, error_verdict
from paper_experiments.lambda_ import Lambda
from paper_experiments.learned_reward import LearnedReward
from paper_experiments.performance import Performance
from paper_experiments.unconstrained import HEADER as COLLAPSE_HEADER
from paper_experiments.unconstrained import Unconstrained, collapse_verdict, gradient_rows
from paper_experiments.verdicts import Claim, pair_rows, pair_verdict, speed_columns, steps_of

from mage_diffsim.errors import InputError
from mage_diffsim.experiments.autograd_graph import computation_graph, update_tensors
from mage_diffsim.experiments.command import main, run
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer


def last(q0, q2, reward=0.005):
    """Last rows of two seeds per lambda, with |grad_a Q| of lambda = 0 and of 0.2."""
    rest = {"grad_q_through_dynamics": 1.0, "return_mean": -100.0, "grad_reward": reward}
    return {lam: [{"grad_q": q * f, **rest} for f in (0.9, 1.1)] for lam, q in ((0.0, q0), (0.2, q2))}


def test_unconstrained_trains_every_lambda_and_seed_in_one_cell():
    (cell,) = Unconstrained(seeds=(3, 4), steps=600).cells()
    config = cell.config
    assert (config.method, config.dynamics, config.backend) == ("mage-ddpg", "oracle", "torch")
    assert config.runs == ((3, 0.0), (4, 0.0), (3, 0.2), (4, 0.2)) and (config.steps, config.eval_every) == (600, 12)


def test_a_gradient_below_a_hundredth_of_the_rewards_is_counted():
    zero, contrast = gradient_rows(last(1e-5, 1.0))
    column = COLLAPSE_HEADER.index("seeds below 1%")
    assert (zero[0], zero[column]) == ("0", "2 of 2") and (contrast[0], contrast[column]) == ("0.2", "0 of 2")
    assert collapse_verdict(last(1e-5, 1.0))[-1] == "λ = 0: |∇ₐ Q| is below 1% of |∇ₐ r| in 2 of 2 seeds."


def test_collapse_beside_the_contrast_is_told_seed_by_seed():
    column = COLLAPSE_HEADER.index("|∇ₐ Q| of λ = 0 / this")
    zero, contrast = gradient_rows(last(0.005, 1.0))
    assert zero[column : column + 2] == ("-", "-")
    assert contrast[column : column + 2] == ("0.00500 [0.005, 0.005]", "collapse")
    assert collapse_verdict(last(0.005, 1.0))[0] == "Without the TD error, beside λ = 0.2: collapse."
    assert collapse_verdict(last(0.5, 1.0))[0].endswith(": no collapse.")
    apart = last(0.5, 1.0)
    apart[0.0][0]["grad_q"] = 1e-6
    assert collapse_verdict(apart)[0].endswith(": not told.")


def test_a_run_that_ended_in_its_warm_up_has_nothing_to_say():
    rows = [dict.fromkeys((*Unconstrained.CURVES, "return_mean"))]
    assert "ended before their first critic update" in collapse_verdict({0.0: rows})[0]
    assert set(gradient_rows({0.0: rows})[0][1:]) == {"-"}


@pytest.mark.parametrize("steps", [0, -5])
def test_steps_are_not_silently_replaced(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}; accepted is 1 or more"):
        Unconstrained(steps=steps).cells()


def test_every_experiment_of_the_paper_has_cells_of_every_size():
    assert {"performance", "gradient-error", "unconstrained", "learned-reward", "capacity", "lambda", "asymptotic",
            "graph"} == set(EXPERIMENTS)  # fmt: skip
    for name, experiment in EXPERIMENTS.items():
        assert name == experiment.NAME
        for size in ("smoke", "cpu", "paper"):
            cells = experiment(size=size).cells()
            assert len({c.name for c in cells}) == len(cells) > 0
            presets = {c.config.preset for c in cells}
            assert presets == ({"paper"} if size == "paper" and name != "graph" else {"cpu"})
            if size == "paper" and name in ("performance", "learned-reward", "capacity", "lambda"):
                assert {c.config.steps for c in cells} == {100_000} and {len(c.config.seeds) for c in cells} == {5}
    assert Performance(size="paper").cells()[0].config.hyper.updates_per_step == 10


def test_paper_sizes_are_those_of_appendix_d_2():
    six = ["CartPole", "HalfCheetah", "Pendulum", "Pusher", "Swimmer", "Walker2d"]
    for name, tasks, lam in (
        ("performance", six, 0.2),
        ("learned-reward", six, 0.05),
        ("capacity", ["Pusher"], 0.05),
        ("asymptotic", ["HalfCheetah"], 0.05),
    ):
        configs = [cell.config for cell in EXPERIMENTS[name](size="paper").cells()]
        assert sorted({config.task for config in configs}) == tasks, name
        assert {(config.eval_every, config.eval_episodes) for config in configs} == {(1000, 10)}, name
        assert {config.lambdas for config in configs} == {(lam,)}, name
    assert {c.config.eval_every for c in Lambda(size="paper").cells()} == {1000}
    members = [c.config.hyper.ensemble_hidden for c in Capacity(size="paper").cells()[:3]]
    assert members == [(512,) * 4, (256,) * 4, (256,) * 2]


def test_table_1_gives_td3_its_ten_million_steps_and_ten_runs_unless_flags_say_otherwise():
    sizes = {c.name: (c.config.steps, len(c.config.seeds)) for c in Asymptotic(size="paper").cells()}
    assert sizes == {
        "HalfCheetah_MAGE-TD3": (3_000_000, 5),
        "HalfCheetah_Dyna-TD3": (3_000_000, 5),
        "HalfCheetah_TD3": (10_000_000, 10),
    }
    given = Asymptotic(size="paper", steps=5000, seeds=(3,)).cells()
    assert {(c.config.steps, c.config.seeds) for c in given} == {(5000, (3,))}


def test_cells_of_the_paper_that_were_not_run_are_named_with_what_they_cost():
    runs = [{"task": "Pendulum", "variant": name, "env_steps": 10_000} for name in Performance.VARIANTS] * 5
    rows = Performance().not_run(runs)
    # 3.75 ms a step, 10 updates of 2.97 ms, 120 / 25 model batches of 2.76 ms: 1.3 h for 100,000 steps
    assert rows[4] == ("CartPole", "MAGE-TD3", "100,000", "5", "1.3", "500") and len(rows) == 24
    assert rows[0][:2] == ("Pendulum", "MAGE-TD3"), "a smaller size is not the paper's"
    long = [{"task": "HalfCheetah", "variant": "TD3", "env_steps": 10_000_000}] * 10
    rows = Asymptotic(size="paper").not_run(long)
    assert [row[:3] for row in rows] == [("HalfCheetah", name, "3,000,000") for name in ("MAGE-TD3", "Dyna-TD3")]
    assert len(Asymptotic(size="paper", preset="cpu").not_run(long)) == 3, "smaller networks are not its size"
    assert len(Asymptotic(size="paper").not_run(long[1:])) == 3, "nor are fewer runs"
    assert [row[1] for row in Lambda().not_run([])] == ["λ = 0.02, λ = 0.05, λ = 0.2, λ = 1", "Dyna-TD3"]
    assert Performance(size="smoke").not_run([]) == []


def test_lambda_trains_every_weight_in_one_cell_and_tells_their_rows_apart():
    experiment = Lambda(size="smoke")
    mage, dyna = experiment.cells()
    assert mage.config.lambdas == (0.02, 0.05, 0.2, 1.0) and dyna.config.method == "dyna-td3"
    rows = [(mage, {"lambda": weight}) for weight in mage.config.lambdas] + [(dyna, {"lambda": 1.0})]
    assert [experiment.variant_of(*row) for row in rows] == list(Lambda.VARIANTS)


def test_a_task_of_another_length_has_it_but_a_flag_wins():
    steps = {c.config.task: c.config.steps for c in Performance().cells()}
    assert steps == {"Pendulum": 10_000, "CartPole": 20_000}
    assert {c.config.steps for c in Performance(steps=700).cells()} == {700}


def test_the_truth_of_mujoco_tasks_is_taken_through_warp_over_whole_episodes():
    configs = {c.config.task: c.config for c in GradientError(tasks=("Pendulum", "HalfCheetah")).cells()}
    assert (configs["Pendulum"].environment, configs["HalfCheetah"].environment) == (None, "warp")
    assert all(c.freeze_actor and c.gradient_horizon == 1000 for c in configs.values())


def test_the_variants_are_what_they_are_called():
    rewards = {c.name: c.config.reward for c in LearnedReward(size="smoke").cells()}
    assert rewards["Pendulum_MAGE-TD3 (learned reward)"] == "learned" and rewards["Pendulum_MAGE-TD3"] == "task"
    sizes = {c.name: c.config.hyper.ensemble_members for c in Capacity(size="paper").cells()}
    assert (
        sizes["Pusher_MAGE-TD3"] == 8 and sizes["Pusher_Dyna-TD3-small"] == 2 and sizes["Pusher_MAGE-TD3-smaller"] == 1
    )
    errors = GradientError(size="cpu").cells()
    assert all(c.config.freeze_actor and c.config.eval_every == 10 for c in errors)
    assert {c.config.hyper.updates_per_step for c in errors} == {10}
    assert [c.config.critic_loss for c in errors[:4]] == ["mage", "td", "shuffled", "random"]


LOW, HIGH = [-305.0, -310.0, -300.0, -320.0, -315.0], [-140.0, -150.0, -145.0, -155.0, -135.0]


@pytest.mark.parametrize(
    ("ours", "theirs", "relation", "numbers", "words"),
    [
        (HIGH, LOW, "better", (-140.0, -243.0), ("higher", "better, -140 against -243", "agrees")),
        (HIGH, LOW, None, (-140.0, -243.0), ("higher", "better, -140 against -243", "agrees")),
        (HIGH, LOW, None, (-140.0, -140.0), ("higher", "no worse, -140 against -140", "agrees")),
        (HIGH, LOW, None, (-2.0, -1.0), ("higher", "-2 against -1", "-")),
        (HIGH, LOW, None, (None, None), ("higher", "-", "-")),
        (LOW, HIGH, "better", (None, None), ("lower", "better", "disagrees")),
        (LOW, HIGH, "no worse", (None, None), ("lower", "no worse", "disagrees")),
        (HIGH, HIGH, "no worse", (None, None), ("not told apart", "no worse", "undecided")),
        (HIGH, HIGH, "better", (None, None), ("not told apart", "better", "undecided")),
        (HIGH[:3], LOW[:3], "better", (None, None), ("too few seeds", "better", "undecided")),
        (HIGH[:3], LOW[:3], None, (-1.0, -2.0), ("too few seeds", "better, -1 against -2", "undecided")),
        # Returns that are solved or not: means and their t-intervals overlap, ranks do not.
        ([10.0, 480.0, 20.0, 500.0, 450.0], [9.0, 9.1, 9.2, 9.3, 9.4], "better", (500.0, 20.0),
         ("higher", "better, 500 against 20", "agrees")),
    ],
)  # fmt: skip
def test_verdicts_follow_from_ranks_and_from_the_papers_numbers(ours, theirs, relation, numbers, words):
    unsolved = {("T", name): [math.inf] * 5 for name in "AB"}
    paper = {("T", name): number for name, number in zip("AB", numbers, strict=True) if number is not None}
    (row,) = pair_rows({("T", "A"): ours, ("T", "B"): theirs}, unsolved, [Claim("A", "B", relation)], paper)
    assert row[5:8] == words and row[8:] == ("-",) * 4


def test_pairs_are_counted_by_task_and_over_all_tasks():
    scores = {(task, name): HIGH if name == "MAGE-TD3" else LOW for task in ("Pendulum", "CartPole")
              for name in ("MAGE-TD3", "Dyna-TD3")}  # fmt: skip
    steps = dict.fromkeys(scores, [math.inf] * 5)
    first, second, over = pair_rows(scores, steps, Performance.CLAIMS, Performance.PAPER)
    assert first[:5] == ("Pendulum", "MAGE-TD3", "Dyna-TD3", "100%", "0.0079") and second[0] == "CartPole"
    assert over[:4] == ("all", "MAGE-TD3", "Dyna-TD3", "1.00 [1.00, 1.00]")
    assert pair_verdict([first, second, over]) == ["Claims of the paper: 2 agree, 0 disagree, 0 undecided, of 2."]
    assert Lambda()._interval([1.0, 2.0, 9.0]).mean == 2.0


def test_the_best_evaluation_of_a_run_is_a_trained_one():
    rows = [dict(task="T", variant="v", seed=seed, env_step=step, return_mean=value) | {"lambda": 1.0}
            for seed, step, value in ((0, 0, 99.0), (0, 10, 1.0), (0, 20, 5.0), (1, 10, 7.0))]  # fmt: skip
    assert best_of(rows) == {("T", "v"): [5.0, 7.0]}


def test_a_task_in_a_file_gives_cells_of_its_name_and_no_task_twice_or_none(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from mage_diffsim.envs.tasks.pendulum import Pendulum\nclass Mine(Pendulum):\n    name = 'Mine'\n")
    experiments = [e for e in EXPERIMENTS.values() if issubclass(e, Comparison)]
    for experiment in experiments:
        assert {c.name.partition("_")[0] for c in experiment(tasks=(f"{file}:Mine",)).cells()} == {"Mine"}
    with pytest.raises(InputError, match="tasks is empty; accepted is one or more tasks"):
        Performance(tasks=()).cells()
    with pytest.raises(InputError, match="not all different: name every task only once"):
        run(Performance(size="smoke", tasks=("Pendulum", "Pendulum"), out=tmp_path / "out"))


def test_gradient_errors_and_cosines_are_compared_seed_by_seed():
    found = error_rows(
        "Pendulum",
        {  # actors differ a hundredfold: only within a seed can variants be told apart
            "MAGE-TD3": {0: (1.0, 0.5), 1: (11.0, 0.6), 7: (90.0, 0.1)},
            "Dyna-TD3": {7: (290.0, 0.0), 1: (31.0, 0.5), 0: (3.0, 0.4)},
            "shuffled": {0: (3.0, 0.0), 1: (32.0, 0.0), 7: (280.0, 0.0)},
            "random": {0: (9.0, 0.0), 1: (91.0, 0.0), 7: (890.0, 0.0)},
            "untrained": {0: (2.0, 0.0), 1: (20.0, 0.0), 7: (200.0, 0.0)},
        },
    )
    assert found[0][:3] == ("Pendulum", "MAGE-TD3", "Dyna-TD3") and found[0][3].startswith("0.332 [0.2")
    assert found[0][5:] == ("0.100 ± 0.000", "above")
    assert [row[4] for row in found] == ["below", "not told apart", "above", "below", "below"]
    assert error_verdict(found) == [
        "Error of MAGE-TD3 against Dyna-TD3: below on 1 of 1.",
        "Error of MAGE-TD3 against shuffled: below on 1 of 1.",
        "Error of MAGE-TD3 against untrained: below on 1 of 1.",
    ]
    constant = {"MAGE-TD3": {0: (1.0, math.nan)}, "Dyna-TD3": {0: (2.0, math.nan)}}
    assert error_rows("T", constant)[0][4:] == ("unknown", "-", "-")


def test_solving_earlier_is_told_by_ranks_and_never_solving_ranks_last():
    def rows(name, steps):
        return [{"task": "T", "variant": name, "steps_to_threshold": step} for step in steps]

    steps = steps_of(rows("A", (10, 20, 30, 40, 50)) + rows("B", (60, 70, None, None, None)) + rows("C", (None,) * 5))
    a, b, c = (steps["T", name] for name in "ABC")
    assert speed_columns(a, b) == ("30, 5 of 5", "2 of 5", "0.0079", "earlier")
    assert speed_columns(b, a)[3] == "later" and speed_columns(b, c)[3] == "not told apart"
    assert speed_columns([10.0, 20.0], [50.0, math.inf])[3] == "too few seeds"
    assert speed_columns(c, c) == ("-", "-", "-", "-")
    assert pair_verdict([("T", "A", "B", "", "", "", "", "-", *speed_columns(a, b))]) == [
        "First variant solves its task: 1 earlier, 0 later, of 1 pairs."
    ]


def test_the_untrained_critic_is_measured_just_before_its_first_update():
    experiment = GradientError(size="smoke")
    trainer = Trainer(experiment.cells()[0].config)
    first, warmup = next(iter(experiment.VARIANTS)), trainer.hyper.warmup_steps
    rows = [
        dict(variant=name, seed=seed, env_step=step, gradient_error=error, gradient_cosine=error / 10)
        for seed in (0, 4)
        for name, step, error in (
            (first, 0, 99.0),
            (first, warmup - 2, 5.0),
            (first, warmup - 1, 2.0 + seed),
            (first, warmup, 99.0),
            ("Dyna-TD3", warmup - 1, 99.0),
        )
    ]
    assert experiment._untrained(rows, trainer) == {0: (pytest.approx(2.0), 0.2), 4: (pytest.approx(6.0), 0.6)}


def test_the_peak_of_the_mean_curve_is_that_of_all_runs_together():
    rows = [{"task": "T", "variant": "v", "env_step": step, "return_mean": value}
            for step, value in ((0, 99.0), (10, 1.0), (10, 5.0), (20, 8.0), (20, 0.0))]  # fmt: skip
    assert peaks_of(rows) == {("T", "v"): 4.0}


def test_variants_of_a_seed_share_their_actor_and_their_trajectories():
    trainers = [Trainer(c.config) for c in GradientError(size="smoke").cells()]
    first, *others = trainers
    start = first.initial_states(10, first.streams.generators("evaluate", 30))
    obs = first.task.observe(start)
    first.agent.diverged.fill_(True)  # a critic that begins anew must not bring another actor to be measured
    first.agent.renew_diverged()
    for other in others:
        torch.testing.assert_close(
            other.initial_states(10, other.streams.generators("evaluate", 30)), start, rtol=0, atol=0
        )
        torch.testing.assert_close(other.policy(obs), first.policy(obs), rtol=0, atol=0)


def test_curves_are_smoothed_within_their_run():
    rows = [
        dict(
            task="T",
            method="m",
            dynamics="",
            backend="",
            variant="",
            seed=seed,
            env_step=t,
            return_mean=float(t * seed),
        )
        | {"lambda": 0.2}
        for t in range(30)
        for seed in (0, 1)
    ]
    found = {(r["seed"], r["env_step"]): r["return_mean"] for r in smoothed(rows)}
    assert len(found) == 60 and found[1, 0] == 0.0 and found[1, 4] == 2.0, "as far as there are evaluations yet"
    assert (
        found[1, 24] == 12.0 and found[1, 25] == 13.0 and found[1, 29] == sum(range(5, 30)) / 25 and found[0, 29] == 0.0
    )


@pytest.mark.slow
def test_a_comparison_writes_its_table_beside_the_papers_numbers(tmp_path, capsys):
    assert run(Performance(size="smoke", out=tmp_path, workers=1)) == 0
    with open(tmp_path / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["variant"] for r in rows} == set(Performance.VARIANTS) and len(rows) == 8
    text = (tmp_path / "summary.md").read_text()
    assert "| Pendulum | MAGE-TD3 |" in text and "| -140 |" in text and "smoke test" in text
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gradient-error", "unconstrained", "lambda", "graph"])
def test_every_kind_of_report_is_written_from_a_smoke_run(name, tmp_path, capsys):
    experiment = EXPERIMENTS[name](size="smoke", out=tmp_path, workers=2)
    assert run(experiment) == 0
    for file in experiment.FILES:
        assert (tmp_path / file).stat().st_size > 100
    text = (tmp_path / "summary.md").read_text()
    assert "smoke test" in text and "nan" not in text
    said = {
        "gradient-error": "Error of MAGE-TD3 against Dyna-TD3: ",
        "unconstrained": "Without the TD error, beside λ = 0.2: ",
        "lambda": "| λ = 0.02 | Dyna-TD3 |",
        "graph": "oracle: s and a' are random, the rest is computed.",
    }
    assert said[name] in text
    if name == "lambda":
        assert "too few seeds" in text
    if name == "gradient-error":
        assert "| restarts |" in text and "| cosine" not in text, "the sign of Pendulum's one action"
    capsys.readouterr()


def graph_of(**settings):
    hyper = dict(warmup_steps=20, batch_size=8, updates_per_step=1, model_batches=2)
    trainer = Trainer(make_config("Pendulum", preset="cpu", steps=40, hyper=hyper, **settings))
    for _ in range(30):
        trainer.step()
    (draws,) = trainer.draw(1)
    batch = trainer.buffer.gather(draws.index)
    drawn = update_tensors(trainer.agent, batch, draws)["y"]
    torch.testing.assert_close(drawn, trainer.agent.target(batch, draws).y)  # what is drawn is what is trained on
    before = trainer.agent.critic.clone()
    graph = computation_graph(trainer)
    assert before.equal(trainer.agent.critic) and "q" not in vars(trainer.agent) and "policy" not in vars(trainer.agent)
    return graph


def test_the_graph_of_delta_has_the_edges_of_fig_9_and_the_draws_of_an_update():
    graph = graph_of()
    assert {q.name for q in graph if q.stochastic} == {"s", "s'", "a'"}
    assert {(parent, q.name) for q in graph for parent in q.parents} == {
        ("s", "a"), ("s", "s'"), ("a", "s'"), ("s", "r"), ("a", "r"), ("s'", "π̄(s')"), ("π̄(s')", "a'"),
        ("s'", "Q̄(s', a')"), ("a'", "Q̄(s', a')"), ("r", "y"), ("Q̄(s', a')", "y"), ("s", "Q(s, a)"),
        ("a", "Q(s, a)"), ("y", "δ"), ("Q(s, a)", "δ"),
    }  # fmt: skip


def test_an_oracles_next_state_is_not_drawn_and_a_learned_reward_sees_it():
    oracle = {q.name: q for q in graph_of(dynamics="oracle", backend="torch")}
    assert not oracle["s'"].stochastic and oracle["a'"].stochastic
    learned = {q.name: q for q in graph_of(reward="learned")}
    assert set(learned["r"].parents) == {"s", "a", "s'"}, "r_hat(s, a, s') must depend on s'"


def test_a_misspelt_experiment_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["paper.py", "performence", "--size", "smoke"])
    assert main(parse) == 2
    assert capsys.readouterr().err == (
        "paper.py: unknown experiment 'performence': choose one of asymptotic, capacity, gradient-error, graph, "
        "lambda, learned-reward, performance, unconstrained\n"
    )
