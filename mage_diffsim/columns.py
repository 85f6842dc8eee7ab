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

MODELS: dict[str, str] = {
    "model": "path of the model from the folder that was given, without its ending",
    "backend": "physics backend",
    "status": "`right`; `wrong` and `unjudged` with the reason; `covered` if nothing was measured; `refused`; `failed`",
    "in_the_way": "features that the backend does not cover, each with the number of elements that have it",
    "bodies": "bodies, without the world",
    "joints": "joints",
    "nq": "generalised positions",
    "nv": "degrees of freedom",
    "nu": "controls",
    "na": "activations",
    "nmocap": "mocap bodies",
    "geoms": "geoms",
    "pairs": "pairs of geoms that may touch",
    "tendons": "tendons",
    "equalities": "equality constraints",
    "integrator": "integrator of the model",
    "cone": "friction cone of the model",
    "solver": "the model's own solver settings",
    "timestep": "simulator step [s]",
    "solver_gap": "how far the model's own solver settings leave a step from the converged one, see `solver_gap`",
    "dtype": "precision",
    "derivative": "derivative source",
    "cached": "True if the compiled code lay on disk",
    "compile_s": "making the physics, with one step and its derivative: wall time [s]",
    "compile_cpu_s": "the same: CPU time of all threads [s]",
    "compile_mib": "largest memory of the process until then, with all imports [MiB]",
    "count": "visited states at which the backend is compared with MuJoCo C",
    "diverged_in_c": "visited states besides, from which MuJoCo C diverges",
    "ill_posed": "visited states besides, from which rounding errors change MuJoCo C's own step",
    "value_median": "error of the next state against MuJoCo C with a converged solver, relative where that is above 1",
    "value_worst": "the same, worst state",
    "value_beyond": "the same, beyond MuJoCo C's own error, see `inexactness`",
    "action_clean": "clean states of the derivative by the action",
    "action_median": "relative error of that derivative at clean states",
    "action_worst": "the same, worst state",
    "action_beyond": "the same, beyond the error of the differences that it is compared with",
    "action_kinks": "states with a kink in that derivative",
    "action_kink": "relative error there, worst state",
    "state_clean": "clean states of the derivative by the state",
    "state_median": "relative error of that derivative at clean states",
    "state_worst": "the same, worst state",
    "state_beyond": "the same, beyond the error of the differences",
    "state_kinks": "states with a kink in that derivative",
    "state_kink": "relative error there, worst state",
    "nonfinite_values": "states whose next state is not finite, and is in MuJoCo C",
    "nonfinite_gradients": "states whose derivative is not finite",
    "soak_states": "states visited besides, see --soak",
    "soak_nonfinite_values": "of these, states whose next state is not finite, and is in MuJoCo C",
    "soak_nonfinite_gradients": "of these, states whose pull-back is not finite",
    "soak_diverged_in_c": "of these, states from which MuJoCo C diverges, too",
    "threads": "CPU threads of the backend and of MuJoCo C",
    "worlds": "worlds of the timed steps",
    "step_ms": "a step of all worlds [ms]",
    "step_vjp_ms": "a step of all worlds with its pull-back to state and action [ms]",
    "c_step_ms": "a step of all worlds by MuJoCo C with the model's own solver settings [ms]",
    "c_converged_ms": "the same with a converged solver [ms]",
    "seconds": "time of the whole check of this row [s]",
    "commit": "commit of this project",
}
"""Columns of the CSV file of check-model, one row per model and backend; empty where nothing was measured."""
