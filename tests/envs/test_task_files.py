"""Tasks in files: the modules beside them, pickles and worker processes."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from mage_diffsim.envs import make_physics, make_task
from mage_diffsim.errors import InputError
from tests.envs.written_tasks import SLIDE, pushed, with_helper, write

pytestmark = pytest.mark.usefixtures("forgotten")


def test_a_task_file_imports_a_module_beside_it(tmp_path):
    folder = write(tmp_path, **with_helper(2.0))
    assert pushed(make_task(f"{folder}/slide.py:Slide")) == pytest.approx(0.075)
    assert "helper" not in sys.modules


def test_physics_named_by_the_task_lie_beside_it(tmp_path):
    pytest.importorskip("jax")
    puck_jax = """
        import jax.numpy as jnp

        from puck_constants import MASS


        def make_step(task):
            def step(state, action):
                velocity = state[1] + task.dt * 3.0 * action[0] / MASS
                return jnp.stack([state[0] + task.dt * velocity, velocity])

            return step
    """
    puck = SLIDE.replace("horizon = 100", 'horizon = 100\n    physics = {"jax": "puck_jax:make_step"}')
    folder = write(tmp_path, puck=puck, puck_jax=puck_jax, puck_constants="MASS = 1.0\n")
    task = make_task(f"{folder}/puck.py:Slide")
    state, action = torch.rand(5, 2, dtype=torch.float64), torch.rand(5, 1, dtype=torch.float64)
    expected = make_physics(task, "torch", dtype=torch.float64).step(state, action)
    torch.testing.assert_close(make_physics(task, "jax", dtype=torch.float64).step(state, action), expected)

    # So does a subclass in another folder: the class that names the physics knows where they are.
    other = write(tmp_path / "other", puck_jax="raise RuntimeError('the wrong one')\n")
    heavy = f"""
        from mage_diffsim import make_task

        class Heavy(type(make_task({str(folder / "puck.py:Slide")!r}))):
            name = "HeavyPuck"
    """
    write(other, heavy=heavy)
    inherited = make_physics(make_task(f"{other}/heavy.py:Heavy"), "jax", dtype=torch.float64)
    torch.testing.assert_close(inherited.step(state, action), expected)


@pytest.mark.parametrize(
    "reference, message",
    [
        ("absent_jax:make_step", "there is no module 'absent_jax'"),
        ("slide:absent", "module 'slide' has no 'absent'; it has: Slide"),
        ("slide", "accepted is module:attribute"),
        (":make_step", "accepted is module:attribute"),
    ],
)
def test_physics_that_are_not_there_are_named_in_one_sentence(tmp_path, reference, message):
    pytest.importorskip("jax")
    folder = write(tmp_path, slide=SLIDE.replace("dt = 0.05", f'physics = {{"jax": "{reference}"}}\n    dt = 0.05'))
    with pytest.raises(InputError, match=rf"task SlideOfFiles: physics\['jax'\] is '{reference}'.*{message}"):
        make_physics(make_task(f"{folder}/slide.py:Slide"), "jax")


def test_two_folders_with_modules_of_one_name_get_their_own(tmp_path):
    light, heavy = (write(tmp_path / str(mass), **with_helper(mass)) for mass in (1.0, 3.0))
    for folder in (light, heavy):
        renamed = (folder / "slide.py").read_text().replace("SlideOfFiles", f"Slide{folder.name[0]}")
        (folder / "slide.py").write_text(renamed)
    tasks = [make_task(f"{folder}/slide.py:Slide") for folder in (light, heavy, light)]
    assert [pushed(task) for task in tasks] == pytest.approx([0.15, 0.05, 0.15])


@pytest.mark.parametrize("fails", [False, True])
def test_the_folder_can_be_imported_from_by_name_while_the_file_loads(tmp_path, fails):
    path, modules = list(sys.path), set(sys.modules)
    by_name = 'import importlib\n\nSCALE = importlib.import_module("by_name").SCALE\n' + ("1 / 0\n" if fails else "")
    for folder, scale in (("a", 2.0), ("b", 3.0)):  # two folders with a module of one name
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "by_name.py").write_text(f"SCALE = {scale}\n")
        (tmp_path / folder / "slide.py").write_text(SLIDE.replace("SlideOfFiles", f"Slide_{folder}") + by_name)
        if fails:
            with pytest.raises(ZeroDivisionError):
                make_task(f"{tmp_path}/{folder}/slide.py:Slide")
        else:
            task = make_task(f"{tmp_path}/{folder}/slide.py:Slide")
            assert scale == sys.modules[type(task).__module__].SCALE
        assert sys.path == path and "by_name" not in sys.modules.keys() - modules


def test_imports_that_run_later_find_the_same_modules(tmp_path):
    lazy = SLIDE + "\n    def mass(self):\n        import helper\n\n        return helper.MASS\n"
    folders = [write(tmp_path / str(m), slide=lazy.replace("OfFiles", f"Of{m}"), helper=f"MASS = {m}") for m in (1, 2)]
    tasks = [make_task(f"{folder}/slide.py:Slide") for folder in folders]
    assert [task.mass() for task in tasks] == [1, 2]


def test_packages_and_every_form_of_import_work_beside_a_task_file(tmp_path):
    imports = """
        import parts.inner.deep as deep
        import parts.one
        import plain.leaf
        from parts import two
        from parts.inner import *
        from parts.one import ONE

        assert (ONE, parts.one.ONE, two.TWO, deep.DEEP, NAMED, plain.leaf.LEAF) == (1, 1, 2, 3, 4, 5)
    """
    write(tmp_path, slide=textwrap.dedent(imports) + SLIDE)
    parts = tmp_path / "parts"
    write(parts, __init__="", one="ONE = 1\n", two="from .one import ONE\nimport parts.one\nTWO = 2 * ONE")
    write(parts / "inner", __init__="__all__ = ['NAMED']\nNAMED, OTHER = 4, 5", deep="import base\nDEEP = 3")
    write(tmp_path / "plain", leaf="import base\nLEAF = 5\n")
    write(tmp_path, base="")
    assert pushed(make_task(f"{tmp_path}/slide.py:Slide")) == pytest.approx(0.15)
    assert not {"parts", "plain", "base"} & set(sys.modules)


def test_a_file_beside_the_task_does_not_replace_the_standard_library_or_this_package(tmp_path):
    broken = "raise RuntimeError('the wrong one')\n"
    imports = "import json, mage_diffsim\nfrom decimal import Decimal\n"
    write(tmp_path, slide=imports + SLIDE, json=broken, decimal=broken, mage_diffsim=broken)
    assert make_task(f"{tmp_path}/slide.py:Slide").horizon == 100


def test_a_module_that_its_folder_on_the_path_offers_anyway_is_the_same_one(tmp_path, monkeypatch):
    folder = write(tmp_path, **with_helper(2.0))
    with monkeypatch.context() as patched:
        patched.syspath_prepend(folder)
        helper = importlib.import_module("helper")
        helper.MASS = 6.0
        assert pushed(make_task(f"{folder}/slide.py:Slide")) == pytest.approx(0.025)


def test_a_changed_module_beside_a_task_is_read_again_and_an_unchanged_one_is_not(tmp_path):
    folder = write(tmp_path, **with_helper(2.0))
    (folder / "helper.py").write_text("from constants import MASS\n\nclass Mark:\n    pass\n")
    (folder / "constants.py").write_text("MASS = 2.0\n")
    first = make_task(f"{folder}/slide.py:Slide")
    mark = sys.modules[type(first).__module__].__dict__["MASS"]
    assert mark == 2.0

    def marks():
        return [vars(m)["Mark"] for n, m in sys.modules.items() if n.startswith("mage_diffsim_task_helper")]

    before = marks()
    make_task(f"{folder}/slide.py:Slide")
    assert marks() == before
    (folder / "constants.py").write_text("MASS = 5.0\n")  # same length, same second
    assert pushed(make_task(f"{folder}/slide.py:Slide")) == pytest.approx(0.03)
    assert pushed(first) == pytest.approx(0.075)


def test_classes_beside_a_task_can_be_dataclasses_and_pickled(tmp_path):
    params = """
        from __future__ import annotations

        import dataclasses
        from typing import ClassVar


        @dataclasses.dataclass(frozen=True)
        class Params:
            mass: float = 2.0
            kind: ClassVar[str] = "params"
    """
    slide = SLIDE.replace("import torch\n", "import torch\nfrom params import Params\nPARAMS = Params()\n", 1)
    write(tmp_path, slide=slide, params=params)
    task = make_task(f"{tmp_path}/slide.py:Slide")
    made = sys.modules[type(task).__module__].PARAMS
    assert [f.name for f in dataclasses.fields(made)] == ["mass"]
    assert pickle.loads(pickle.dumps(made)) == made
    assert type(pickle.loads(pickle.dumps(task))) is type(task)


def test_a_module_beside_a_task_that_imports_what_is_not_there_says_so(tmp_path):
    write(tmp_path, slide="import helper\n" + SLIDE, helper="import a_package_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        make_task(f"{tmp_path}/slide.py:Slide")


def test_a_file_of_a_package_with_relative_imports_is_named_by_its_module(tmp_path):
    write(tmp_path / "pack", __init__="", slide="from .helper import MASS\n" + SLIDE, helper="MASS = 1")
    with pytest.raises(InputError, match=r"the file is part of a package.*give\s+package.module:ClassName"):
        make_task(f"{tmp_path}/pack/slide.py:Slide")


def _push_in_a_worker(reference, queue):
    queue.put(pushed(make_task(reference)))


def test_a_spawned_worker_loads_a_task_file_in_the_same_way(tmp_path):
    folder = write(tmp_path, **with_helper(2.0))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=_push_in_a_worker, args=(f"{folder}/slide.py:Slide", queue))
    worker.start()
    try:
        assert queue.get(timeout=300) == pytest.approx(0.075)
    finally:
        worker.join()


def test_another_process_unpickles_a_task_of_a_file_and_its_physics(tmp_path):
    folder = write(tmp_path, **with_helper(2.0))
    physics = make_physics(make_task(f"{folder}/slide.py:Slide"), dtype=torch.float64)
    code = """
import pickle, sys, torch
physics = pickle.load(sys.stdin.buffer)
print(type(physics.task).__name__, physics.step(torch.zeros(1, 2).double(), torch.ones(1, 1).double())[0, 1].item())
"""
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(physics), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    name, velocity = done.stdout.decode().split()
    assert name == "Slide" and float(velocity) == pytest.approx(0.075)
