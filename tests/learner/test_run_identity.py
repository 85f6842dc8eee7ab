"""A run goes on with what it was trained with; a change of configuration, task file or class is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mage_diffsim.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from mage_diffsim.cli import main
from mage_diffsim.display import show_log
from mage_diffsim.envs.identity.sources import sources_of
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from mage_diffsim.run_folder import load_trainer, read_config
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from mage_diffsim.tables import keep_rows
from tests.learner.recorded_tasks import Base
from tests.tiny import MOMENT


def test_another_task_than_the_configured_one_is_refused(slide, tmp_path):
    with pytest.raises(InputError, match="and the configuration is of task Pendulum"):
        train(make_config("Pendulum", **MOMENT), tmp_path / "run", task=make_task(slide))
    with pytest.raises(InputError, match=r"task_options are {'mass': 2.0}, and the task object .* {'mass': 3.0}"):
        make_config(make_task(slide, mass=3.0), task_options={"mass": 2.0}, **MOMENT)


def test_a_class_of_a_function_is_asked_for_when_the_run_goes_on(tmp_path):
    class Local(Base):
        name = "Local"

        def __init__(self, mass=1.0):
            self.mass = mass

    class Other(Base):
        name = "Local"

        def __init__(self, mass=1.0):
            self.mass = mass

        def reward(self, obs, action, next_obs):
            return next_obs[..., 0]

    train(make_config(Local(2.0), **MOMENT), tmp_path / "run", task=Local(2.0))
    for go_on in (resume, load_trainer):
        with pytest.raises(InputError, match=r"task of .* is not found: .* defined in a notebook, .* as task="):
            go_on(tmp_path / "run")
        with pytest.raises(InputError, match="trained with task options"):
            go_on(tmp_path / "run", task=Local())
    resume(tmp_path / "run", steps=3, task=Local(2.0))
    assert load_trainer(tmp_path / "run", task=Local(2.0)).env_step == 3


NOTEBOOK = """
import sys
from pathlib import Path
from mage_diffsim import InputError, load_trainer, make_config, resume, train
from mage_diffsim.envs.tasks.pendulum import Pendulum

SCALE = 1.0
class Mine(Pendulum):
    name = "Mine"
    horizon = 5
    def __init__(self, mass=1.0):
        super().__init__()
        self.mass = mass
    def reward(self, obs, action, next_obs):
        return SCALE * super().reward(obs, action, next_obs) / self.mass

settings = dict(preset="cpu", steps=2, eval_episodes=1, gradient_episodes=0, dynamics="oracle")
run_dir = Path(sys.argv[1])
train(make_config(Mine(3.0), **settings), run_dir)
resume(run_dir, steps=3)
assert load_trainer(run_dir).task.mass == 3.0
"""


def test_a_class_of_python_c_trains_and_goes_on_with_the_object(tmp_path):
    done = subprocess.run([sys.executable, "-c", NOTEBOOK, tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_config(tmp_path / "run").task == "__main__:Mine"
    assert read_config(tmp_path / "run").task_options == {"mass": 3.0}
    again = NOTEBOOK.partition("train(make")[0] + "resume(run_dir, steps=4, task=Mine(3.0))"
    done = subprocess.run([sys.executable, "-c", again, tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = again.replace("SCALE = 1.0", "SCALE = 2.0")
    done = subprocess.run([sys.executable, "-c", again, tmp_path / "run"], capture_output=True, text=True)
    assert "was trained with another class Mine (compiled by Python" in done.stderr


@pytest.fixture
def trained(slide, tmp_path) -> Path:
    """A run folder of two steps."""
    train(make_config(slide, **MOMENT), tmp_path / "run")
    return tmp_path / "run"


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which resume, load_trainer and eval refuse a run, leaving it as it was."""
    before = files(run_dir)
    for go_on in (lambda: resume(run_dir, steps=9), lambda: load_trainer(run_dir)):
        with pytest.raises(InputError) as caught:
            go_on()
    capsys.readouterr()
    assert main(["eval", str(run_dir)]) == 2
    assert capsys.readouterr() == ("", f"mage-diffsim: {caught.value}\n")
    assert files(run_dir) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seeds": [1]}, "seeds (0,) and not (1,)"),
        ({"seeds": [0, 1]}, "seeds (0,) and not (0, 1)"),
        ({"lambdas": [0.5]}, "lambdas (0.2,) and not (0.5,)"),
        ({"method": "dyna-td3"}, "method mage-td3 and not dyna-td3"),
        ({"method": "dyna-td3", "loss": "mage"}, "method mage-td3 and not dyna-td3, loss None and not mage"),
        ({"task_options": {"mass": 2.0}}, "task_options {} and not {'mass': 2.0}"),
        ({"hyper": {"gamma": 0.5}}, "hyper.gamma 0.99 and not 0.5"),
        ({"eval_episodes": 2}, "eval_episodes 1 and not 2"),
    ],
)
def test_an_edited_configuration_is_refused_by_name(change, sentence, trained, capsys):
    data = json.loads((trained / "config.json").read_text())
    hyper = data["hyper"] | change.get("hyper", {})
    (trained / "config.json").write_text(json.dumps(data | change | {"hyper": hyper}))
    assert refused(trained, capsys) == (
        f"{trained} was trained with {sentence}: restore that to go on, or train anew into another folder"
    )


def test_what_changes_no_result_may_be_edited(trained):
    data = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps(data | {"steps": 4, "checkpoint_every": 3, "compile": "off"}))
    resume(trained)
    assert load_trainer(trained).env_step == 4


def test_a_run_goes_on_with_a_task_file_that_was_moved_and_not_with_another_class_of_it(slide, tmp_path, capsys):
    path = Path(slide.rpartition(":")[0])
    path.write_text(path.read_text() + "\n\nclass Other(Slide):\n    pass\n")
    run_dir = tmp_path / "run"
    train(make_config(slide, **MOMENT), run_dir)
    moved = shutil.move(path.parent, tmp_path / "moved") / "slide.py"
    assert "config.json is not found: task " in refused(run_dir, capsys)
    data = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(data | {"task": f"{moved}:Other"}))
    assert f" was trained with task {slide} and not {moved}:Other: " in refused(run_dir, capsys)
    (run_dir / "config.json").write_text(json.dumps(data | {"task": f"{moved}:Slide"}))
    resume(run_dir, steps=3)
    assert load_trainer(run_dir).env_step == 3
    renamed = moved.rename(moved.parent / "elsewhere.py")
    assert '"task" there; or, from Python, give the object as task=' in refused(run_dir, capsys)
    task = make_task(f"{renamed}:Slide")
    assert load_trainer(run_dir, task=task).env_step == 3
    (run_dir / "config.json").write_text(json.dumps(data | {"task": f"{renamed}:Slide"}))
    assert load_trainer(run_dir).env_step == 3
    (run_dir / "config.json").write_text(json.dumps(data))
    resume(run_dir, steps=4, task=task)
    assert read_config(run_dir).task == f"{renamed}:Slide"
    assert load_trainer(run_dir).env_step == 4
    (moved.parent / "rail.py").write_text("FRICTION = 0.6\n")
    assert " was trained with another rail.py of task Slide: " in refused(run_dir, capsys)


@pytest.mark.parametrize("file", ["slide.py", "rail.py"])
def test_an_edited_task_file_or_one_that_it_imports_is_refused(file, trained, slide, capsys):
    path = Path(slide.rpartition(":")[0]).parent / file
    text = path.read_text()
    path.write_text(text.replace("FRICTION = 0.5", "FRICTION = 0.6").replace("position + self.dt", "position + 2.0"))
    assert path.read_text() != text
    assert f" was trained with another {file} of task Slide: restore that to go on, " in refused(trained, capsys)
    # comments, docstrings, layout and what runs as a script only do not matter
    text = text.replace('"""A mass on a rail."""', '"""Another text."""  # and a comment')
    path.write_text(f"# a comment\n\n\n{text}\n\nif __name__ == '__main__':\n    print('hello')\n")
    resume(trained, steps=3)


def test_a_patched_class_attribute_is_refused(trained, slide, monkeypatch):
    task = make_task(slide)
    monkeypatch.setattr(type(task), "dt", 0.5)
    with pytest.raises(InputError, match=r"class of this task Slide, attribute dt = 0.5 is not what .*slide.py:Slide"):
        resume(trained, steps=3, task=task)


def test_a_built_in_task_that_another_version_changed_names_the_version(tmp_path, monkeypatch):
    train(make_config("Pendulum", **MOMENT), tmp_path / "run")
    monkeypatch.setattr("mage_diffsim.__version__", "9.9")
    load_trainer(tmp_path / "run")  # another version alone is no reason
    monkeypatch.setattr(Pendulum, "g", 9.81)
    with pytest.raises(InputError, match=r"was trained by mage_diffsim 0.1.0 with another attribute g of"):
        load_trainer(tmp_path / "run")


def test_the_sources_of_a_task_are_its_files_physics_and_model(tmp_path, monkeypatch):
    pendulum = sources_of(make_task("Pendulum"))
    modules = {name for name in pendulum if name.startswith("mage_diffsim")}
    assert modules == {f"mage_diffsim.envs.{k}.pendulum" for k in ("tasks", "jax", "warp")}
    assert pendulum == sources_of(make_task("Pendulum", clip_order="v0"))
    pytest.importorskip("mujoco")
    (tmp_path / "pole.xml").write_text('<mujoco><include file="joint.xml"/></mujoco>')
    text = (
        Path(pytest.importorskip("gymnasium").__file__).parent / "envs/mujoco/assets/inverted_pendulum.xml"
    ).read_text()
    (tmp_path / "joint.xml").write_text(text)

    class Pole(type(make_task("InvertedPendulum"))):  # type: ignore[misc]
        mjcf = str(tmp_path / "pole.xml")

    before = sources_of(Pole())
    assert {"model pole.xml", "model joint.xml"} <= before.keys()
    (tmp_path / "joint.xml").write_text(text.replace("<worldbody>", "<!-- a comment -->\n  <worldbody>"))
    assert sources_of(Pole()) == before
    (tmp_path / "joint.xml").write_text(text.replace('gear="100"', 'gear="50"'))
    after = sources_of(Pole())
    assert {name for name in after if after[name] != before[name]} == {"model joint.xml"}


def test_a_run_of_an_older_version_goes_on_with_a_warning(trained):
    path = newest_checkpoint(trained)
    assert path is not None
    content = load_checkpoint(path)
    del content["identity"]
    save_checkpoint(path, content)
    (trained / "identity.json").unlink()
    said: list[str] = []
    with show_log(said.append):
        resume(trained, steps=3)
    assert len(said) == 1 and re.fullmatch(r"\S+ was trained by an older version .* is not known", said[0])


def test_a_run_without_a_checkpoint_starts_anew_with_what_is_there(trained, slide):
    shutil.rmtree(trained / "checkpoints")
    (trained / "policy.safetensors").unlink()
    keep_rows(trained, 0)
    path = Path(slide.rpartition(":")[0]).parent / "rail.py"
    path.write_text("FRICTION = 0.6\n")
    sys.modules.pop("rail", None)
    resume(trained)
    load_trainer(trained)
