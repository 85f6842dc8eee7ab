"""Checkpoints: every bit comes back, parts are shared, and no kill, full disk or damage is taken for a checkpoint."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mage_diffsim import checkpoints
from mage_diffsim.checkpoints import CHECKPOINT_VERSION, load_checkpoint, newest_checkpoint, save_checkpoint
from mage_diffsim.errors import InputError
from mage_diffsim.packing import DTYPES, blocks_of, pack, unpack
from mage_diffsim.run_folder import load_trainer
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from mage_diffsim.transitions import shared, unshared
from tests.tiny import RUN


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished training. Read only: tests that change it take a copy."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    train(make_config("Pendulum", **(RUN | {"seeds": (0, 1), "gradient_episodes": 0})), run_dir)
    return run_dir


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def newest(run_dir: Path) -> Path:
    path = newest_checkpoint(run_dir)
    assert path is not None
    return path


def parts_of(run_dir: Path) -> set[str]:
    return {path.name for path in (run_dir / "checkpoints" / "parts").iterdir()}


def leaves(value: Any) -> list[Any]:
    """Every tensor and number of nested dicts and lists."""
    if isinstance(value, dict | list):
        children = value.values() if isinstance(value, dict) else value
        return [leaf for child in children for leaf in leaves(child)]
    return [value]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    as_bytes = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*as_bytes)


# --- packing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (3, 5, 70_000)], ids=str)
def test_a_tensor_of_any_kind_is_the_same_after_packing(dtype, shape):
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1000
    tensor = (numbers > 0) if dtype is torch.bool else numbers.to(dtype)
    packed = [pack(block) for block in blocks_of(tensor)]
    assert same_bits(unpack(packed, dtype, list(shape)), tensor)


def test_special_floats_keep_their_bits():
    bits = torch.tensor([0x7FC00001, -0x00400000, 0x7F800000, -0x80000000, 1, 0], dtype=torch.int32)
    tensor = bits.view(torch.float32)
    assert tensor.isnan().any() and tensor.isinf().any()
    assert same_bits(unpack([pack(block) for block in blocks_of(tensor)], torch.float32, [6]), tensor)


def test_floats_become_smaller_and_what_cannot_hardly_larger():
    floats = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    noise = torch.randint(256, (100_000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert sum(len(pack(block)) for block in blocks_of(floats)) < 0.87 * 400_000
    assert sum(len(pack(block)) for block in blocks_of(noise)) < 100_100
    assert sum(len(pack(block)) for block in blocks_of(torch.zeros(100_000))) < 2000


@pytest.mark.parametrize("change", [lambda packed: packed[:-1], lambda packed: [packed[0][:-3], *packed[1:]]])
def test_what_is_cut_short_is_refused(change):
    tensor = torch.randn(3_000_000)
    packed = [pack(block) for block in blocks_of(tensor)]
    assert len(packed) > 1
    with pytest.raises((ValueError, checkpoints.struct.error, checkpoints.zlib.error)):
        unpack(change(packed), torch.float32, [3_000_000])


# --- rows of the replay buffer -------------------------------------------------------------------------------------


def trajectory(steps: int = 500, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows as a task gives them: obs [3], action [1], next_obs [3], reward, terminated, state [4] that shares two."""
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(2, steps + 1, 3, generator=generator, dtype=dtype)
    obs, following = path[:, :-1], path[:, 1:].clone()
    following[:, 99::100] += 1.0  # the ends of episodes
    action, reward = (torch.randn(2, steps, 1, generator=generator, dtype=dtype) for _ in range(2))
    own = torch.randn(2, steps, 2, generator=generator, dtype=dtype)
    return torch.cat([obs, action, following, reward, torch.zeros_like(reward), own, obs[..., [2, 0]]], dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 500])
def test_rows_are_the_same_after_sharing(dtype, steps):
    rows = trajectory(steps, dtype)
    rows[0, 0, 0], rows[-1, -1, -1] = math.nan, -0.0
    assert same_bits(unshared(shared(rows)), rows)


def test_next_observations_and_shared_parts_of_states_are_stored_once():
    stored = shared(trajectory())
    assert [source for source in stored["sources"][4:7]] == [[0, 1], [1, 1], [2, 1]]
    assert [source for source in stored["sources"][11:]] == [[2, 0], [0, 0]]
    assert stored["columns"].shape == (8, 2, 500)
    # per run and column of the next observation: the end of each of the five episodes
    assert len(stored["exceptions"]) == 2 * 3 * 5


def test_columns_that_agree_at_the_samples_alone_are_not_shared():
    rows = torch.randn(1, 1000, 2)
    at = torch.linspace(0, 998, 64).long()
    rows[:, at, 1] = rows[:, at, 0]
    stored = shared(rows)
    assert stored["sources"] == [None, None] and same_bits(unshared(stored), rows)


# --- parts ---------------------------------------------------------------------------------------------------------


def content(steps: int, scale: float = 1.0) -> dict[str, Any]:
    buffer = {"rows": trajectory()[:, :steps] * scale, "size": steps}
    trainer = {"env_step": steps, "buffer": buffer, "agent": {"actor": torch.full((9,), float(steps)), "obs": None}}
    return {"trainer": trainer, "train_s": 0.5, "wall_s": math.inf, "identity": {"tasks": ("a", 1, True)}}


def saved(folder: Path, steps: int, scale: float = 1.0) -> dict[str, Any]:
    """What the index says after a checkpoint was written."""
    path = folder / "checkpoints" / f"step_{steps:010d}.json"
    save_checkpoint(path, content(steps, scale))
    return json.loads(path.read_text())


def test_a_checkpoint_is_what_was_saved_with_lists_for_tuples(tmp_path):
    saved(tmp_path, 300)
    found, expected = load_checkpoint(newest(tmp_path)), content(300)
    assert same_bits(found["trainer"]["buffer"].pop("rows"), expected["trainer"]["buffer"].pop("rows"))
    assert same_bits(found["trainer"]["agent"].pop("actor"), expected["trainer"]["agent"].pop("actor"))
    assert found == expected | {"identity": {"tasks": ["a", 1, True]}}


def test_successive_checkpoints_share_the_chunks_that_are_full(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHUNK_BYTES", 100 * 2 * 13 * 4)  # a hundred steps
    first, second = saved(tmp_path, 250), saved(tmp_path, 350)
    assert [(c["start"], c["stop"]) for c in second["rows"]] == [(0, 100), (100, 200), (200, 300), (300, 350)]
    assert first["rows"][:2] == second["rows"][:2] and first["rows"][2] != second["rows"][2]
    packed: list[int] = []
    monkeypatch.setattr(checkpoints, "shared", lambda rows: packed.append(rows.shape[1]) or shared(rows))
    saved(tmp_path, 360)
    assert packed == [60]
    found = load_checkpoint(newest(tmp_path))["trainer"]["buffer"]["rows"]
    assert same_bits(found, trajectory()[:, :360])


def test_the_rows_of_another_training_are_not_taken_for_this_one(tmp_path):
    saved(tmp_path, 300)
    saved(tmp_path, 301, scale=2.0)
    assert same_bits(load_checkpoint(newest(tmp_path))["trainer"]["buffer"]["rows"], trajectory()[:, :301] * 2.0)


def test_no_part_is_larger_than_16_mib_and_a_large_tensor_has_several(tmp_path):
    assert checkpoints.PART_BYTES == 16 * 2**20
    noise = torch.randint(2**62, (5 * 2**20,), generator=torch.Generator().manual_seed(0))  # 40 MiB
    path = tmp_path / "step_0000000001.json"
    save_checkpoint(path, {"trainer": {"noise": noise, "env_step": 1}, "train_s": 0.0, "wall_s": 0.0})
    sizes = [part.stat().st_size for part in (tmp_path / "parts").iterdir()]
    assert len(sizes) >= 3 and max(sizes) <= checkpoints.PART_BYTES
    assert same_bits(load_checkpoint(path)["trainer"]["noise"], noise)


def test_threads_write_the_same_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PART_BYTES", 2**20)
    monkeypatch.setattr("mage_diffsim.packing.BLOCK_BYTES", 2**18)
    tensors = [torch.randn(200_000, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        path = tmp_path / str(threads) / "step_0000000001.json"
        save_checkpoint(path, {"tensors": tensors})
        found.append((json.loads(path.read_text()), {part.name for part in (path.parent / "parts").iterdir()}))
    assert found[0] == found[1]


def test_the_newest_two_checkpoints_are_kept_with_their_parts_alone(copied):
    names = {path.name for path in (copied / "checkpoints").glob("step_*")}
    assert names == {"step_0000000040.json", "step_0000000060.json"}
    text = "".join((copied / "checkpoints" / name).read_text() for name in names)
    assert all(part in text for part in parts_of(copied))
    (copied / "checkpoints" / "parts" / "left_by_a_kill.bin").write_bytes(b"half")
    resume(copied, steps=61)
    assert "left_by_a_kill.bin" not in parts_of(copied)


def test_files_of_other_names_are_no_checkpoints_and_stay(copied):
    others = [copied / "checkpoints" / name for name in ("step_best.json", "step_0000000060 (copy).json", "step_7.bak")]
    for other in others:
        other.write_text("the user's own")
    assert newest(copied).name == "step_0000000060.json"
    resume(copied, steps=61)
    assert load_trainer(copied).env_step == 61 and all(other.is_file() for other in others)


def test_a_checkpoint_holds_no_code(trained):
    index = json.loads(newest(trained).read_text())
    assert index["version"] == CHECKPOINT_VERSION
    plain = (torch.Tensor, int, float, str, bool, type(None))
    assert {type(leaf) for leaf in leaves(load_checkpoint(newest(trained)))} <= set(plain)


# --- what goes wrong -----------------------------------------------------------------------------------------------


def failing_write(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int) -> None:
    """Let the write of the file after so many others fail."""
    fsync, done = os.fsync, []

    def fail(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > after:
            raise error
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)


class Killed(BaseException):
    """Stands for a kill, after which nothing is tidied up."""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_full_disk_while_saving_leaves_the_old_checkpoint_and_frees_what_was_written(copied, monkeypatch, after):
    before, parts = newest(copied), parts_of(copied)
    with monkeypatch.context() as patch:
        failing_write(patch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), after)
        with pytest.raises(InputError, match=r"cannot write \S+: No space left on device"):
            resume(copied, steps=80)
    assert newest(copied) == before and parts_of(copied) == parts
    resume(copied, steps=80)
    assert load_trainer(copied).env_step == 80


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_kill_while_saving_leaves_a_checkpoint_to_go_on_from(copied, monkeypatch, after):
    before = newest(copied)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_prune", lambda folder: None)
        failing_write(patch, Killed(), after)
        with pytest.raises(Killed):
            resume(copied, steps=80)
    assert newest(copied) == before
    resume(copied, steps=80)
    assert load_trainer(copied).env_step == 80
    text = "".join(path.read_text() for path in (copied / "checkpoints").glob("step_*"))
    assert all(part in text for part in parts_of(copied))


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_part_is_told_and_the_checkpoint_before_goes_on(damage, copied):
    path, *_ = reversed(checkpoints.checkpoints_of(copied))
    before = checkpoints.checkpoints_of(copied)[0].read_text()
    name = next(part for part in parts_of(copied) if part in path.read_text() and part not in before)
    part = copied / "checkpoints" / "parts" / name
    data = part.read_bytes()
    part.unlink() if damage == "gone" else part.write_bytes(data[:-1] + (b"" if damage == "cut" else b"?"))
    reason = f"its part {name} {'is gone' if damage == 'gone' else 'has changed'}"
    with pytest.raises(InputError, match=rf"is damaged \({reason}\): delete it to resume from the one before$"):
        resume(copied, steps=80)
    path.unlink()
    resume(copied, steps=80)
    assert load_trainer(copied).env_step == 80


def test_a_chunk_that_is_gone_is_written_again(tmp_path):
    (chunk,) = saved(tmp_path, 300)["rows"]
    (tmp_path / "checkpoints" / "parts" / chunk["parts"][0]).unlink()
    path = tmp_path / "checkpoints" / "step_0000000301.json"
    save_checkpoint(path, content(300))
    assert same_bits(load_checkpoint(path)["trainer"]["buffer"]["rows"], trajectory()[:, :300])


def test_a_checkpoint_of_one_file_is_of_an_older_version(copied):
    shutil.rmtree(copied / "checkpoints")
    (copied / "checkpoints").mkdir()
    torch.save({"version": 3}, copied / "checkpoints" / "step_0000000060.pt")
    for go_on in (resume, load_trainer):
        with pytest.raises(
            InputError, match=r"has version 3 or older, and this .* reads version 4: train the run anew"
        ):
            go_on(copied)
