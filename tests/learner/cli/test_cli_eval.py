"""``mage-diffsim eval``: its numbers, its report and its film."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch

from mage_diffsim.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from tests.learner.cli.commands import files, run


def evaluated(trained: Path, tmp_path: Path, *flags: object) -> dict:
    assert run("eval", trained, "--json", tmp_path / "a.json", *flags) == 0
    return json.loads((tmp_path / "a.json").read_text())


def test_eval_is_reproducible_with_its_seed_and_differs_with_another(trained, tmp_path, capsys):
    first = evaluated(trained, tmp_path)
    printed = capsys.readouterr().out
    assert evaluated(trained, tmp_path) == first
    assert capsys.readouterr().out == printed
    other = evaluated(trained, tmp_path, "--seed", 1)
    assert [r["mean"] for r in other["runs"]] != [r["mean"] for r in first["runs"]]


def test_eval_reports_every_run_of_the_newest_checkpoint(trained, tmp_path, capsys):
    report = evaluated(trained, tmp_path, "--episodes", 4)
    assert {k: v for k, v in report.items() if k != "runs"} == {
        "task": "Short",
        "env_step": 60,
        "episodes": 4,
        "eval_seed": 0,
    }
    assert [(row["seed"], row["lambda"]) for row in report["runs"]] == [(0, 0.2), (1, 0.2)]
    out = capsys.readouterr().out
    for row in report["runs"]:
        assert row["min"] < row["mean"] < row["max"] <= 0.0
        assert row["length"] == 6.0
        assert f"{row['mean']:.2f}" in out and f"{row['std']:.2f}" in out


def test_eval_runs_the_policy_without_noise(trained, tmp_path):
    from mage_diffsim.run_folder import load_trainer

    trainer = load_trainer(trained)
    state = trainer.task.reset(2, torch.Generator().manual_seed(7)).to(trainer.dtype)
    total = torch.zeros(2)
    for _ in range(6):
        obs = trainer.task.observe(state)
        action = trainer.agent.policy(torch.stack([torch.zeros_like(obs), obs]))[1].detach()  # the second run's
        state = trainer.physics.step(state, action)
        total += trainer.task.reward(obs, action, trainer.task.observe(state))
    report = evaluated(trained, tmp_path, "--episodes", 2, "--seed", 7)
    assert report["runs"][1]["mean"] == pytest.approx(total.mean().item(), rel=1e-5)


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_eval_films_one_episode_into_a_new_folder(suffix, trained, tmp_path, capsys):
    imageio = pytest.importorskip("imageio.v2")
    ffmpeg = pytest.importorskip("imageio_ffmpeg") if suffix == "mp4" else None
    film = tmp_path / "new" / "folder" / f"film.{suffix}"
    assert run("eval", trained, "--episodes", 1, "--video", film) == 0
    out = capsys.readouterr().out
    assert "return of 1 episode, seed 0" in out and out.endswith(f"\nwritten: {film}\n")
    frames = len(imageio.mimread(film)) if ffmpeg is None else ffmpeg.count_frames_and_secs(film)[0]
    assert frames == 7  # the initial state and six steps
    assert {path for path in files(tmp_path) if path.is_file()} == {film}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_film_for_a_full_disk_is_one_sentence(trained, tmp_path, capfd):
    pytest.importorskip("imageio.v2")
    film = tmp_path / "film.gif"
    film.symlink_to("/dev/full")
    assert run("eval", trained, "--episodes", 1, "--video", film) == 2
    gc.collect()  # an object that complains when it is deleted does so now
    assert capfd.readouterr().err == f"mage-diffsim: cannot write {film}: No space left on device\n"
    assert film.is_symlink() and Path("/dev/full").is_char_device()


def test_reports_are_written_into_a_new_folder_and_named_at_the_end(trained, tmp_path, capsys):
    for command in (["eval", trained, "--episodes", 1], ["check-task", "Pendulum", "--backend", "torch"]):
        report = tmp_path / str(command[0]) / "new" / "a.json"
        assert run(*command, "--json", report) == 0
        assert json.loads(report.read_text())["task"] in ("Short", "Pendulum")
        assert capsys.readouterr().out.endswith(f"\nwritten: {report}\n")


def test_eval_on_another_kind_of_device_gives_the_same(copied, tmp_path):
    expected = evaluated(copied, tmp_path)
    config = json.loads((copied / "config.json").read_text()) | {"device": "cuda", "matmul": "high"}
    (copied / "config.json").write_text(json.dumps(config))
    path = newest_checkpoint(copied)
    assert path is not None
    saved = load_checkpoint(path)
    saved["identity"]["config"] |= {"device": "cuda", "matmul": "high"}
    save_checkpoint(path, {k: v for k, v in saved.items() if k != "version"})
    assert evaluated(copied, tmp_path, "--device", "cpu") == expected
