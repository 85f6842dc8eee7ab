"""Contacts of height fields: searches, steps and derivatives beside MuJoCo C."""

from __future__ import annotations

import collections

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from contact_pairs.finding import Searched  # noqa: E402

from mage_diffsim.envs.mujoco.convergence import with_solver  # noqa: E402
from mage_diffsim.envs.warp.compiler.hfields import HFields, touching_fields  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.warp_models import (  # noqa: E402
    assert_adjoint_and_tangents_agree,
    assert_step_and_derivatives_are_those_of_mujoco_c,
)

GROUND = """<mujoco><asset><hfield name="flat" nrow="2" ncol="3" size="1 1 1 1"/><hfield name="hills" nrow="{rows}"
 ncol="{columns}" size="{size}" elevation="{heights}"/></asset><worldbody><geom type="hfield" hfield="hills"
 euler="10 20 30" pos=".1 .2 .3" margin="{margin}"/><geom type="hfield" hfield="flat" pos="0 0 -9" contype="0"
 conaffinity="0"/><body><freejoint/><geom size="{radius}"/></body></worldbody></mujoco>"""


def heights(rng, rows, columns):
    """Random elevations; some neighbours are equal, so that prisms' tops are level or lie in one plane."""
    found = rng.random((rows, columns))
    found[: rows // 2] = found[: rows // 2].round(1)
    found[:, : columns // 3] = 0.5
    return " ".join(f"{x:.5f}" for x in found.ravel())


def test_spheres_touch_the_prisms_that_they_touch_in_mujoco_c():
    """In C's order. A sphere whose centre is inside of a prism is pushed out to C's accuracy for curved geoms."""
    rng, seen = np.random.default_rng(0), collections.Counter()
    for case in range(8):
        rows, columns = ((5, 6), (2, 9), (7, 2), (12, 12))[case % 4]
        radius, margin, size = (0.05, 0.1, 0.25)[case % 3], (0.0, 0.04)[case % 2], np.array([1.0, 0.8, 0.4, 0.1])
        text = GROUND.format(
            rows=rows, columns=columns, size=" ".join(map(str, size)), heights=heights(rng, rows, columns),
            margin=margin, radius=radius,
        )  # fmt: skip
        m = with_solver(mujoco.MjModel.from_xml_string(text), "converged")
        d, places, expected = mujoco.MjData(m), [], []
        for _ in range(1250):
            d.qpos[:3] = 0.0
            mujoco.mj_kinematics(m, d)
            at = rng.uniform([-1.1, -0.9, -0.1], [1.1, 0.9, 0.6])
            d.qpos[:3] = d.geom_xpos[0] + d.geom_xmat[0].reshape(3, 3) @ at
            mujoco.mj_fwdPosition(m, d)
            places.append(np.concatenate([d.geom_xpos, d.geom_xmat], 1)[[0, 2]])
            expected.append(np.array([[c.dist, *c.pos, *c.frame[:3]] for c in d.contact]).reshape(-1, 7))
        fields = HFields(m, touching_fields(m, [(0, 2)]))
        sizes = np.array([fields.size(0), [radius, 0.0, 0.0]])
        found = Searched(("hfield", "sphere"), 8, fields).contacts(np.array(places), sizes, margin)
        for ours, theirs in zip(found, expected, strict=True):
            seen[min(len(theirs), 5)] += 1
            near = theirs[:, 0] > -radius if len(theirs) else np.zeros(0, bool)
            if ours.shape != theirs.shape or abs(ours - theirs)[near].max(initial=0.0) > 1e-10:
                seen["other"] += 1
            elif abs(ours - theirs).max(initial=0.0) > 1e-6:
                seen["deep"] += 1
    assert min(seen[n] for n in range(6)) > 100 and not seen["other"] and not seen["deep"], seen


ROUGH = """<mujoco><option timestep=".004"/><default><geom density="300"/></default><asset><hfield name="hills" nrow="4"
 ncol="5" size=".6 .5 .1 .1" elevation="{heights}"/></asset><worldbody><geom type="hfield" hfield="hills"/>
 <body pos=".1 .05 .19"><freejoint/><geom size=".12" condim="4" friction=".6 .02 .01"/>
  <body pos="0 0 .15"><joint name="swing" axis="1 0 0" damping=".1"/><geom size=".06" pos="0 .2 -.15"/></body></body>
 <body pos="-.3 -.2 .17"><freejoint/><geom size=".1" margin=".01"/></body>
</worldbody><actuator><motor joint="swing" gear="3" ctrlrange="-1 1"/></actuator></mujoco>"""


class Rough(Body):
    """Balls on hills, one of them with an arm."""

    name, mjcf, frame_skip = "Rough", ROUGH.format(heights=heights(np.random.default_rng(3), 4, 5)), 2


def test_balls_on_hills_step_as_in_mujoco_c():
    assert_step_and_derivatives_are_those_of_mujoco_c(Rough)


@pytest.mark.slow
def test_adjoint_and_tangents_agree():
    assert_adjoint_and_tangents_agree(Rough)
