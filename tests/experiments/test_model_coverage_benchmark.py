"""The script over public models: how files are had and put together, and what it reports."""

from __future__ import annotations

import csv
import io
import re
import tarfile
import urllib.error
import zipfile
from dataclasses import replace

import pytest

pytest.importorskip("mujoco")

import model_coverage
from model_coverage import Options, run
from public_models import downloading
from public_models.building import assemble, build, with_chain
from public_models.collections import ARCHIVES, PUBLIC, WHEELS, Public
from public_models.downloading import NotHad, bring

from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.errors import InputError
from tests.model_checks.tiny_models import SLIDER, STONES


def test_names_differ_and_sources_are_known():
    assert len({model.name for model in PUBLIC}) == len(PUBLIC) >= 74
    assert {model.source for model in PUBLIC} == {"gymnasium", *WHEELS, *ARCHIVES}
    inside = ("mujoco_menagerie/", "mujoco_playground/")
    assert all(folder.startswith(inside) for model in PUBLIC for folder in model.assets)


def test_gymnasiums_models_are_its_installed_files(tmp_path):
    for model in PUBLIC:
        if model.source == "gymnasium":
            assert build(model, tmp_path).is_file()


CHAIN = """<mujoco model="{}"><default><joint axis="0 0 1"/><geom size=".1"/><default class="visual"/><default
 class="inertial"/><motor ctrlrange="-1 1"/></default><worldbody>{}</worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("kind", "world", "bodies", "nv", "nu"),
    [
        ("swimmer", "<body><joint/><geom/></body>", 6, 6, 5),
        ("LQR", "<geom/>", 2, 2, 1),
        ("LQR", "<geom/>", 6, 6, 2),
    ],
)
def test_chains_get_their_bodies_and_motors(kind, world, bodies, nv, nu):
    model = load_mujoco().MjModel.from_xml_string(with_chain(CHAIN.format(kind, world), bodies))
    assert (model.nv, model.nu) == (nv, nu)


MAIN = """<mujoco><include file="robot.xml"/><worldbody><geom type="plane" size="1 1 1"/></worldbody></mujoco>"""
ROBOT = """<mujoco><compiler meshdir="parts"/><asset><mesh name="m" file="m.obj"/></asset><worldbody><body><joint/>
 <geom type="mesh" mesh="m"/></body></worldbody></mujoco>"""
TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def test_a_model_gets_the_files_that_it_names_from_the_last_folder_that_has_them(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    (one / "main.xml").write_text(MAIN)
    (one / "robot.xml").write_text("<mujoco/>")
    (two / "robot.xml").write_text(ROBOT)
    with pytest.raises(NotHad, match=r"main\.xml names m\.obj, which is in no folder of its assets"):
        assemble(one / "main.xml", [one, two], tmp_path / "out")
    (one / "m.obj").write_text(TETRAHEDRON)
    made = assemble(one / "main.xml", [one, two], tmp_path / "out")
    assert made.read_text() == MAIN
    assert load_mujoco().MjModel.from_xml_path(str(made)).nmesh == 1


def test_of_a_wheel_that_lies_there_the_models_are_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "brax-0.14.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brax/envs/assets/ant.xml", SLIDER)
        wheel.writestr("brax/training/code.py", "")
    ant = next(model for model in PUBLIC if model.name == "brax/ant")
    assert build(ant, tmp_path).read_text() == SLIDER
    assert not (tmp_path / "brax-0.14.2" / "brax" / "training").exists()


def test_of_an_archive_the_folders_that_are_asked_for_are_unpacked(tmp_path, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("sha/unitree_go1/go1.xml", "sha/other/other.xml"):
            member = tarfile.TarInfo(name)
            member.size = len(SLIDER)
            tar.addfile(member, io.BytesIO(SLIDER.encode()))
    packed.seek(0)
    monkeypatch.setattr(downloading.urllib.request, "urlopen", lambda address, timeout: packed)
    assert bring("mujoco_menagerie", tmp_path) == tmp_path
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.xml")}
    assert found == {"mujoco_menagerie/unitree_go1/go1.xml"}


def test_a_download_that_fails_is_named_and_not_tried_again(tmp_path, monkeypatch):
    calls = []

    def fail(address, timeout):
        calls.append(address)
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(downloading.urllib.request, "urlopen", fail)
    monkeypatch.setattr(downloading, "_failed", {})
    for _ in range(2):
        with pytest.raises(NotHad, match=r"mujoco_playground/tar\.gz/.* could not be downloaded: .*no route"):
            bring("mujoco_playground", tmp_path)
    assert len(calls) == 1


@pytest.fixture
def public(tmp_path, monkeypatch):
    """Three models, one of which cannot be had."""
    for name, text in (("slider", SLIDER), ("stones", STONES)):
        (tmp_path / f"{name}.xml").write_text(text)
    monkeypatch.setattr(downloading, "gymnasium_assets", lambda: tmp_path)
    names = ("slider", "stones", "gone")
    monkeypatch.setattr(model_coverage, "PUBLIC", [Public(f"few/{x}", "gymnasium", f"{x}.xml") for x in names])
    return Options(no_compile=True, out=tmp_path / "out", folder=tmp_path)


def test_what_is_covered_is_told_and_kept(public, monkeypatch, capsys):
    assert run(public) == 0
    text = (public.out / "summary.md").read_text()
    assert "Of 2 models are covered: warp 1, mjx" in text and "1 models could not be had." in text
    assert re.search(r"\| few/stones \| warp \| .*a contact of mesh with mesh \(1\)", text)
    assert "| few/gone | there is no file gone.xml in gymnasium |" in text and "| few | 2 | 1 |" in text
    with (public.out / "results.csv").open() as file:
        assert {(r["collection"], r["model"]) for r in csv.DictReader(file)} == {
            ("few", "few/slider"),
            ("few", "few/stones"),
        }
    monkeypatch.setattr(model_coverage, "check", None)  # nothing is checked again
    assert run(public) == 0
    with pytest.raises(TypeError):
        run(replace(public, states=8))  # other settings
    capsys.readouterr()


def test_patterns_choose_models(public, capsys):
    assert run(replace(public, list=True, only=("few/sl*", "few/g*"))) == 0
    assert capsys.readouterr().out.split() == ["few/slider", "few/gone"]
    with pytest.raises(InputError, match="--only many/\\* is the name of no model"):
        run(replace(public, only=("many/*",)))
    with pytest.raises(InputError, match="backend of MuJoCo models"):
        run(replace(public, backends=("moojoco",)))
