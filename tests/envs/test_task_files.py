"""Tasks in files, notebooks and strings: modules beside them, one task by several routes, code without a file."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
import types

import pytest
import torch

from mage_diffsim.envs import BatchedEnv, make_physics, make_task, register_task, registry, rollout, task_names
from mage_diffsim.envs.contract import check_task
from mage_diffsim.errors import InputError

SLIDE = '''
"""A mass on a rail, to be brought to rest at the origin."""

import torch

from mage_diffsim import Task, register_task
from mage_diffsim.envs import uniform


@register_task
class Slide(Task):
    name = "SlideOfFiles"
    state_names = ("position", "velocity")  # [m], [m/s]
    obs_names = ("position", "velocity")
    action_names = ("force",)
    action_low, action_high = (-3.0,), (3.0,)  # what actions -1 and 1 stand for [N]
    dt = 0.05  # [s]
    horizon = 100
    source = "Newton's second law, 1 kg, semi-implicit Euler"
    network_size = "small"  # the paper's small networks

    def step(self, state, action):
        position, velocity = state.unbind(-1)
        velocity = velocity + self.dt * self.scale_action(action)[..., 0]
        return torch.stack([position + self.dt * velocity, velocity], dim=-1)

    def observe(self, state):
        return state

    def reward(self, obs, action, next_obs):
        return -(next_obs[..., 0].square() + 0.1 * next_obs[..., 1].square() + 0.01 * action[..., 0].square())

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 5.0

    def reset(self, n, generator):
        return uniform(n, (-1.0, 0.0), (1.0, 0.0), generator)
'''


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """What a test imports and registers is forgotten."""
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    before, path = dict(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - set(before):
        module = sys.modules[name]
        if "pytest" in str(getattr(module, "__file__", None) or getattr(module, "__path__", "")):
            del sys.modules[name]
    assert sys.path == path


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def with_helper(mass):
    """A task file whose mass comes from a module beside it, and that module."""
    slide = SLIDE.replace("import torch\n", "import torch\n\nfrom helper import MASS\n", 1).replace(
        "self.scale_action(action)[..., 0]", "self.scale_action(action)[..., 0] / MASS"
    )
    return {"slide": slide, "helper": f"MASS = {mass}\n"}


def pushed(task):
    """The velocity after one full push from rest: 3 N times 0.05 s over the mass."""
    return (
        make_physics(task, "torch", dtype=torch.float64)
        .step(torch.zeros(1, 2).double(), torch.ones(1, 1).double())[0, 1]
        .item()
    )


# --- modules beside a task file --------------------------------------------------------------------------------------


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
        ("slide:absent", "module 'slide' has no 'absent'"),
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


# --- one task by several routes --------------------------------------------------------------------------------------


def routes(folder, monkeypatch):
    """Ways to reach the same class, each a function that registers it."""
    package = write(folder / "pack", __init__="", slide=SLIDE)
    write(folder, slide=SLIDE)
    link = folder / "link.py"
    link.symlink_to(folder / "slide.py")
    monkeypatch.chdir(folder)

    def imported(name):
        def route():
            sys.modules.pop(name, None)
            with monkeypatch.context() as patched:
                patched.syspath_prepend(folder)
                importlib.import_module(name)

        return route

    def by_path(reference):
        return lambda: make_task(reference)

    paths = ("slide.py", "./slide.py", f"{folder}/slide.py", "link.py")
    plain = [imported("slide"), *(by_path(f"{path}:Slide") for path in paths)]
    return plain, [imported("pack.slide"), by_path(f"{package}/slide.py:Slide")]


def test_the_same_class_by_any_two_routes_is_one_task(tmp_path, monkeypatch):
    for same in routes(tmp_path, monkeypatch):
        for first in same:
            for second in same:
                registry._TASKS.pop("SlideOfFiles", None)
                first()
                second()
                assert make_task("SlideOfFiles").horizon == 100


def test_an_edited_file_replaces_the_task_whichever_way_it_came(tmp_path, monkeypatch):
    (imported, by_path, *_), _ = routes(tmp_path, monkeypatch)
    imported()
    (tmp_path / "slide.py").write_text(SLIDE.replace("horizon = 100", "horizon = 101"))
    by_path()
    assert make_task("SlideOfFiles").horizon == 101


def test_two_files_with_a_task_of_one_name_are_two_tasks(tmp_path, monkeypatch):
    (imported, *_), (packaged, _) = routes(tmp_path, monkeypatch)
    imported()
    with pytest.raises(InputError, match="'SlideOfFiles' is registered already"):
        packaged()
    assert make_task("SlideOfFiles").horizon == 100


def test_another_class_of_the_same_file_is_another_task(tmp_path):
    both = SLIDE + SLIDE[SLIDE.index("@register_task") :].replace("class Slide(", "class Glide(")
    write(tmp_path, slide=both)
    with pytest.raises(InputError, match="'SlideOfFiles' is registered already"):
        make_task(f"{tmp_path}/slide.py:Slide")


def test_a_task_of_an_entry_point_may_register_itself(tmp_path, monkeypatch):
    from importlib.metadata import EntryPoint

    write(tmp_path, installed_slide=SLIDE)
    offered = EntryPoint("SlideOfFiles", "installed_slide:Slide", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [offered])
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        assert make_task("SlideOfFiles").horizon == 100
        assert make_task(f"{tmp_path}/installed_slide.py:Slide").horizon == 100


# --- code without a file ---------------------------------------------------------------------------------------------

USE = """
import torch
from mage_diffsim import make_physics, make_task
from mage_diffsim.envs import BatchedEnv
from mage_diffsim.envs.contract import check_task

task = make_task("SlideOfFiles")
env = BatchedEnv(task, make_physics(task), 3, [torch.Generator().manual_seed(0)])
env.reset()
print(env.step(torch.zeros(3, 1)).reward.shape, check_task(task, samples=4, steps=4).passed)
"""


def test_a_task_defined_on_the_command_line_works():
    done = subprocess.run([sys.executable, "-c", SLIDE + USE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "torch.Size([3]) True\n"), done.stderr


@pytest.mark.parametrize("names", [{}, {"__name__": "__main__"}, {"__name__": "anything"}])
def test_a_task_defined_by_exec_works_and_a_second_time_replaces_it(names):
    for horizon in (100, 7):
        space = dict(names)
        exec(SLIDE.replace("horizon = 100", f"horizon = {horizon}"), space)
        assert make_task("SlideOfFiles").horizon == horizon
    assert check_task("SlideOfFiles", samples=4, steps=4).passed


def test_a_task_of_a_notebook_cell_works_and_the_cell_can_run_again(monkeypatch):
    main = types.ModuleType("__main__")  # as IPython makes it: without a file
    monkeypatch.setitem(sys.modules, "__main__", main)
    for cell in (1, 2):
        exec(compile(SLIDE, f"<ipython-input-{cell}>", "exec"), vars(main))
        assert type(make_task("SlideOfFiles")) is main.Slide
    task = main.Slide()
    physics = make_physics(task)
    start = task.reset(2, torch.Generator())
    assert rollout(physics, lambda obs: -obs[:, :1].clamp(-1, 1), start).lengths.tolist() == [100, 100]
    assert BatchedEnv(task, physics, 2, [torch.Generator()]).reset().shape == (2, 2)


HINGE = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody><body name="b"><joint name="hinge" type="hinge" axis="0 1 0"/><geom size="0.1"/></body></worldbody>
  <actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator>
</mujoco>
"""
CRANK = """
import torch
from mage_diffsim import register_task
from mage_diffsim.envs import MujocoTask

@register_task
class Crank(MujocoTask):
    name, mjcf, frame_skip, horizon, source = "CrankOfFiles", {mjcf!r}, 1, 5, "a test"

    def observe(self, state):
        return state

    def reward(self, obs, action, next_obs):
        return next_obs[..., 0]

    def terminated(self, next_obs):
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)
"""


def test_a_mujoco_task_without_a_file_finds_its_model_from_the_current_directory(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    (tmp_path / "hinge.xml").write_text(HINGE)
    monkeypatch.chdir(tmp_path)
    exec(CRANK.format(mjcf="hinge.xml"), {})
    assert make_task("CrankOfFiles").state_dim == 2
    exec(CRANK.format(mjcf="absent.xml"), {})
    with pytest.raises(InputError, match=rf"there is no MJCF file {tmp_path}/absent.xml"):
        _ = make_task("CrankOfFiles").state_dim
    exec(CRANK.format(mjcf=HINGE), {})
    assert make_task("CrankOfFiles").state_dim == 2


def test_a_subclass_elsewhere_inherits_the_model_beside_its_base(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    folder = write(tmp_path / "models", crank=CRANK.format(mjcf="hinge.xml"))
    (folder / "hinge.xml").write_text(HINGE)
    base = type(make_task(f"{folder}/crank.py:Crank"))
    monkeypatch.chdir(tmp_path)
    derived = types.new_class("Derived", (base,), {}, lambda body: body.update(name="Derived", __module__="__main__"))
    assert register_task(derived)().state_dim == 2
    assert "Derived" in task_names()


def test_a_command_finds_a_task_and_the_modules_beside_it_from_another_folder(tmp_path):
    folder = write(tmp_path / "tasks", **with_helper(2.0))
    code = f"""
import sys
from mage_diffsim.cli import main
sys.argv = ["mage-diffsim", "check-task", {str(folder / "slide.py:Slide")!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_task_file_can_be_a_script_that_is_running(tmp_path):
    script = SLIDE + '\nif __name__ == "__main__":\n    from mage_diffsim import make_task\n\n'
    script += '    print(type(make_task(f"{__file__}:Slide")).__name__, make_task("SlideOfFiles").horizon)\n'
    write(tmp_path, slide=script)
    done = subprocess.run([sys.executable, str(tmp_path / "slide.py")], capture_output=True, text=True)
    assert done.stdout == "Slide 100\n", done.stderr
