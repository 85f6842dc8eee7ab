"""The public models: collections, their versions, and where each model's files are."""

from __future__ import annotations

from typing import NamedTuple

WHEELS = {"brax": "0.14.2", "dm_control": "1.0.50"}
"""Packages whose wheel holds models, with the version that is taken."""


class Archive(NamedTuple):
    """A public repository at a commit, and the folders of it that are taken."""

    repository: str
    commit: str
    folders: tuple[str, ...]


ARCHIVES = {
    "mujoco_playground": Archive(
        "google-deepmind/mujoco_playground", "d5e6b47531328468da1eec33b8b304a00bb0873c", ("mujoco_playground/_src",)
    ),
    "mujoco_menagerie": Archive(
        "google-deepmind/mujoco_menagerie",
        "1b86ece576591213e2b666ebf59508454200ca97",  # the one that this version of mujoco_playground takes
        (
            *("aloha", "apptronik_apollo", "berkeley_humanoid", "booster_t1", "boston_dynamics_spot"),
            *("franka_emika_panda", "google_barkour_vb", "leap_hand", "robotiq_2f85_v4", "robotis_op3"),
            *("tetheria_aero_hand_open", "unitree_g1", "unitree_go1", "unitree_h1"),
        ),
    ),
}
"""Repositories that hold models."""


class Public(NamedTuple):
    """A public model."""

    name: str
    """collection/model."""
    source: str
    """``gymnasium``, or a name of :data:`WHEELS` or :data:`ARCHIVES`."""
    file: str
    """Its MJCF file, from the folder of the source."""
    assets: tuple[str, ...] = ()
    """Folders with the files that it names, as the collection's code puts them together; later ones come first. They
    start with ``mujoco_menagerie/`` or ``mujoco_playground/``."""
    chain: int = 0
    """Bodies that the collection's Python code adds to the file; 0 where the file is the whole model."""

    @property
    def collection(self) -> str:
        return self.name.rpartition("/")[0]


def _dm_control() -> list[Public]:
    plain = (
        *("acrobot", "ball_in_cup", "cartpole", "cheetah", "dog", "finger", "fish", "hopper", "humanoid"),
        *("humanoid_CMU", "manipulator", "pendulum", "point_mass", "quadruped", "reacher", "stacker", "walker"),
    )
    found = [Public(f"dm_control/suite/{x}", "dm_control", f"dm_control/suite/{x}.xml") for x in plain]
    for name, file, bodies in (("lqr_2_1", "lqr", 2), ("lqr_6_2", "lqr", 6), ("swimmer6", "swimmer", 6),
                               ("swimmer15", "swimmer", 15)):  # fmt: skip
        found.append(Public(f"dm_control/suite/{name}", "dm_control", f"dm_control/suite/{file}.xml", chain=bodies))
    walkers = ("dog_v2/dog", "fruitfly_v2/fruitfly", "humanoid_CMU_V2020", "jumping_ball/jumping_ball_with_head",
               "rodent")  # fmt: skip
    folder = "dm_control/locomotion/walkers/assets"
    return found + [
        Public(f"dm_control/walkers/{x.rpartition('/')[2]}", "dm_control", f"{folder}/{x}.xml") for x in walkers
    ]


def _playground() -> list[Public]:
    suite = (
        *("acrobot", "ball_in_cup", "cartpole", "cheetah", "finger", "fish", "hopper", "humanoid", "pendulum"),
        *("point_mass", "reacher", "walker"),
    )
    root, source = "mujoco_playground/_src", "mujoco_playground"
    name, xmls = "mujoco_playground/dm_control", f"{root}/dm_control_suite/xmls"
    found = [Public(f"{name}/{x}", source, f"{xmls}/{x}.xml") for x in suite]
    found.append(Public(f"{name}/swimmer6", source, f"{xmls}/swimmer.xml", chain=6))

    def add(part: str, robot: str, menagerie: str, scenes: tuple[str, ...], more: tuple[str, ...] = ()) -> None:
        own, other = f"{root}/{part}/{robot}", f"mujoco_menagerie/{menagerie}"
        assets = (other, f"{other}/assets", f"{own}/xmls", f"{own}/xmls/assets", *more)
        for scene in scenes:
            name = f"mujoco_playground/{part}/{robot}_{scene.removeprefix('scene_').removeprefix('mjx_')}"
            found.append(Public(name, source, f"{own}/xmls/{scene}.xml", assets))

    flat, rough = "scene_mjx_feetonly_flat_terrain", "scene_mjx_feetonly_rough_terrain"
    add("locomotion", "apollo", "apptronik_apollo", (flat,), ("mujoco_menagerie/apptronik_apollo/assets/ability_hand",))
    barkour = "mujoco_menagerie/google_barkour_vb"
    found.append(
        Public(
            "mujoco_playground/locomotion/barkour",
            "mujoco_menagerie",
            f"{barkour}/scene_mjx.xml",
            (barkour, f"{barkour}/assets"),
        )
    )
    add("locomotion", "berkeley_humanoid", "berkeley_humanoid", (flat, rough))
    add("locomotion", "g1", "unitree_g1", (flat, rough))
    full = ("scene_mjx_flat_terrain", "scene_mjx_fullcollisions_flat_terrain")
    add("locomotion", "go1", "unitree_go1", (flat, rough, *full))
    add("locomotion", "h1", "unitree_h1", ("scene_mjx_feetonly",))
    add("locomotion", "op3", "robotis_op3", ("scene_mjx_feetonly",),
        ("mujoco_menagerie/robotis_op3/assets/simplified_convex",))  # fmt: skip
    add("locomotion", "spot", "boston_dynamics_spot", (flat, full[0]))
    add("locomotion", "t1", "booster_t1", (flat, rough))
    hands = ("reorientation_cube_textures", "meshes")
    for robot, menagerie in (("aero_hand", "tetheria_aero_hand_open"), ("leap_hand", "leap_hand")):
        more = tuple(f"{root}/manipulation/{robot}/xmls/{folder}" for folder in hands)
        add("manipulation", robot, menagerie, ("scene_mjx_cube",), more)
    add("manipulation", "aloha", "aloha", ("mjx_hand_over", "mjx_single_peg_insertion"))
    add("manipulation", "franka_emika_panda", "franka_emika_panda", ("mjx_cabinet", "mjx_single_cube"))
    robotiq = ("mujoco_menagerie/robotiq_2f85_v4/assets", f"{root}/manipulation/franka_emika_panda_robotiq/assets")
    add("manipulation", "franka_emika_panda_robotiq", "franka_emika_panda", ("scene_panda_robotiq_cube",), robotiq)
    return found


BRAX = ("ant", "half_cheetah", "hopper", "humanoid", "humanoidstandup", "inverted_double_pendulum",
        "inverted_pendulum", "pusher", "reacher", "swimmer", "walker2d")  # fmt: skip
GYMNASIUM = ("humanoid", "humanoidstandup", "point", "pusher_v5")
"""The models of Gymnasium that are no task of this project."""

PUBLIC: tuple[Public, ...] = (
    *_dm_control(),
    *(Public(f"gymnasium/{x}", "gymnasium", f"{x}.xml") for x in GYMNASIUM),
    *(Public(f"brax/{x}", "brax", f"brax/envs/assets/{x}.xml") for x in BRAX),
    *_playground(),
)
