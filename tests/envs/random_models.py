"""Random MuJoCo models for tests: any combination of what MJCF can say about small mechanisms, made from a seed."""

from __future__ import annotations

import functools
from typing import Any
from xml.etree import ElementTree as ET

import mujoco
import numpy as np

from tests.envs.random_draws import Draws

ELEMENTS = 12
"""Most elements that a model gets beside its bodies with their joints and geoms."""
DISABLE = (
    *("constraint", "equality", "frictionloss", "limit", "contact", "spring", "damper", "gravity", "clampctrl"),
    *("warmstart", "filterparent", "actuation", "refsafe", "sensor", "midphase", "eulerdamp", "autoreset"),
    *("nativeccd", "island"),
)
ENABLE = ("energy", "fwdinv", "invdiscrete", "multiccd", "override", "diagexact")
ACTUATORS = ("motor", "position", "velocity", "intvelocity", "damper", "cylinder", "muscle", *("general",) * 3)
SHAPES = {"sphere": 0.45, "capsule": 0.45, "box": 0.04, "cylinder": 0.03, "ellipsoid": 0.03}
JOINTS = ("hinge", "slide", "ball", "hinge hinge", "slide hinge", "slide ball", "hinge slide hinge", "")


@functools.cache
def random_model(seed: int) -> str:
    """The MJCF text of a seed; MuJoCo loads it."""
    random = np.random.default_rng(seed)
    while True:
        text = _Maker(random).text()
        try:
            model = mujoco.MjModel.from_xml_string(text)
        except ValueError:
            continue
        if _regular(model):
            return text


def _regular(model: Any) -> bool:
    """Whether nothing can move without inertia."""
    data, mass = mujoco.MjData(model), np.zeros((model.nv, model.nv))
    data.qpos[:] = model.qpos0 + 0.3
    mujoco.mj_normalizeQuat(model, data.qpos)
    mujoco.mj_fwdPosition(model, data)
    mujoco.mj_fullM(model, data, mass)
    return bool(np.linalg.cond(mass) < 1e6)


class _Maker(Draws):
    """Draws one model."""

    def __init__(self, random: np.random.Generator) -> None:
        super().__init__(random)
        self._root = ET.Element("mujoco")
        parts = ("compiler", "option", "worldbody", "contact", "tendon", "equality", "actuator")
        self._part = {name: ET.SubElement(self._root, name) for name in parts}
        self._bodies: list[ET.Element] = []
        self._joints: dict[str, list[str]] = {}

    def text(self) -> str:
        """The model."""
        self._option()
        self._world()
        for i in range(self._random.integers(1, 5)):
            self._body(first=i == 0)
        makers = (
            *(self._geom, self._pair, self._exclude, self._mocap, self._gravcomp),
            *(self._fixed, self._spatial, self._coupling, self._coupling, self._link, self._link),
            *(self._actuator, self._actuator, self._actuator),
        )
        for i in range(self._random.integers(1, ELEMENTS + 1)):
            self._pick(makers)() if i else self._actuator()
        return ET.tostring(self._root, encoding="unicode")

    # -- the tree --

    def _option(self) -> None:
        option = self._part["option"]
        option.set("timestep", self._pick((".002", ".004", ".005")))
        option.set("integrator", self._pick(("Euler", "Euler", "RK4", "implicitfast", "implicit")))
        option.set("cone", self._pick(("pyramidal", "elliptic")))
        self._set(option, 0.2, impratio=lambda: self._positive(0.1, 20), wind=lambda: self._between(-2, 2, 3))
        self._set(option, 0.2, density=lambda: self._positive(1, 1000), viscosity=lambda: self._positive(0.001, 1))
        self._set(option, 0.2, gravity=lambda: self._pick(("0 0 0", self._between(-9, 9, 3))))
        self._set(
            option, 0.1, jacobian=lambda: self._pick(("dense", "sparse")), solver=lambda: self._pick(("CG", "PGS"))
        )
        self._set(option, 0.1, actuatorgroupdisable=lambda: self._pick(("0", "1", "1 2")), magnetic="0 1 0")
        self._set(option, 0.15, noslip_iterations="3")
        self._set(option, 0.04, o_margin=".01")
        flags = self._some(DISABLE, 3) if self._maybe(0.5) else []
        enabled = self._some(ENABLE, 2) if self._maybe(0.05) else []
        if flags or enabled:
            ET.SubElement(option, "flag", {x: "disable" for x in flags} | {x: "enable" for x in enabled})
        self._set(self._part["compiler"], 0.1, angle="radian", balanceinertia="true", boundmass=".01")

    def _world(self) -> None:
        world = self._part["worldbody"]
        self._add(world, "site", "s", pos=self._between(-0.5, 0.5, 3), euler=self._between(-90, 90, 3))
        if self._maybe(0.75):
            floor = self._add(world, "geom", "g", type="plane", size="9 9 1", conaffinity="13")
            self._set(floor, 0.2, euler=lambda: self._between(-20, 20, 3))
            self._contact_parameters(floor)

    def _body(self, first: bool) -> None:
        """A body with joints and a geom, on the world or on an earlier one."""
        root = not self._bodies or self._maybe(0.4)
        parent = self._part["worldbody"] if root else self._pick(self._bodies)
        height = self._between(0.05, 0.5) if root else self._between(-0.3, 0.1)
        body = self._add(parent, "body", "b", pos=f"{self._between(-0.3, 0.3, 2)} {height}")
        self._set(body, 0.5, euler=lambda: self._between(-60, 60, 3))
        kinds = JOINTS[:-1] if first else JOINTS
        free = parent is self._part["worldbody"] and self._maybe(0.35)
        for kind in ("free",) if free else self._pick(kinds).split():
            self._joint(body, kind)
        self._bodies.append(body)
        self._geom(body)
        self._site(body)

    def _site(self, body: ET.Element) -> None:
        self._add(body, "site", "s", pos=self._between(-0.2, 0.2, 3), euler=self._between(-90, 90, 3))

    def _joint(self, body: ET.Element, kind: str) -> None:
        joint = self._add(body, "joint", "j", type=kind)
        self._joints.setdefault(kind, []).append(joint.get("name", ""))
        self._set(joint, 0.3, damping=lambda: self._positive(0.01, 2), armature=lambda: self._positive(0.001, 0.1))
        self._set(joint, 0.25, stiffness=lambda: self._positive(0.1, 50), frictionloss=lambda: self._positive(0.01, 3))
        self._set(joint, 0.15, solreffriction=self._solref, solimpfriction=self._solimp)
        self._set(
            joint,
            0.008,
            stiffness=lambda: self._pick(("2 1", "2 0 0", "0 0 3")),
            damping=lambda: self._pick((".2 .1", ".2 0")),
        )
        if kind == "free":
            return
        self._set(joint, 0.4, pos=lambda: self._between(-0.1, 0.1, 3))
        self._set(joint, 0.1, actuatorgravcomp="true")
        axes = "1 0 0", "0 1 0", "0 0 1", self._between(-1, 1, 3)
        degrees = kind == "hinge" and self._part["compiler"].get("angle") is None
        unit = 60.0 if degrees else 1.0 if kind == "hinge" else 0.3
        if kind != "ball":
            joint.set("axis", self._pick(axes))
            self._set(joint, 0.2, ref=lambda: self._between(-0.5 * unit, 0.5 * unit))
            self._set(joint, 0.2, springref=lambda: self._between(-unit, unit))
            self._set(joint, 0.15, actuatorfrcrange=lambda: self._range(3.0))
        if self._maybe(0.4):
            most = 2.0 * (57.0 if self._part["compiler"].get("angle") is None else 1.0)
            joint.set("range", f"0 {self._between(0.1 * most, most)}" if kind == "ball" else self._range(unit))
            self._set(joint, 0.2, limited="false")
        self._set(joint, 0.2, margin=lambda: self._positive(0.01, 0.3))
        self._set(joint, 0.2, solreflimit=self._solref, solimplimit=self._solimp)

    def _geom(self, body: ET.Element | None = None) -> None:
        """A geom on a body, sometimes on the world."""
        world = body is None and self._maybe(0.3)
        parent = self._part["worldbody"] if world else body if body is not None else self._pick(self._bodies)
        kind = str(self._random.choice(list(SHAPES), p=list(SHAPES.values())))
        geom = self._add(parent, "geom", "g", type=kind)
        size = self._between(0.04, 0.12)
        if kind == "capsule" or kind == "cylinder":
            geom.set("size", size)
            geom.set("fromto", f"{self._between(-0.1, 0.1, 3)} {self._between(-0.3, 0.3, 3)}")
        else:
            geom.set("size", size if kind == "sphere" else self._between(0.04, 0.12, 3))
            geom.set("pos", self._between(-0.2, 0.2, 3))
        if kind == "sphere":
            geom.set("conaffinity", "5")
        elif kind != "capsule" and self._maybe(0.9):
            # Those of what they touch: planes, and but for ellipsoids spheres.
            geom.set("contype", "8" if kind == "ellipsoid" else "4")
            geom.set("conaffinity", "0")
        self._set(geom, 0.2, density=lambda: self._between(100, 2000), mass=lambda: self._between(0.1, 3))
        self._set(geom, 0.02, fluidshape="ellipsoid")
        self._contact_parameters(geom)

    def _contact_parameters(self, geom: ET.Element) -> None:
        self._set(geom, 0.4, condim=lambda: self._pick("1346"), friction=self._friction)
        self._set(geom, 0.15, priority=lambda: self._pick("12"), solmix=lambda: self._pick(("0", "1", "3")))
        self._set(geom, 0.2, margin=lambda: self._positive(0.005, 0.1), gap=self._gap)
        self._set(geom, 0.25, solref=self._solref, solimp=self._solimp)
        if geom.get("contype") is None:
            self._set(geom, 0.15, contype=lambda: self._pick("0123"), conaffinity=lambda: self._pick("0123"))

    def _gap(self) -> str:
        return self._between(-0.02, 0.0) if self._maybe(0.1) else self._positive(0.005, 0.2)

    def _friction(self, n: int = 3) -> str:
        sizes = (1.5, 0.2, 0.05) if n == 3 else (1.5, 1.5, 0.2, 0.05, 0.05)
        return " ".join(self._between(0, x) if self._maybe(0.8) else "0" for x in sizes)

    def _mocap(self) -> None:
        body = self._add(self._part["worldbody"], "body", "b", mocap="true", pos=self._between(-0.3, 0.3, 3))
        self._set(body, 0.5, euler=lambda: self._between(-60, 60, 3))
        self._geom(body)
        self._site(body)
        self._bodies.append(body)

    def _gravcomp(self) -> None:
        self._pick(self._bodies).set("gravcomp", self._pick(("0", "1", "1", ".5", "-1", "3")))

    # -- contacts --

    def _pair(self) -> None:
        pair = self._add(self._part["contact"], "pair")
        geoms = self._named("g")
        pair.set("geom1", self._pick(geoms))
        pair.set("geom2", self._pick(geoms))
        self._set(pair, 0.5, condim=lambda: self._pick("1346"), friction=lambda: self._friction(5))
        self._set(pair, 0.3, margin=lambda: self._positive(0.005, 0.1), gap=self._gap)
        self._set(pair, 0.3, solref=self._solref, solimp=self._solimp, solreffriction=self._solref)

    def _exclude(self) -> None:
        first, second = (self._pick([*self._named("b"), "world"]) for _ in range(2))
        self._add(self._part["contact"], "exclude", body1=first, body2=second)

    # -- tendons --

    def _scalar_joints(self) -> list[str]:
        return [*self._joints.get("hinge", []), *self._joints.get("slide", [])]

    def _tendon(self, tag: str) -> ET.Element:
        tendon = self._add(self._part["tendon"], tag, "t")
        self._set(tendon, 0.3, stiffness=lambda: self._positive(0.1, 100), damping=lambda: self._positive(0.01, 5))
        self._set(tendon, 0.3, springlength=lambda: self._pick(("0", ".3", "0 .2", ".1 .5")))
        self._set(tendon, 0.25, frictionloss=lambda: self._positive(0.01, 3))
        self._set(tendon, 0.1, armature=lambda: self._positive(0.01, 0.3))
        if self._maybe(0.4):
            tendon.set("range", self._pick(("-.1 .1", "0 .3", ".2 .6", ".3 2")))
            self._set(tendon, 0.2, limited="false")
        self._set(tendon, 0.2, margin=lambda: self._positive(0.01, 0.3), actuatorfrcrange=lambda: self._range(3.0))
        self._set(tendon, 0.2, solreflimit=self._solref, solimplimit=self._solimp)
        self._set(tendon, 0.2, solreffriction=self._solref, solimpfriction=self._solimp)
        return tendon

    def _fixed(self) -> None:
        joints = self._scalar_joints()
        if joints:
            tendon = self._tendon("fixed")
            for joint in self._some(joints, 3):
                coefficient = "0" if self._maybe(0.1) else self._between(-1, 1)
                self._add(tendon, "joint", joint=joint, coef=coefficient)

    def _spatial(self) -> None:
        sites = self._named("s")
        drums = [g for g in self._root.iter("geom") if g.get("type") in ("sphere", "cylinder")]
        path = self._some(sites, 4)
        if len(path) == 1:
            return
        tendon = self._tendon("spatial")
        for i, site in enumerate(path):
            self._add(tendon, "site", site=site)
            if i == len(path) - 1:
                break
            if drums and self._maybe(0.3):
                drum = self._add(tendon, "geom", geom=self._pick(drums).get("name", ""))
                self._set(drum, 0.3, sidesite=lambda: self._pick(sites))
            elif self._maybe(0.15) and 0 < i < len(path) - 2:
                self._add(tendon, "pulley", divisor=self._pick(("1", "2", "3")))

    # -- equalities --

    def _equality(self, tag: str) -> ET.Element:
        equality = self._add(self._part["equality"], tag, "e")
        self._set(equality, 0.3, solref=self._solref, solimp=self._solimp)
        self._set(equality, 0.2, active="false")
        return equality

    def _coupling(self) -> None:
        """An equality of joints or tendons."""
        kind, names = self._pick((("joint", self._scalar_joints()), ("tendon", self._named("t"))))
        if names:
            equality = self._equality(kind)
            for i, name in enumerate(self._some(names, 2)):
                equality.set(f"{kind}{i + 1}", name)
            self._set(equality, 0.7, polycoef=lambda: self._between(-0.3, 0.3, 5))

    def _link(self) -> None:
        """A connect or weld, of bodies or of sites."""
        kind = self._pick(("connect", "weld"))
        if self._maybe(0.4):
            link, sites = self._equality(kind), self._random.permutation(self._named("s"))
            link.set("site1", str(sites[0]))
            link.set("site2", str(sites[1]))
        else:
            link = self._equality(kind)
            for i, name in enumerate(self._some(self._named("b"), 2)):
                link.set(f"body{i + 1}", name)
            if kind == "connect" or self._maybe(0.5):
                link.set("anchor", self._between(-0.2, 0.2, 3))
            if kind == "weld":
                self._set(link, 0.4, relpose=lambda: f"{self._between(-0.2, 0.2, 3)} 1 {self._between(-0.5, 0.5, 3)}")
        if kind == "weld":
            self._set(link, 0.4, torquescale=lambda: self._positive(0.1, 3))

    # -- actuators --

    def _actuator(self) -> None:
        tag = "adhesion" if self._maybe(0.05) else self._pick(ACTUATORS)
        actuator = self._add(self._part["actuator"], tag, "a")
        if tag == "adhesion":
            actuator.set("body", self._pick([*self._named("b"), "world"]))
            actuator.set("ctrlrange", "0 1")
            self._set(actuator, 0.7, gain=lambda: self._positive(0.5, 50), forcerange=lambda: self._range(20.0))
            return
        self._transmission(actuator)
        getattr(self, f"_{tag}", lambda _: None)(actuator)
        if tag == "damper" or self._maybe(0.95):
            low = "0" if tag == "damper" else self._between(-2, -0.5)
            actuator.set("ctrlrange", f"{low} {self._between(0.5, 2)}")
        self._set(actuator, 0.25, forcerange=lambda: self._range(3.0), group=lambda: self._pick("012"))
        if not {"site", "cranksite", "body"}.intersection(actuator.keys()):
            self._set(actuator, 0.1, armature=lambda: self._positive(0.01, 0.1))
            self._set(actuator, 0.1, damping=lambda: self._pick(("0", ".3", "1", ".1 .2")))

    def _transmission(self, actuator: ET.Element) -> None:
        ways = ["joint", "joint", "jointinparent", "tendon", "site", "refsite", "crank"]
        if actuator.tag == "general":
            ways.append("body")
        if actuator.tag == "muscle":
            ways = ["joint", "tendon"]
        way, sites = self._pick(ways), self._named("s")
        if way == "tendon" and not self._named("t"):
            way = "joint"
        if way in ("joint", "jointinparent"):
            kinds = [k for k in self._joints if actuator.tag != "muscle" or k in ("hinge", "slide")]
            kind = self._pick(kinds or list(self._joints))
            actuator.set(way, self._pick(self._joints[kind]))
        elif way == "tendon":
            actuator.set("tendon", self._pick(self._named("t")))
        elif way == "body":
            actuator.set("body", self._pick([*self._named("b"), "world"]))
        elif way == "crank":
            actuator.set("cranksite", self._pick(sites))
            actuator.set("slidersite", self._pick(sites))
            actuator.set("cranklength", self._between(0.05, 0.6))
        else:
            actuator.set("site", self._pick(sites))
            if way == "refsite":
                actuator.set("refsite", self._pick(sites))
        gears = self._between(-3, 3), self._between(-2, 2, 6), "0 0 0 1 0 .5", "0 1 0 0 0 0", "0"
        self._set(actuator, 0.6, gear=lambda: self._pick(gears))

    def _position(self, actuator: ET.Element) -> None:
        self._set(actuator, 0.7, kp=lambda: self._positive(0.5, 50))
        self._set(actuator, 0.3, kv=lambda: self._positive(0.05, 5), timeconst=lambda: self._positive(0.01, 0.3))
        if actuator.get("kv") is None:
            self._set(actuator, 0.2, dampratio=lambda: self._between(0.3, 1.5))

    def _velocity(self, actuator: ET.Element) -> None:
        self._set(actuator, 0.7, kv=lambda: self._positive(0.1, 10))

    _damper = _velocity

    def _intvelocity(self, actuator: ET.Element) -> None:
        self._position(actuator)
        actuator.attrib.pop("timeconst", None)
        actuator.set("actrange", self._range(1.0))

    def _cylinder(self, actuator: ET.Element) -> None:
        self._set(actuator, 0.7, timeconst=lambda: self._positive(0.01, 0.3), area=lambda: self._between(0.1, 3))
        self._set(actuator, 0.5, bias=lambda: self._between(-2, 2, 3))

    def _muscle(self, actuator: ET.Element) -> None:
        actuator.set("lengthrange", self._pick((".1 .8", "-1 1", "0 .4")))
        self._set(
            actuator, 0.5, timeconst=lambda: self._between(0.01, 0.1, 2), tausmooth=lambda: self._positive(0.1, 0.5)
        )
        self._set(actuator, 0.5, force=lambda: self._pick(("-1", "0", self._between(0.5, 20))))
        self._set(actuator, 0.3, range=lambda: f"{self._between(0.5, 0.9)} {self._between(1.0, 1.5)}")
        self._set(actuator, 0.3, lmin=lambda: self._between(0.3, 0.8), lmax=lambda: self._between(1.2, 1.8))
        self._set(actuator, 0.3, vmax=lambda: self._between(0.5, 3), fvmax=lambda: self._between(1.0, 1.6))
        self._set(actuator, 0.3, scale=lambda: self._between(10, 300), fpmax=lambda: self._between(0.5, 2))

    def _general(self, actuator: ET.Element) -> None:
        dynamics = self._pick(("none", "none", "integrator", "filter", "filterexact", "muscle"))
        if actuator.get("joint") is None and actuator.get("tendon") is None:
            muscles: tuple[str, ...] = ()
        else:
            muscles = ("muscle",)
            self._muscle_range(actuator)
        gain = self._pick(("fixed", "fixed", "affine", *muscles))
        bias = self._pick(("none", "affine", "affine", *muscles))
        for name, value in (("dyntype", dynamics), ("gaintype", gain), ("biastype", bias)):
            actuator.set(name, value)
        if dynamics != "none":
            actuator.set("dynprm", ".02 .05 .2" if dynamics == "muscle" else self._positive(0.01, 0.3))
            self._set(actuator, 0.3, actearly="true", actrange=lambda: self._range(1.0))
        if "muscle" in (gain, bias):
            numbers = f".75 1.05 {self._between(0.5, 20)} 200 .5 1.6 1.5 1.3 1.2"
            actuator.set("gainprm", numbers if gain == "muscle" else self._between(-3, 3, 3))
            actuator.set("biasprm", numbers if bias == "muscle" else self._between(-3, 3, 3))
            return
        self._set(actuator, 0.8, gainprm=lambda: self._pick((self._between(-3, 3), self._between(-3, 3, 3), "0")))
        self._set(actuator, 0.8, biasprm=lambda: self._pick((self._between(-3, 3, 3), "0 -3 -.2", "0 -1 0")))

    def _muscle_range(self, actuator: ET.Element) -> None:
        actuator.set("lengthrange", self._pick((".1 .8", "-1 1", "0 .4")))
