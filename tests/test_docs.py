"""The documentation agrees with the code."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import pkgutil
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from mage_diffsim import cli, columns
from mage_diffsim.config import TrainConfig
from mage_diffsim.envs.physics import BACKENDS, SOLVERS, load
from mage_diffsim.hyper import Hyper
from mage_diffsim.methods import METHODS, CriticLoss
from tests import pages

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
PACKAGES = ("mage_diffsim", "envs", "bridges")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The generator of the reference pages."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what the pages say of the code ----------------------------------------------------------------------------------


def defined_in(file: Path) -> set[str]:
    """The full names of the classes and functions of a module, and of the classes' members."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    module = ".".join(part for part in ("mage_diffsim", *parts[parts[0] == "mage_diffsim" :]) if part != "__init__")
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found |= {f"{module}.{node.name}"}
        if isinstance(node, ast.ClassDef):
            members = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
            found |= {f"{module}.{node.name}.{member.name}" for member in members}
    return found


def test_every_object_that_a_page_links_to_is_in_the_linked_file(reference):
    links = {(page, *match.group(2, 4)) for page, text in PAGES.items() for match in reference.LINK.finditer(text)}
    named = {(page, file, name) for page, file, name in links if name}
    assert len(named) >= 40
    for page, file, name in sorted(named):
        assert name in defined_in((ROOT / page).parent.joinpath(file).resolve()), f"{page}: {name} is not in {file}"


def test_every_link_to_an_object_can_be_followed_without_the_site():
    assert [page for page, text in PAGES.items() if re.search(r"\]\[mage_diffsim", text)] == []


def test_a_snippet_stands_below_a_link_to_its_file():
    for page, text in PAGES.items():
        for file in re.findall(r'^--8<-- "([^"]+)"$', text, re.MULTILINE):
            above = text.split(f'--8<-- "{file}"')[0]
            assert f"[`{file}`]({os.path.relpath(ROOT / file, (ROOT / page).parent)})" in above, (page, file)


def test_links_of_the_clone_become_links_of_the_site(reference):
    here = ROOT / "docs/without_the_learner/page.md"
    shown = lambda text: reference.in_the_site(text, here, "without_the_learner/page.md")  # noqa: E731
    name = "mage_diffsim.critic.huber"
    assert shown(f'[a](../../mage_diffsim/critic.py "{name}")') == f"[a][{name}]"
    assert shown("[a](../../benchmarks/RESULTS.md#what)") == "[a](../results.md#what)"
    assert shown("[`examples/ppo.py`](../../examples/ppo.py)") == "`examples/ppo.py`"
    for kept in ("[a](../tasks.md#what)", "[a](https://arxiv.org/abs/1)", "[a](#what)", "![a](../assets/a.svg)"):
        assert shown(kept) == kept


def test_every_file_that_a_page_names_exists():
    pattern = r"`((?:tests|benchmarks|envs|bridges|mage_diffsim|examples|docs)/[\w./-]*)`"
    pages = PAGES | {"CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()}
    named = {(page, path) for page, text in pages.items() for path in re.findall(pattern, text)}
    assert named
    assert [(page, path) for page, path in sorted(named) if "NAME" not in path and not (ROOT / path).exists()] == []


def messages_in_the_code() -> list[str]:
    """Every text in the code; the values within an f-string are left out, as a line break."""
    found = [(ROOT / "Makefile").read_text()]
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [v.value if isinstance(v, ast.Constant) else "\n" for v in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%[-.\w]*[sdg]", "\n", node.value))
    return found


def test_every_message_under_troubleshooting_is_one_of_the_code():
    quoted = re.findall(r"^`([^`]+)`\n:", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    assert len(quoted) >= 40
    code = "\0".join(messages_in_the_code())
    for message in quoted:
        for piece in filter(None, (piece.strip(" :,") for piece in message.split("…"))):
            assert piece in code, f"{message!r}: no message has {piece!r}"


def test_the_table_of_backends_has_every_source_and_solver():
    rows = [line.split("|")[1:-1] for line in PAGES["docs/backends.md"].splitlines() if line.startswith("| `")]
    for backend, reference in BACKENDS.items():
        try:
            physics = load(reference)
        except ImportError:
            continue
        named = [row for row in rows if row[0].strip() == f"`{backend}`"]
        assert named, backend
        for source in physics.derivatives:
            assert any(f"`{source}`" in row[4] for row in named), (backend, source)
        for solver in SOLVERS:  # a backend without constraints has nothing to solve
            told = any(f"`{solver}`" in row[6] for row in named)
            assert told == (solver in physics.solvers and backend not in ("torch", "jax")), (backend, solver)


def test_the_table_of_losses_has_every_loss():
    table = re.findall(r"^\| `(\w+)` \|", PAGES["docs/method.md"].split("| loss | per sample |")[1], re.MULTILINE)
    assert set(table[: len(get_args(CriticLoss))]) == set(get_args(CriticLoss))


def test_the_guide_for_contributors_names_things_where_they_are():
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    named = re.findall(r"`(\w+)`[^`.:]{0,20} (?:in|of) `([\w/]+\.py)`", text)
    assert len(named) >= 5
    assert [(name, file) for name, file in named if not re.search(rf"\b{name}\b", (ROOT / file).read_text())] == []


def test_the_deviations_are_numbered_without_gaps():
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", PAGES["docs/deviations.md"], re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 7


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [page for page in PAGES if page.removeprefix("docs/") not in navigation] == []


def test_the_python_of_the_page_of_backends_runs(capsys):
    pytest.importorskip("warp")
    pytest.importorskip("mujoco")
    (code,) = pages.blocks(ROOT / "docs/backends.md", "python")
    exec(compile(code, "docs/backends.md", "exec"), {})
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed == re.findall(r"print\(.*# (.*)", code)


# --- commands --------------------------------------------------------------------------------------------------------


def commands(program: str) -> list[tuple[str, list[str]]]:
    """(page, words) of every command of the pages that begins with ``program``."""
    found = [(page, words) for page in PAGES for words in pages.commands(ROOT / page, program.split()[0])]
    return [(page, words) for page, words in found if " ".join(words).startswith(program)]


def unknown_flags(words: list[str], help_text: str) -> list[str]:
    return [w for w in words if w.startswith("--") and not re.search(rf"{re.escape(w)}(?![\w-])", help_text)]


def test_every_flag_of_a_command_in_the_pages_exists(reference):
    found = commands("mage-diffsim")
    assert found
    for page, (_, command, *words) in found:
        assert unknown_flags(words, reference.command_help(command)) == [], (page, command)


@pytest.mark.slow
def test_every_flag_of_a_benchmark_in_the_pages_exists(reference):
    found = commands("python benchmarks/")
    assert found
    for page, (_, script, *words) in found:
        experiment = [words[0]] if script.endswith("paper.py") and words[0] != "EXPERIMENT" else []
        assert unknown_flags(words, reference.script_help(" ".join([script, *experiment]))) == [], (page, words)


# --- what is generated -----------------------------------------------------------------------------------------------


def test_every_setting_is_on_the_page_of_the_configuration(reference):
    page = reference.configuration()
    for kind in (TrainConfig, Hyper):
        for field in dataclasses.fields(kind):
            if field.name != "hyper":
                (line,) = [x for x in page.split("## Presets")[0].splitlines() if x.startswith(f"| `{field.name}` |")]
                assert len(line.split(" | ")[2]) > 10, f"{field.name} has no meaning"
    (line,) = [x for x in page.splitlines() if x.startswith("| `method` |")]
    assert all(f"`{name}`" in line for name in METHODS)


def test_a_setting_without_a_meaning_is_refused(reference, tmp_path, monkeypatch):
    (tmp_path / "bare.py").write_text("from dataclasses import dataclass\n@dataclass\nclass Bare:\n    x: int = 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"Bare\.x has no docstring"):
        list(reference.described_fields(pkgutil.resolve_name("bare.Bare")))


def test_every_flag_is_on_the_page_of_the_command_line(reference, monkeypatch):
    monkeypatch.setattr(reference, "SCRIPTS", ())
    page = reference.command_line()
    for name in (f.name for kind in (TrainConfig, Hyper) for f in dataclasses.fields(kind) if f.name != "hyper"):
        assert f"--{name.replace('_', '-')}" in page
    for command in cli.COMMANDS.values():
        for field in dataclasses.fields(command.options) if command.options is not None else ():
            positional = "Positional" in str(field.type)
            assert (field.name.upper() if positional else f"--{field.name.replace('_', '-')}") in page, field.name


def test_every_column_is_on_the_page_of_columns(reference):
    page = reference.csv_columns()
    hidden = ("_RUN", "CELL")
    tables: dict[str, Any] = {k: x for k, x in vars(columns).items() if k.isupper() and k not in hidden}
    assert set(tables) >= {"EVAL", "METRICS", "SUMMARY", "CURVES", "HORIZON"}
    for name, table in tables.items():
        section = page.split(f"### {name.lower()}.csv")[1].split("\n### ")[0]
        for column, meaning in table.items():
            assert f"| `{column}` | {meaning.replace('|', chr(92) + '|')} |" in section


def test_every_column_of_a_benchmark_is_on_the_page_of_columns(reference):
    page = reference.csv_columns()
    for name, module in reference.BENCHMARKS.items():
        section = page.split(f"### {name}\n")[1].split("\n### ")[0]
        fields, _ = reference.benchmark_columns(module)
        assert len(fields) >= 8 and all(f"`{field}`" in section for field in fields)
        assert not re.search(r":\w+:`", section)


def test_the_api_pages_have_every_module(reference):
    shown = {name for folder in PACKAGES for name in reference.modules(folder)}
    assert {"mage_diffsim.critic", "mage_diffsim.envs.task", "mage_diffsim.bridges.op"} <= shown
    assert not any(name.startswith("mage_diffsim.envs.envs") for name in shown)


# --- the other files of the project ----------------------------------------------------------------------------------


def test_versions_agree_between_the_citation_the_changelog_and_the_package():
    from mage_diffsim import __version__

    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE).group(1) == __version__  # type: ignore[union-attr]
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_extra_has_its_versions_among_the_constraints():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    normal = lambda name: re.split(r"[\[><=;]", name)[0].strip().lower().replace("_", "-")  # noqa: E731
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line) for line in constraints if "==" in line}
    assert [need for need in extras["docs"] if normal(need) not in pinned] == []
