"""Packaging: what the wheel holds, what each import loads, which way imports point, and what a missing extra says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import mage_diffsim

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"mage_diffsim": "mage_diffsim", "mage_diffsim.envs": "envs", "mage_diffsim.bridges": "bridges"}
BACKENDS = {"jax", "jaxlib", "warp", "mujoco", "gymnasium"}


def package_folders() -> dict[str, Path]:
    """Package name to its folder: every folder of the three trees that holds Python files."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in {file.parent for file in (ROOT / folder).rglob("*.py")}:
            parts = path.relative_to(ROOT / folder).parts
            if "__pycache__" not in parts:
                found[".".join((package, *parts))] = path
    return found


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / FOLDERS[package]).rglob("*.py"))


def imported(file: Path, *, module_level_only: bool) -> set[str]:
    """Absolute dotted names that a file imports; ``from a import b`` counts as ``a`` and ``a.b``."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(file.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write {'.' * node.level}{node.module or ''} as an absolute import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        type_checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if module_level_only and deferred:
            continue
        todo.extend(node.orelse if type_checking else ast.iter_child_nodes(node))
    return found


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def python(code: str, *, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


# ------------------------------------------------------------------------------------------------ what is installed


def test_every_package_folder_has_an_init():
    # A namespace package inside a regular one imports, but is left out of some installations.
    assert [name for name, path in package_folders().items() if not (path / "__init__.py").is_file()] == []


def test_wheel_holds_every_module_and_data_file(wheel):
    expected = {"mage_diffsim/py.typed"}
    for name, path in package_folders().items():
        expected |= {f"{name.replace('.', '/')}/{file.name}" for file in path.iterdir() if file.is_file()}
    assert expected <= set(wheel.namelist())


def test_a_source_distribution_builds_the_same_wheel(source, wheel, tmp_path):
    command = [sys.executable, "-m", "build", "--no-isolation", "-o", str(tmp_path), "."]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    again = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    contents = [{i.filename: i.CRC for i in w.infolist() if not i.filename.endswith("RECORD")} for w in (wheel, again)]
    assert contents[0] == contents[1]


def test_wheel_installs_no_top_level_package_but_ours(wheel):
    assert {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name} == {"mage_diffsim"}


def test_wheel_imports_from_anywhere(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    code = "import mage_diffsim.envs, mage_diffsim.bridges as b; print(b.__file__)"
    done = python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout.strip() == str(tmp_path / "site" / "mage_diffsim" / "bridges" / "__init__.py"), done.stderr


def test_a_users_own_envs_and_bridges_folders_are_not_taken_for_ours(tmp_path):
    for folder in ("envs", "bridges"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("mine = True\n")
    code = (
        "import envs, bridges, mage_diffsim.envs, mage_diffsim.bridges\n"
        "assert envs.mine and bridges.mine\n"
        "assert not hasattr(mage_diffsim.envs, 'mine') and not hasattr(mage_diffsim.bridges, 'mine')"
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_checkout_itself_imports_without_being_installed(tmp_path):
    # Also what `python -m` in the checkout meets when another copy is installed: the current directory comes first.
    code = "import sys, mage_diffsim.envs.task, mage_diffsim.bridges as b; print(b.__file__)"
    done = python(code, cwd=ROOT)
    assert done.stdout.strip() == str(ROOT / "mage_diffsim" / "bridges" / "__init__.py"), done.stderr
    assert Path(done.stdout.strip()).resolve() == ROOT / "bridges" / "__init__.py"


def test_every_dependency_but_ray_has_a_tested_version():
    # ray is left to the user's cluster, which decides its version.
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in wanted} - {"mage-diffsim", "ray"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert names - tested == set()


def test_version_is_the_same_everywhere():
    from importlib.metadata import version

    assert version("mage-diffsim") == mage_diffsim.__version__
    assert f"\nversion: {mage_diffsim.__version__}\n" in (ROOT / "CITATION.cff").read_text()


# --------------------------------------------------------------------------------------------------- what is loaded


@pytest.mark.parametrize("package", FOLDERS)
def test_importing_a_package_loads_no_backend(package, tmp_path):
    code = f"import sys, {package}; print(*sorted({BACKENDS!r} & set(sys.modules)))"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_importing_the_top_package_loads_nothing_heavy(tmp_path):
    done = python("import sys, mage_diffsim; print('torch' in sys.modules, 'numpy' in sys.modules)", cwd=tmp_path)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_no_learner_file_imports_a_simulator():
    for file in modules_of("mage_diffsim"):
        names = {name.partition(".")[0] for name in imported(file, module_level_only=False)}
        assert names & BACKENDS == set(), f"{file.name}: the learner knows dynamics and tensors only"


GROUND_FLOOR = ("mage_diffsim.errors", "mage_diffsim.shapes")
"""The modules that serve all three packages."""


@pytest.mark.parametrize(
    ("files", "below"),
    [
        ([ROOT / f"{name.replace('.', '/')}.py" for name in GROUND_FLOOR], ()),
        (modules_of("mage_diffsim.bridges"), (*GROUND_FLOOR, "mage_diffsim.bridges")),
        (modules_of("mage_diffsim.envs"), (*GROUND_FLOOR, "mage_diffsim.bridges", "mage_diffsim.envs")),
    ],
    ids=["ground floor", "bridges", "envs"],
)
def test_imports_point_from_learner_to_envs_to_bridges_to_the_ground_floor(files, below):
    for file in files:
        ours = {n for n in imported(file, module_level_only=False) if inside(n, "mage_diffsim")}
        assert {n for n in ours if not any(inside(n, package) for package in below)} <= {"mage_diffsim"}, file


@pytest.mark.parametrize("name", mage_diffsim.__all__)
def test_every_public_name_is_the_object_that_its_module_defines(name):
    assert getattr(mage_diffsim, name).__module__ == mage_diffsim._MODULES[name]
    assert name in dir(mage_diffsim)


def test_type_checkers_are_shown_the_imports_that_are_made():
    tree = ast.parse(Path(mage_diffsim.__file__).read_text())
    shown = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in shown.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == mage_diffsim._MODULES
    assert sorted(mage_diffsim._MODULES) == sorted(mage_diffsim.__all__)


def test_a_star_import_gives_the_public_names(tmp_path):
    done = python("from mage_diffsim import *; print(train.__name__, Task.__name__)", cwd=tmp_path)
    assert done.stdout.split() == ["train", "Task"], done.stderr


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'mage_diffsim' has no attribute 'nonsense'"):
        _ = mage_diffsim.nonsense


@pytest.mark.parametrize(
    ("package", "backend", "sentence"),
    [
        ("jax", "jax", "jax is not installed: pip install -e '.[mjx]' in the project's folder"),
        ("warp", "warp", "warp-lang is not installed: pip install -e '.[warp]' in the project's folder"),
    ],
)
def test_a_missing_backend_names_the_extra_that_installs_it(package, backend, sentence, tmp_path):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import mage_diffsim\n"
        f"try: mage_diffsim.make_physics(mage_diffsim.make_task('Pendulum'), {backend!r})\n"
        "except mage_diffsim.MissingExtra as error: print(error)"
    )
    done = python(code, cwd=tmp_path)
    assert done.stdout.strip() == sentence, done.stderr
