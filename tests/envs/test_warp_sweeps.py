"""The Warp compiler's reverse sweep of a pass, without compiling: it is the derivative of the whole."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")

from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.warp.compiler import intake, manifold
from mage_diffsim.envs.warp.compiler.derivatives import vjp
from mage_diffsim.envs.warp.compiler.emit import Writer
from mage_diffsim.envs.warp.compiler.graph import evaluate, where
from mage_diffsim.envs.warp.compiler.step import Step
from mage_diffsim.envs.warp.compiler.sweeps import Sweeps
from tests.envs.force_models import Implicit
from tests.envs.row_models import Linked, Rubbing, Tied
from tests.envs.warp_models import SMALL, TASKS, Leg, Pile
from tests.marks import slow_but


class Interpreter(Writer):
    """Takes the place of a Writer, and does what the emitted code would; of joined contacts, the first."""

    def __init__(self, values: dict[str, float]) -> None:
        super().__init__()
        self.values = values

    def declare(self, names, value=""):
        self.values |= dict.fromkeys(names, 0.0)

    def compute(self, *expressions):
        return [repr(float(x)) for x in evaluate(expressions, self.values)]

    def __call__(self, line):
        for part in line.split(";")[:-1]:
            name, text = part.strip().split(" += ", 1)
            chosen = re.fullmatch(r"select\((.*), splat\(0\) \+ (.*), splat\(0\)\)", text)
            self.values[name] += float(chosen[1]) * float(chosen[2]) if chosen else float(text)

    @contextlib.contextmanager
    def block(self, header, fresh=False):
        yield

    @contextlib.contextmanager
    def copies(self, n, numbers):
        yield


@pytest.mark.parametrize(
    "model",
    slow_but(["Reacher", "Walker2d", Leg, Linked, Tied, Implicit], [*TASKS, *SMALL, Rubbing, Linked, Tied, Implicit]),
    ids=str,
)
def test_what_is_gathered_from_body_to_body_is_the_derivative_of_the_whole(model):
    task: Any = make_task(model) if isinstance(model, str) else model()
    step = Step(intake.read(task.simulation), exact=True, records=0, words=16)
    sweeps, rng, touching = Sweeps(step), np.random.default_rng(0), 0
    named = [x for x in step.graph.nodes if x.kind == "input"]
    loads = [where(load.present, load.power, 0.0) for load in (*sweeps.loads, *sweeps.implicit_loads)]
    parts = [*((x, -1.0) for x in sweeps._powers), *((x, 1.0) for x in loads)]
    joints = zip(sweeps._joint_forces(), sweeps.lam, strict=True)
    implicit = zip(step.implicit.joint_forces(sweeps.e), sweeps.mu, strict=True)
    whole = vjp([*parts, *joints, *implicit])
    expected = [whole.get(x, 0.0) for x in (*step.q, *step.v)]
    expected = [*manifold.to_tangent(step.model, step.q, expected[: step.nq]), *expected[step.nq :]]
    for _ in range(4):
        values = {x.args[0]: float(rng.normal(scale=0.5)) for x in named}
        values |= {f"q{i}": x + rng.normal(scale=0.8) for i, x in enumerate(step.model.model.qpos0)}
        for c in step.contacts:
            values |= {name: numbers[0] for name, numbers in c.numbers.items()}
        touching += sum(map(bool, evaluate([c.present for c in step.contacts], values)))
        right = evaluate(expected, values)
        run = Interpreter(values)
        run.declare([*step.names("gu", step.nu), *step.names("by_q"), *step.names("by_v")])
        sweeps.residuals(run, "by_q{0} += {1}; by_v{0} += {2};", lambda body: None)
        found = [values[name] for name in (*step.names("by_q"), *step.names("by_v"))]
        scale = max(1.0, *map(abs, right))
        np.testing.assert_allclose(np.array(found) / scale, np.array(right) / scale, rtol=0.0, atol=1e-11)
    assert touching or model not in ("HalfCheetah", "Walker2d", "Ant", Pile)
