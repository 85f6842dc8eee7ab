"""Puts the files of a public model together as the code of its collection does."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from public_models.collections import Public
from public_models.downloading import NotHad, bring

STIFFNESS = "20"
"""Of the joints of ``lqr``, which the collection draws between 15 and 25."""


def build(model: Public, folder: Path) -> Path:
    """The MJCF file of a model, with everything that it names beside it.

    Raises:
        NotHad: a file is not there.
    """
    root = bring(model.source, folder)
    file = root / model.file
    if not file.is_file():
        raise NotHad(f"there is no file {model.file} in {model.source}")
    if model.chain:
        text = with_chain(file.read_text(encoding="utf-8"), model.chain)
        made = file.with_name(f"{file.stem}_of_{model.chain}.xml")  # beside the file, whose includes it has
        made.write_text(text, encoding="utf-8")
        return made
    if not model.assets:
        return file
    bring("mujoco_menagerie", folder)
    return assemble(file, [folder / x for x in model.assets], folder / "built" / model.name)


def with_chain(text: str, bodies: int) -> str:
    """The XML of dm_control's ``lqr`` or ``swimmer`` with its bodies, joints and motors."""
    mjcf = ET.fromstring(text)
    actuator = ET.SubElement(mjcf, "actuator")
    swims = mjcf.get("model") == "swimmer"
    parent = mjcf.find("./worldbody/body" if swims else "./worldbody")
    assert parent is not None
    for i in range(bodies - 1 if swims else bodies):
        if swims:
            body = ET.SubElement(parent, "body", name=f"segment_{i}", pos="0 .1 0")
            for kind in ("visual", "inertial"):
                ET.SubElement(body, "geom", {"class": kind, "name": f"{kind}_{i}"})
            limit = 360.0 / bodies
            ET.SubElement(body, "joint", name=f"joint_{i}", range=f"{-limit} {limit}")
        else:
            body = ET.SubElement(parent, "body", name=f"body_{i}", pos=".25 0 0" if i else ".25 0 .1")
            ET.SubElement(body, "joint", name=f"joint_{i}", stiffness=STIFFNESS)
            ET.SubElement(body, "geom", name=f"geom_{i}")
        if swims or i < max(1, bodies // 3):  # lqr_2_1 has one motor, lqr_6_2 two
            ET.SubElement(actuator, "motor", name=f"motor_{i}", joint=f"joint_{i}")
        parent = body
    return ET.tostring(mjcf, encoding="unicode")


def assemble(main: Path, assets: list[Path], out: Path) -> Path:
    """Copies a file, what it includes and the assets that they name to where MuJoCo looks for them.

    The collection's code gives MuJoCo a dictionary of files by their names without folders. Files themselves are
    unchanged.

    Args:
        main: the model's file.
        assets: folders of that dictionary; of two files of a name the later one counts.
        out: folder for the copies.

    Raises:
        NotHad: a file that is named is in none of the folders.
    """
    known = {file.name: file for folder in assets if folder.is_dir() for file in sorted(folder.iterdir())}

    def find(name: str) -> Path:
        base = Path(name).name
        if base not in known:
            raise NotHad(f"{main.name} names {name}, which is in no folder of its assets")
        return known[base]

    texts: list[ET.Element] = []

    def take(file: Path, target: Path) -> None:
        _copy(file, target)
        texts.append(ET.parse(file).getroot())
        for include in texts[-1].iter("include"):
            name = include.get("file", "")
            take(find(name), out / name)

    take(main, out / main.name)
    folders = {"mesh": "", "texture": ""}
    for compiler in (x for text in texts for x in text.iter("compiler")):
        both = compiler.get("assetdir")
        for kind in folders:
            folders[kind] = compiler.get(f"{kind}dir") or both or folders[kind]
    for kind, name in _named(texts):
        _copy(find(name), out / folders[kind] / name)
    return out / main.name


def _named(texts: list[ET.Element]) -> Iterator[tuple[str, str]]:
    """Kind of folder and name of every asset file."""
    for text in texts:
        for element in text.iter():
            if element.tag in ("mesh", "hfield", "skin", "texture"):
                kind = "texture" if element.tag == "texture" else "mesh"
                for key, value in element.attrib.items():
                    if key.startswith("file"):
                        yield kind, value


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.stat().st_size != file.stat().st_size:
        shutil.copy(file, target)
