"""One task by several routes, and tasks of notebooks and strings, which have no file."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest
import torch

from mage_diffsim.envs import BatchedEnv, make_physics, make_task, register_task, registry, rollout, task_names
from mage_diffsim.envs.contract import check_task
from mage_diffsim.errors import InputError
from tests.envs.written_tasks import SLIDE, with_helper, write

pytestmark = pytest.mark.usefixtures("forgotten")


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
