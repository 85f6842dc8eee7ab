"""A task as the text of a file, and the files that it is written to."""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch

from mage_diffsim.envs import make_physics

SLIDE = Path(__file__).with_name("slide.py").read_text()
SLIDE = SLIDE.replace("import Task\n", "import Task, register_task\n").replace(
    "class Slide", "@register_task\nclass Slide"
)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def pushed(task):
    """The velocity after one full push from rest: 3 N times 0.05 s over the mass."""
    return (
        make_physics(task, "torch", dtype=torch.float64)
        .step(torch.zeros(1, 2).double(), torch.ones(1, 1).double())[0, 1]
        .item()
    )


def with_helper(mass):
    """A task file whose mass comes from a module beside it, and that module."""
    slide = SLIDE.replace("import torch\n", "import torch\n\nfrom helper import MASS\n", 1).replace(
        "self.scale_action(action)[..., 0]", "self.scale_action(action)[..., 0] / MASS"
    )
    return {"slide": slide, "helper": f"MASS = {mass}\n"}
