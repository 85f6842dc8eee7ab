"""The gallery of public models: its page and its pictures."""

from __future__ import annotations

import csv

import numpy as np
import pytest

pytest.importorskip("mujoco")

import gallery
from public_models.collections import PUBLIC

from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.errors import InputError
from tests.model_checks.tiny_models import SLIDER


def coverage(path, names):
    """A results.csv in which `warp` covers every model and `mjx` none."""
    rows = [
        {"model": name, "backend": backend, "status": status, "nv": 3}
        for name in names
        for backend, status in (("warp", "covered"), ("mjx", "refused: no"), ("mujoco", "covered"))
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_every_collection_has_a_licence():
    for collection in {model.collection for model in PUBLIC}:
        models = [model for model in PUBLIC if model.collection == collection]
        sentence = gallery.licence(collection, models)
        assert sentence.startswith("Licence of ")
        robots = {m.name.split("/")[-1] for m in models if m.assets}
        assert not robots or "mujoco_menagerie" in sentence
    assert "g1 BSD-3-Clause" in gallery.licence("mujoco_playground/locomotion", PUBLIC)


def test_every_robot_of_the_menagerie_has_a_licence():
    for model in PUBLIC:
        if model.assets and gallery.UNLICENSED not in model.name:
            assert gallery.robots_of([model]), model.name


def test_the_page_tells_who_covers_what(tmp_path, monkeypatch, capsys):
    from PIL import Image

    names = ["gymnasium/humanoid", "gymnasium/point", "brax/ant"]
    pictures = {"humanoid.xml": Image.new("RGB", (4, 3)), "point.xml": None}
    monkeypatch.setattr(gallery, "picture", lambda path: pictures[path.name])
    monkeypatch.setattr(gallery, "build", without_brax(gallery.build))
    file = coverage(tmp_path / "results.csv", names)
    assert gallery.run(gallery.Options(file, out=tmp_path)) == 0
    assert [x.name for x in (tmp_path / "gallery").iterdir()] == ["gymnasium.humanoid.jpg"]
    text = (tmp_path / "gallery.md").read_text()
    assert "Of 3 models `warp` covers 3 and `mjx` covers 0." in text
    assert "![humanoid](gallery/gymnasium.humanoid.jpg)<br>**humanoid**<br>3 DoF, `warp` |" in text
    assert "| brax/ant | 3 | `warp` |" in text and "| gymnasium/point | 3 | `warp` |" in text
    with pytest.raises(InputError, match="cannot read"):
        gallery.run(gallery.Options(tmp_path / "none.csv", out=tmp_path))


def without_brax(build):
    def built(model, folder):
        if model.source == "brax":
            raise gallery.NotHad("not here")
        return build(model, folder)

    return built


def test_what_moves_is_in_the_picture():
    mujoco = load_mujoco()
    model = mujoco.MjModel.from_xml_string(SLIDER)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    centre, radius = gallery.around(model, data)
    moving = model.body_weldid[model.geom_bodyid] > 0
    assert moving.any()
    assert (np.linalg.norm(data.geom_xpos[moving] - centre, axis=1) < radius).all()


def test_stand_ins_of_meshes_are_not_drawn(tmp_path):
    (tmp_path / "m.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    (tmp_path / "m.xml").write_text(
        '<mujoco><asset><mesh name="m" file="m.obj"/></asset><worldbody><body><joint/><geom type="mesh" mesh="m"/>'
        "</body></worldbody></mujoco>"
    )
    assert gallery.picture(tmp_path / "m.xml") is None
