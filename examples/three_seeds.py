"""Three seeds in one training, and a plot of their returns.

    python examples/three_seeds.py                         # a minute or two on one core

Expect runs/three_seeds/returns.png with a thin line per seed, and all three above -200 (solved) by step 4000.
"""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tyro

from mage_diffsim import make_config, train


def main(out: Path = Path("runs/three_seeds"), steps: int = 4000, eval_every: int = 500) -> None:
    config = make_config(
        "Pendulum",
        method="mage-td3",
        dynamics="learned",  # or "oracle", with backend="torch", "jax" or "warp"
        preset="cpu",
        seeds=(0, 1, 2),  # they train together, as one tensor, and each as it would alone
        steps=steps,
        eval_every=eval_every,
        gradient_episodes=0,  # 10 by default: how good the critic's gradients are
    )
    train(config, out, sinks=(lambda step, rows: print(f"step {step}: {[round(row['return_mean']) for row in rows]}"),))

    curves = defaultdict(list)
    with open(out / "eval.csv") as file:
        for row in csv.DictReader(file):
            curves[row["seed"]].append((int(row["env_step"]), float(row["return_mean"])))
    _, axes = plt.subplots(layout="constrained")
    for seed, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), label=f"seed {seed}")
    axes.set(xlabel="environment steps", ylabel="return", title="MAGE-TD3 on Pendulum")
    axes.legend()
    plt.savefig(out / "returns.png")
    print(f"plot: {out / 'returns.png'}")


if __name__ == "__main__":
    tyro.cli(main)
