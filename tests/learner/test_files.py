"""Paths, edited files, full disks and locales: what a run folder's readers and writers take and refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mage_diffsim.checkpoints import save_checkpoint
from mage_diffsim.errors import InputError
from mage_diffsim.files import as_path, write_atomically
from mage_diffsim.policy import write_policy
from mage_diffsim.run_folder import load_trainer, read_config
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from mage_diffsim.tables import append_rows, read_evaluations, read_metrics
from tests.tiny import MOMENT

SETTINGS = MOMENT | {"steps": 4, "checkpoint_every": 2, "seeds": (0, 7)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("files") / "run"
    train(make_config("Pendulum", **SETTINGS), run_dir)
    return run_dir


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_paths_are_text_or_path_objects_and_results_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result = train(make_config("Pendulum", **SETTINGS), "~/run")
    assert result.run_dir == tmp_path / "run"
    rows = read_evaluations(str(tmp_path / "run"))
    assert [(r.seed, r.lam, r.env_step) for r in result.runs] == [(0, 0.2, 4), (7, 0.2, 4)]
    assert [r.return_mean for r in result.runs] == [row["return_mean"] for row in rows[-2:]]
    assert result.runs[0].gradient_error is None
    assert resume(str(tmp_path / "run"), steps=6).runs[1].env_step == 6
    assert load_trainer(os.fspath(tmp_path / "run")).env_step == 6
    assert read_config("~/run").steps == 6
    with pytest.raises(InputError, match="a path is ''; accepted is text or a path object"):
        as_path("")


EDITS = {
    "semicolons and decimal commas": lambda t: t.replace(",", ";").replace(".", ","),
    "tabs": lambda t: t.replace(",", "\t"),
    "other ends of lines and a mark": lambda t: "\ufeff" + t.replace("\n", "\r\n"),
    "whole numbers as floats": lambda t: t.replace("\n2,0,", "\n2.0,0.0,"),
    "no last end of line": lambda t: t.rstrip("\n"),
    "blank lines and empty cells behind": lambda t: t.replace("\n", ",,\n") + ",,\n\n",
    "quotes and spaces": lambda t: (
        "\n".join(",".join(f'"{c} "' for c in line.split(",")) for line in t.splitlines()) + "\n"
    ),
    "another order of columns": lambda t: "\n".join(",".join(line.split(",")[::-1]) for line in t.splitlines()) + "\n",
    "a column of one's own": lambda t: t.replace("\n", ",mine\n"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_tables_that_a_spreadsheet_saved_are_read_and_gone_on_with(edit, trained, copied):
    for name in ("eval.csv", "metrics.csv"):
        text = (copied / name).read_text(encoding="utf-8")
        (copied / name).write_bytes(EDITS[edit](text).encode())
    assert read_evaluations(copied) == read_evaluations(trained)
    assert read_metrics(copied) == read_metrics(trained)
    resume(copied)
    assert read_evaluations(copied) == read_evaluations(trained)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda t: t.replace("\n2,0,", "\ntwo,0,"), r"eval.csv, line 4: env_step is 'two'; accepted is a whole number"),
        (lambda t: t.replace("\n2,0,", "\n2.5,0,"), r"eval.csv, line 4: env_step is '2.5'; accepted is a whole number"),
        (lambda t: t.replace("0.2,", "#DIV/0!,", 1), r"eval.csv, line 2: lambda is '#DIV/0!'; accepted is a number"),
        (lambda t: t.replace("\n2,0,", "\n2,0,1,2,3,4,5,6,"), r"eval.csv, line 4: \d+ cells, and the header has 1\d"),
        (lambda t: t.replace("seed", "sead"), r"eval.csv, line 1: the column seed is there 0 times"),
        (lambda t: t.replace("env_step", "seed"), r"eval.csv, line 1: the column env_step is there 0 times"),
    ],
)
def test_a_table_that_cannot_be_read_names_file_line_cause_and_remedy(edit, sentence, copied):
    path = copied / "eval.csv"
    path.write_text(edit(path.read_text()))
    remedy = "restore the file that the training wrote, or delete it and --resume begins it anew"
    with pytest.raises(InputError, match=rf"{sentence}.*[:;] {remedy}$"):
        read_evaluations(copied)
    path.unlink()
    resume(copied)  # the remedy works


def test_an_edited_configuration_may_have_floats_for_whole_numbers_and_a_mark(copied):
    expected = read_config(copied)
    data = json.loads((copied / "config.json").read_text())
    hyper = data["hyper"] | {"batch_size": 8.0, "actor_hidden": [8.0]}
    text = json.dumps(data | {"steps": 4.0, "seeds": [0.0, 7.0], "hyper": hyper})
    (copied / "config.json").write_text("\ufeff" + text, encoding="utf-8")
    config = read_config(copied)
    assert config == expected and type(config.steps) is int and type(config.hyper.actor_hidden[0]) is int
    for wrong, sentence in ((4.5, "steps is 4.5"), (0, "steps is 0"), ("4", "steps is '4'")):
        (copied / "config.json").write_text(json.dumps(data | {"steps": wrong}))
        with pytest.raises(InputError, match=rf"config.json: .*{sentence}"):
            read_config(copied)
    (copied / "config.json").write_text('{"steps": 3, "steps": 4}')
    with pytest.raises(InputError, match=r"config.json is damaged \(steps stands twice in it\)"):
        read_config(copied)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_named_with_the_file(copied, tmp_path):
    with pytest.raises(InputError, match=r"cannot write /dev/full: No space left on device"):
        append_rows(Path("/dev/full"), ("a",), [{"a": 1}])
    for name, write in {
        "step_0000000009.json": lambda path: save_checkpoint(path, {"trainer": {}}),
        "note.txt": lambda path: write_atomically(path, "text"),
        "policy.safetensors": lambda path: write_policy(path, {}, {}),
    }.items():
        path = tmp_path / name
        path.with_name(f"{name}.tmp").symlink_to("/dev/full")
        with pytest.raises(InputError, match=rf"^cannot write {path}: No space left on device$"):
            write(path)
        assert not path.exists()


@pytest.mark.parametrize("gone", [("eval.csv",), ("eval.csv", "metrics.csv"), ()])
def test_tables_that_are_gone_are_told_of_once_and_begun_anew(gone, copied, caplog):
    for name in gone:
        (copied / name).unlink()
    resume(copied, steps=6)
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    expected = f"{copied} lacks {' and '.join(gone)}: begun anew, without the rows up to step 4"
    assert said == ([expected] if gone else [])
    steps = [row["env_step"] for row in read_evaluations(copied)]
    assert steps == ([6, 6] if gone else [0, 0, 2, 2, 4, 4, 6, 6])


def test_a_finished_run_takes_no_further_step(copied):
    trainer = load_trainer(copied)
    with pytest.raises(InputError, match=r"^all 4 environment steps are done, .* resume\(run_dir, steps=\.\.\.\)"):
        trainer.step()
    assert trainer.env_step == 4 and trainer.buffer.size == 4


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link, second = tmp_path / "there" / "a.json", tmp_path / "link.json", tmp_path / "second.json"
    link.symlink_to(os.path.join("there", "a.json"))  # relative to the link
    second.symlink_to(link)
    for path, text in ((link, "1"), (second, "2")):  # the first names a file that is not there yet
        write_atomically(path, text)
        assert path.is_symlink() and target.read_text() == text and not target.is_symlink()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json", "link.json", "second.json", "there"]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match=rf"^cannot write {loop}: "):
        write_atomically(loop, "text")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        write_atomically(path, "text")
        assert os.read(reader, 99) == b"text"
        os.close(reader)
    assert pipe.is_fifo() and link.is_symlink() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs files of the process under /proc")
def test_an_open_file_is_appended_to_and_not_replaced(tmp_path):
    with open(tmp_path / "log", "w+b", buffering=0) as file:
        file.write(b"before ")
        write_atomically(Path(f"/proc/self/fd/{file.fileno()}"), "text")
        assert os.stat(tmp_path / "log").st_ino == os.fstat(file.fileno()).st_ino
    assert (tmp_path / "log").read_text() == "before text"


def test_files_are_utf_8_under_an_ascii_locale(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mage_diffsim.files import write_atomically, make_folder\n"
        "from mage_diffsim.experiments.tables import write_csv\n"
        "write_atomically(Path(sys.argv[1]) / 'summary.md', '\\u03bb = 0.2')\n"
        "write_csv(Path(sys.argv[1]) / 'a.csv', ['\\u03bb'], [{'\\u03bb': '\\u03c0'}])\n"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == "λ = 0.2"
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "λ\nπ\n"
