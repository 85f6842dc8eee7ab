"""``mage-diffsim check-model``."""

from __future__ import annotations

import csv
import re

import pytest

pytest.importorskip("mujoco")

from mage_diffsim.model_checks import rows
from mage_diffsim.model_checks.apart import Ended
from tests.learner.cli.commands import assert_one_sentence, run
from tests.model_checks.tiny_models import FALLING, PASSIVE, SLIDER, STONES

URDF = """<robot name="arm"><link name="base"/><link name="arm"><inertial><mass value="1"/><inertia ixx="1" iyy="1"
 izz="1" ixy="0" ixz="0" iyz="0"/></inertial><collision><geometry><mesh filename="package://arm/arm.stl"/></geometry>
 </collision></link><joint name="j" type="continuous"><parent link="base"/><child link="arm"/></joint></robot>"""


@pytest.fixture
def folder(tmp_path):
    """Models, includes, a scene, and files that are none of these."""
    made = tmp_path / "models"
    (made / "parts").mkdir(parents=True)
    texts = {
        "slider": SLIDER,
        "stones": STONES,
        "passive": PASSIVE,
        "copy": SLIDER,
        "scene": '<mujoco><include file="parts/floor.xml"/></mujoco>',
        "parts/floor": "<mujocoinclude><worldbody><geom size='.1'/></worldbody></mujocoinclude>",
        "parts/drive": '<mujoco><actuator><motor joint="x"/></actuator></mujoco>',
        "parts/colours": '<mujocoinclude><worldbody><geom class="red"/></worldbody></mujocoinclude>',
        "cut off": "<mujoco><worldbody>",
        "misspelt": '<mujoco><default><geom sise="1"/></default></mujoco>',
        "robot": URDF,
    }
    for name, text in texts.items():
        (made / f"{name}.xml").write_text(text)
    return made


def words(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


def table(path):
    with path.open(newline="") as file:
        return {(row["model"], row["backend"]): row for row in csv.DictReader(file)}


def test_every_element_that_is_in_the_way_is_named(folder, tmp_path, capsys):
    assert run("check-model", folder / "stones.xml", "--no-compile", "--csv", tmp_path / "out" / "a.csv") == 0
    text = words(capsys)
    assert "3 bodies, 3 joints (2 free, 1 hinge)" in text and "nq 15, nv 13, nu 1, na 0" in text
    assert "6 pairs (2 plane-mesh, 2 sphere-mesh" in text
    assert "warp does not cover the model" in text and "mujoco covers the model" in text
    assert "- a contact of mesh with mesh, 1x: geoms 'one' and 'two'" in text
    found = table(tmp_path / "out" / "a.csv")
    assert tuple(found["stones", "warp"]) == rows.FIELDS
    assert "a contact of mesh with mesh (1)" in found["stones", "warp"]["in_the_way"]
    assert found["stones", "mujoco"]["status"] == "covered" and found["stones", "mujoco"]["in_the_way"] == ""
    assert (found["stones", "warp"]["nv"], found["stones", "warp"]["pairs"]) == ("13", "6")


def test_a_folder_is_searched_and_what_is_no_model_is_listed(folder, tmp_path, capsys):
    assert run("check-model", folder, "--no-compile", "--csv", tmp_path / "a.csv") == 0
    text = words(capsys)
    assert "stones: warp refused, mjx" in text and "copy: warp covered" in text
    parts, _, broken = text.partition("Not a model by itself")[2].partition("Cannot be checked")
    for file, why in (
        ("parts/floor", r"it is included by scene\.xml"),
        ("parts/colours", r"it is an include \(mujocoinclude\)"),
        ("parts/drive", "it has no worldbody: an include"),
        ("scene", "it has no joint: an include or a scene"),
        ("slider", "the same model as copy"),
    ):
        assert re.search(f"│ {file} +│ {why}", parts), file
    for file, why in (
        ("cut off", "MuJoCo does not load it: XML parse error"),
        ("misspelt", "MuJoCo does not load it: .*Schema violation"),
        ("robot", "it is URDF, which has no actuators"),
    ):
        assert re.search(f"│ {file} +│ {why}", broken), file
    found = table(tmp_path / "a.csv")
    assert {model for model, _ in found} == {"stones", "copy", "passive"}
    assert found["passive", "mujoco"]["status"].startswith("refused: the model has no actuator")


def test_a_folder_without_a_model_is_refused_after_its_files_are_listed(folder, tmp_path, capsys):
    assert run("check-model", folder / "parts", folder / "slider.xml", "--no-compile", "--csv", tmp_path / "a.csv") == 2
    out, err = capsys.readouterr()
    assert re.search(r"parts/floor +│ it is an include \(mujocoinclude\)", out)
    assert err == f"mage-diffsim: no file in {folder / 'parts'} is a model by itself that MuJoCo loads\n"
    assert {model for model, _ in table(tmp_path / "a.csv")} == {"slider"}


def test_a_model_that_is_too_large_says_so_in_few_words_everywhere(folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("warp")
    from mage_diffsim.envs.warp.compiler import cost

    monkeypatch.setattr(rows.Worker, "call", lambda worker, function, *arguments: function(*arguments))
    monkeypatch.setattr(rows.Worker, "each", lambda worker, function, *arguments: function(*arguments))
    asked = "check-model", folder / "slider.xml", "--csv", tmp_path / "a.csv"
    label = "a size beyond what the backend compiles"
    # By the length of its code, and before that is written.
    monkeypatch.setattr(cost, "of_code", lambda *kernels: cost.Cost(seconds=7200.0, gib=1.0))
    for flags in ((), ("--no-compile",)):
        assert run(*asked, *flags) == 0
        text, row = words(capsys), table(tmp_path / "a.csv")["slider", "warp"]
        assert row["in_the_way"] == f"{label} (1)"
        assert re.fullmatch("refused: compiling Warp kernels for .* would take some 120 minutes .*", row["status"])
        assert "would take some 120 minutes" in text
        monkeypatch.setattr(cost, "estimate", lambda model: cost.Cost(seconds=7200.0, gib=1.0))
    assert f"- {label}: compiling Warp kernels for" in text


def test_models_of_one_file_name_are_told_apart(tmp_path, capsys):
    for folder, text in (("a b", SLIDER), ("c", PASSIVE)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.xml").write_text(text)
    files = tmp_path / "a b" / "model.xml", tmp_path / "c" / "model.xml"
    assert run("check-model", *files, "--no-compile", "--csv", tmp_path / "a.csv") == 0
    capsys.readouterr()
    found = table(tmp_path / "a.csv")
    assert found["model", "mujoco"]["status"] == "covered"
    assert found["c/model", "mujoco"]["status"].startswith("refused: the model has no actuator")


def test_a_model_that_breaks_its_process_is_a_row(folder, tmp_path, monkeypatch, capsys):
    class Broken(rows.Worker):
        def call(self, function, *arguments):
            if function is not rows.model_facts:
                return super().call(function, *arguments)
            raise Ended("the process ended by SIGSEGV")

    from mage_diffsim.model_checks import apart

    monkeypatch.setattr(apart, "Worker", Broken)
    assert run("check-model", folder, "--no-compile", "--csv", tmp_path / "a.csv") == 1
    capsys.readouterr()
    found = table(tmp_path / "a.csv")
    assert {row["status"] for row in found.values()} == {"failed: the process ended by SIGSEGV"} and len(found) == 9


@pytest.mark.slow
def test_a_covered_model_is_measured(folder, tmp_path, capsys):
    pytest.importorskip("warp")
    flags = ("--states", 6, "--worlds", 64, "--soak", 300, "--threads", 1, "--csv", tmp_path / "a.csv")
    assert run("check-model", folder / "slider.xml", "--backend", "warp", "--backend", "mujoco", *flags) == 0
    text = words(capsys)
    assert "warp float64 adjoint compilation" in text and text.count("right") == 2
    assert "0 values and 0 gradients not finite in 300 visited states" in text
    row = table(tmp_path / "a.csv")["slider", "warp"]
    assert row["status"] == "right" and row["cached"] in ("True", "False") and int(row["count"]) == 6
    assert float(row["value_worst"]) < 1e-12 and float(row["state_worst"]) < 1e-6
    assert all(
        float(row[name]) > 0.0 for name in ("compile_s", "step_ms", "step_vjp_ms", "c_step_ms", "c_converged_ms")
    )


def test_a_measurement_that_breaks_its_process_is_a_row_with_what_was_found_before(
    folder, tmp_path, monkeypatch, capsys
):
    def each(worker, function, *arguments):
        yield {"derivative": "adjoint", "compile_mib": 123.0}
        raise Ended("not done after 900 s")

    monkeypatch.setattr(rows.Worker, "each", each)
    monkeypatch.setattr(rows.Worker, "call", lambda worker, function, *arguments: function(*arguments))
    assert run("check-model", folder / "slider.xml", "--csv", tmp_path / "a.csv") == 1
    row = table(tmp_path / "a.csv")["slider", "warp"]
    assert (row["status"], row["compile_mib"], row["nv"]) == ("failed: not done after 900 s", "123.0", "1")
    assert "failed: not done after 900 s" in words(capsys)


def test_a_model_from_which_c_diverges_everywhere_is_not_judged(tmp_path, capsys):
    (tmp_path / "falling.xml").write_text(FALLING)
    flags = ("--backend", "mujoco", "--states", 3, "--worlds", 8, "--soak", 8)
    assert run("check-model", tmp_path / "falling.xml", *flags) == 0
    text = words(capsys)
    assert "MuJoCo C itself diverges from 3 more" in text
    assert "0 values and 0 gradients not finite in 8 visited states; MuJoCo C itself diverges from 8" in text
    assert "unjudged: MuJoCo C diverges from every visited state" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"no model was given; accepted are MJCF files, folders of them, gymnasium:FILE.xml or gymnasium:"),
        (
            ["nothing.xml"],
            r"there is no file or folder nothing\.xml; accepted is MJCF, a folder of it, gymnasium: or "
            r"gymnasium:FILE\.xml",
        ),
        (["gymnasium:human.xml"], r"unknown model of gymnasium 'human\.xml': choose one of ant\.xml, .*"),
        (["{}/parts"], r".*"),
        (["{}/slider.xml", "{}/cut off.xml"], r".*cut off\.xml cannot be checked: MuJoCo does not load it: .*"),
        (
            ["{}/robot.urdf"],
            r".*robot\.urdf cannot be checked: it is URDF, which has no actuators; save it as MJCF with "
            r"mujoco\.mj_saveLastXML and add actuators",
        ),
        (["{}/scene.xml"], r".*scene\.xml is not a model by itself: .*"),
        (["{}/slider.xml", "--backend", "moojoco"], r"unknown backend of check-model 'moojoco': choose one of mjx, .*"),
        (["{}/slider.xml", "--states", "0"], r"--states is 0; accepted is 1 or more"),
        (["{}/slider.xml", "--worlds", "-1"], r"--worlds is -1; accepted is 0 or more"),
        (["{}/slider.xml", "--seconds", "nan"], r"--seconds is nan; accepted is 0\.001 or more"),
        (["{}/slider.xml", "--derivative", "magic"], r"unknown derivative source of backend warp 'magic': .*"),
        (["{}/slider.xml", "--device", "moon"], r".*moon.*"),
        (["{}/slider.xml", "--csv", "{}"], r"cannot write .*: it is a folder; give the name of a file"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_be_checked_is_one_sentence(arguments, sentence, folder, capsys):
    pytest.importorskip("warp")
    (folder / "robot.urdf").write_text(URDF)
    if arguments == ["{}/parts"]:
        for file in (folder / "parts").iterdir():
            file.unlink()
        sentence = r"no \.xml file lies in .*"
    assert run("check-model", *(a.format(folder) for a in arguments)) == 2
    assert_one_sentence(capsys, sentence)
