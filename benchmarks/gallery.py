"""Draws the gallery of public models: docs/gallery.md, with a small picture of every model.

    python benchmarks/model_coverage.py --no-compile                              # which backends cover them: minutes
    MUJOCO_GL=egl python benchmarks/gallery.py --coverage runs/model_coverage/results.csv

The models are those of model_coverage.py, in their first keyframe if they have one. A model is told without a picture
where its meshes are stand-ins (tetrahedra, which do for the coverage) or its licence allows none.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from public_models.building import build
from public_models.collections import PUBLIC, Public
from public_models.downloading import NotHad

from mage_diffsim.envs.mujoco.model import load_mujoco, quiet
from mage_diffsim.errors import InputError
from mage_diffsim.experiments.command import script_exit_code
from mage_diffsim.experiments.tables import markdown_table
from mage_diffsim.files import make_folder, write_atomically

WIDTH, HEIGHT, QUALITY = 240, 180, 80
"""Of a picture: pixels, and what JPEG keeps of 100."""
FINER = 3
"""Pixels that are drawn for one of the picture, in each direction."""
PAPER = (238, 238, 238)
"""Colour of what is behind everything."""
MARGIN, SMALLEST = 1.15, 0.1
"""What is shown around a model, relative to its size, and the least that is shown, relative to the scene's."""
BACKENDS = ("warp", "mjx")
"""Backends whose coverage is told."""
COLUMNS = 4
"""Pictures side by side."""
LICENCES = {
    "dm_control": ("dm_control", "Apache-2.0"),
    "gymnasium": ("Gymnasium", "MIT"),
    "brax": ("brax", "Apache-2.0"),
    "mujoco_playground": ("mujoco_playground", "Apache-2.0"),
}
"""First part of a collection's name to its own name and its licence."""
ROBOTS = {
    "aero_hand": "Apache-2.0",
    "aloha": "BSD-3-Clause",
    "apollo": "Apache-2.0",
    "barkour": "Apache-2.0",
    "berkeley_humanoid": "BSD-3-Clause",
    "franka_emika_panda": "Apache-2.0",
    "g1": "BSD-3-Clause",
    "go1": "BSD-3-Clause",
    "h1": "BSD-3-Clause",
    "leap_hand": "MIT",
    "op3": "Apache-2.0",
    "spot": "BSD-3-Clause",
    "t1": "Apache-2.0",
}
"""Robots of mujoco_menagerie in mujoco_playground, and their licences there."""
UNLICENSED = "franka_emika_panda_robotiq"
"""Its gripper has no licence that says what is allowed."""
ABOVE = """# Gallery of covered models

These are the public models that [`model_coverage.py`](../benchmarks/model_coverage.py) looks at, unchanged. Below each
picture stand its degrees of freedom and the [backends](backends.md) that cover it; backend `mujoco` takes them all.
How right and how fast the covered ones are, its [results](../benchmarks/RESULTS.md) tell.

{verdict}
"""
BELOW = """The meshes of these robots were not at hand, and their coverage was told with stand-ins (tetrahedra), or no
licence allows pictures of them."""


@dataclass(frozen=True)
class Options:
    """What to draw."""

    coverage: Path
    """The results.csv of model_coverage.py."""
    folder: Path = Path("runs/public_models")
    """Folder of the models' files."""
    out: Path = Path("docs")
    """Folder for gallery.md and the folder gallery of pictures."""


def picture(path: Path) -> Image.Image | None:
    """A picture of a model, from beside and above, as large as it fits; None if its meshes are stand-ins.

    Args:
        path: its MJCF file.
    """
    mujoco = load_mujoco()
    with quiet():
        model = mujoco.MjModel.from_xml_path(str(path))
    if model.nmesh and model.mesh_vertnum.min() <= 4:
        return None
    data = mujoco.MjData(model)
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    width, height = FINER * WIDTH, FINER * HEIGHT
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    camera = mujoco.MjvCamera()
    camera.azimuth, camera.elevation = 135.0, -20.0
    centre, radius = around(model, data)
    camera.lookat[:] = centre
    radius = max(radius, SMALLEST * float(model.stat.extent))
    camera.distance = MARGIN * radius / math.sin(math.radians(0.5 * float(model.vis.global_.fovy)))
    with mujoco.Renderer(model, height, width) as renderer:
        renderer.update_scene(data, camera)
        pixels = renderer.render().copy()
        renderer.enable_segmentation_rendering()
        renderer.update_scene(data, camera)
        pixels[renderer.render()[..., 0] < 0] = PAPER  # most models have no sky
    return Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def around(model: Any, data: Any) -> tuple[np.ndarray, float]:
    """Centre and radius of a sphere around what moves, as far as it is drawn.

    Args:
        model: a ``mujoco.MjModel``.
        data: its ``mujoco.MjData``, whose positions are known.
    """
    moves = model.body_weldid[model.geom_bodyid] > 0
    drawn = moves & (model.geom_group < 3) & (model.geom_rgba[:, 3] > 0.0)
    used = drawn if drawn.any() else moves if moves.any() else np.ones_like(moves)
    middle, reach = data.geom_xpos[used], model.geom_rbound[used, None]
    low, high = (middle - reach).min(0), (middle + reach).max(0)
    centre = 0.5 * (low + high)
    return centre, float((np.linalg.norm(middle - centre, axis=1) + reach[:, 0]).max())


def covered(rows: Sequence[dict[str, str]]) -> list[str]:
    """The backends that cover a model."""
    return [
        r["backend"] for r in rows if r["backend"] in BACKENDS and not r["status"].startswith(("refused", "failed"))
    ]


def told(rows: Sequence[dict[str, str]]) -> tuple[str, str]:
    """A model's degrees of freedom, and the names of the backends that cover it."""
    return rows[0]["nv"], ", ".join(f"`{backend}`" for backend in covered(rows)) or "neither"


def cell(model: Public, rows: Sequence[dict[str, str]]) -> str:
    """What stands in the table for a model: its picture, its name, its size and who covers it."""
    name = model.name.rpartition("/")[2]
    size, by = told(rows)
    return f"![{name}](gallery/{file_of(model)})<br>**{name}**<br>{size} DoF, {by}"


def file_of(model: Public) -> str:
    """The name of a model's picture."""
    return f"{model.name.replace('/', '.')}.jpg"


def robots_of(models: Sequence[Public]) -> list[str]:
    """The robots of :data:`ROBOTS` among some models."""
    names = {model.name.rpartition("/")[2] for model in models if model.assets}
    return [robot for robot in ROBOTS if any(f"{name}_".startswith(f"{robot}_") for name in names)]


def licence(collection: str, models: Sequence[Public]) -> str:
    """A sentence with the licences of a collection's models."""
    name, own = LICENCES[collection.partition("/")[0]]
    sentence = f"Licence of {name}: {own}."
    if robots := robots_of(models):
        listed = "; ".join(f"{robot} {ROBOTS[robot]}" for robot in robots)
        sentence += f" The robots are those of mujoco_menagerie: {listed}."
    return sentence


def page(shown: Sequence[Public], others: Sequence[Public], rows: dict[str, list[dict[str, str]]]) -> str:
    """The Markdown of the gallery.

    Args:
        shown: models that have a picture.
        others: models without.
        rows: rows of the coverage by model.
    """
    every = [*shown, *others]
    counts = {backend: sum(backend in covered(rows[model.name]) for model in every) for backend in BACKENDS}
    verdict = " and ".join(f"`{backend}` covers {n}" for backend, n in counts.items())
    parts = [ABOVE.format(verdict=f"Of {len(every)} models {verdict}.")]
    for collection in dict.fromkeys(model.collection for model in shown):
        models = [model for model in shown if model.collection == collection]
        cells = [cell(model, rows[model.name]) for model in models]
        cells += [""] * (-len(cells) % COLUMNS)
        lines = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
        parts += [f"## {collection}", "", licence(collection, models), "", markdown_table([""] * COLUMNS, lines)]
    if others:
        table = markdown_table(("model", "DoF", "covered by"), [[m.name, *told(rows[m.name])] for m in others])
        parts += ["## Without a picture", "", BELOW, "", table]
    return "\n".join(parts)


def run(options: Options) -> int:
    """Draws the pictures and writes the page; returns exit code 0.

    Raises:
        InputError: the coverage is not there, or a file cannot be written.
    """
    try:
        with options.coverage.open(encoding="utf-8", newline="") as file:
            known = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"cannot read {options.coverage}: {error.strerror or error}") from error
    rows: dict[str, list[dict[str, str]]] = {}
    for row in known:
        rows.setdefault(row["model"], []).append(row)
    pictures = options.out / "gallery"
    shutil.rmtree(pictures, ignore_errors=True)
    make_folder(pictures)
    shown: list[Public] = []
    others: list[Public] = []
    for model in PUBLIC:
        if model.name not in rows:
            continue
        try:
            image = None if UNLICENSED in model.name else picture(build(model, options.folder))
        except NotHad as error:
            print(f"{model.name}: {error}")
            image = None
        if image is None:
            others.append(model)
            continue
        content = io.BytesIO()
        image.save(content, "JPEG", quality=QUALITY, optimize=True)
        (pictures / file_of(model)).write_bytes(content.getvalue())
        shown.append(model)
    write_atomically(options.out / "gallery.md", page(shown, others, rows))
    print(f"{len(shown)} pictures are in {pictures}")
    return 0


if __name__ == "__main__":
    sys.exit(script_exit_code(lambda: run(tyro.cli(Options, description=__doc__)), resumes=False))
