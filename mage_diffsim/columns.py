"""The columns of the CSV files that runs and sweeps write: name to what the column holds.

The documentation's page of columns is made from these tables.
"""

from __future__ import annotations

_RUN: dict[str, str] = {
    "env_step": "environment steps that this run has done",
    "seed": "seed of the run",
    "lambda": "λ of the run: weight of the TD error against the gradient term",
}

EVAL: dict[str, str] = {
    **_RUN,
    "return_mean": "mean undiscounted return of the evaluation's episodes, without exploration noise",
    "return_std": "standard deviation of that return over the episodes",
    "length_mean": "mean length of the episodes [steps]",
    "gradient_error": "error of Eq. 14, mean over the trajectories whose true gradient is finite",
    "gradient_error_median": "the same, median over the trajectories",
    "gradient_cosine": "cosine of the critic's action-gradient to the true one, mean over steps and trajectories",
    "gradient_nonfinite": "trajectories left out because their true gradient is not finite",
}
"""Columns of eval.csv, one row per evaluation and run; empty where a task has no such number."""

METRICS: dict[str, str] = {
    **_RUN,
    "wall_s": "seconds that the process has trained and evaluated, over all its sessions [s]",
    "updates_per_s": "critic updates per second of training, evaluation apart; one update serves all runs [1/s]",
    "loss_critic": "critic loss with its weights, sum over the critics",
    "loss_td": "half the sum over the critics of the mean Huber TD error; the divergence guard compares it",
    "loss_model": "loss of the ensemble in its last training: mean of (μ - t)² / σ² + log σ² over normalised deltas t",
    "loss_reward_model": "loss of the reward model in its last training",
    "td_abs_error": "mean of |y - min Q(s, a)| over a batch",
    "q_mean": "mean of min Q(s, a) over a batch",
    "grad_dynamics_norm": "root mean square of the Frobenius norm of ds'/da (of the observation), estimated",
    "grad_q": "mean of |∇ₐ min Q(s, a)|",
    "grad_q_through_dynamics": "mean of |d min Q(s'(a), π(s'(a))) / da|, through the dynamics",
    "grad_q_next": "mean of |∇ₐ' min Q(s', a')| at a' = π(s')",
    "grad_reward": "mean of |d r(s, a, s'(a)) / da|, through the dynamics",
    "grad_target": "mean of |∇ₐ y|, the action-gradient of the TD target",
    "grad_td_error": "mean of |∇ₐ y - ∇ₐ min Q(s, a)|",
    "grad_nonfinite": "rows of batches masked so far because the target or its gradient was not finite",
    "agent_restarts": "how often the divergence guard gave the run a fresh agent so far",
    "env_divergences": "environment steps so far whose next state, observation or reward was not finite",
}
"""Columns of metrics.csv, one row per evaluation and run; empty where a method has no such number."""

CELL: dict[str, str] = {
    "task": "the task's name",
    "method": "the method's name",
    "dynamics": "what imagines s'; empty for a model-free method",
    "backend": "physics backend of the oracle; empty where no simulator is imagined with",
    "variant": "loss, reward and ensemble, where they are not the ordinary ones",
}
"""What identifies a cell of a sweep."""

SUMMARY: dict[str, str] = {
    **CELL,
    "lambda": _RUN["lambda"],
    "seed": _RUN["seed"],
    "env_steps": "environment steps that the run did",
    "final_return": "mean of return_mean over the last five evaluations (of fewer than 20 the last quarter)",
    "mean_return": "mean of return_mean over all evaluations after the first update",
    "steps_to_threshold": "environment step of the first evaluation that solved the task; empty if none did",
    "gradient_error": "error of Eq. 14, geometric mean over the evaluations of final_return",
    "gradient_cosine": "cosine to the true gradient, mean over the evaluations of final_return",
    "nonfinite": "grad_nonfinite of the last evaluation",
    "restarts": "agent_restarts of the last evaluation",
    "updates_per_s": "critic updates per second of the cell, whose seeds train together [1/s]",
    "wall_s": "seconds that the cell trained and evaluated [s]",
}
"""Columns of summary.csv, one row per run of a sweep."""

CURVES: dict[str, str] = {
    **CELL,
    "lambda": _RUN["lambda"],
    "seed": _RUN["seed"],
    "env_step": _RUN["env_step"],
    **{name: meaning for name, meaning in EVAL.items() if name not in _RUN and name != "gradient_nonfinite"},
    **{
        name: METRICS[name]
        for name in (
            "grad_q",
            "grad_q_through_dynamics",
            "grad_q_next",
            "grad_reward",
            "loss_critic",
            "q_mean",
            "agent_restarts",
        )
    },
}
"""Columns of curves.csv, one row per run and evaluation of a sweep."""

HORIZON: dict[str, str] = {
    "task": CELL["task"],
    "curve": "name of the cell, as the figure labels its curve",
    "lambda": _RUN["lambda"],
    "seed": _RUN["seed"],
    "episode": "number of the trajectory",
    "horizon": "steps of the return that is differentiated",
    "norm": "2-norm of the true gradient of that return by the first action",
}
"""Columns of horizon.csv, one row per run, trajectory and horizon."""
