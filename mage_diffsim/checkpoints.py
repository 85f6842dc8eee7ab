"""Checkpoints: the newest states of a training, in parts that successive checkpoints share.

checkpoints/
  step_<env_step>.json   one checkpoint: its version, plain values, and where its tensors are; written last
  parts/<digest>.bin     packed tensors, at most 16 MiB; named by what they hold and never changed

The rows of the replay buffer only become more, so they lie in chunks of a fixed number of steps. A checkpoint writes
the chunks that are new or have become longer, and names the others. A part that no checkpoint names is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mage_diffsim.errors import InputError, reason_of
from mage_diffsim.files import AnyPath, as_path, replacing
from mage_diffsim.packing import DTYPES, NAMES, blocks_of, pack, unpack
from mage_diffsim.shapes import Tensor
from mage_diffsim.transitions import shared, unshared

CHECKPOINT_VERSION = 4
"""Raised whenever the layout of a checkpoint changes, or what a run of the same settings does."""

KEPT_CHECKPOINTS = 2
PART_BYTES = 2**24
"""The most bytes of a part."""
CHUNK_BYTES = 15 * 2**20
"""The most bytes of the rows of a chunk, before they are packed into one part."""

_NAME = re.compile(r"step_\d+\.(json|pt)")
"""Of a checkpoint. Other files are the user's own, such as a copy under another name."""
_TENSOR = "__tensor__"
"""The key of the object that stands for a tensor: its dtype, its shape and where its blocks are."""

_DAMAGED = (
    OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, struct.error, zlib.error,
)  # fmt: skip
"""What reading a damaged checkpoint may raise."""

_Place = tuple[str, int, int]
"""A part's name, and where a block begins in it and how long it is."""


def newest_checkpoint(run_dir: AnyPath) -> Path | None:
    """The checkpoint with the highest step, if there is one."""
    found = checkpoints_of(as_path(run_dir))
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    """The environment steps done at a checkpoint, which its name says."""
    return int(checkpoint.stem.removeprefix("step_"))


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The checkpoints of a run folder, the newest last; of older versions too, whose names end in ``.pt``."""
    return _checkpoints_in(run_dir / "checkpoints")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one, never half of one.

    Afterwards only the newest KEPT_CHECKPOINTS are there.

    Args:
        path: the file, ``step_<env_step>.json`` in the run's folder of checkpoints.
        content: nested dicts and lists of tensors and plain values; tuples become lists. The rows of the replay buffer,
            ``trainer/buffer/rows`` [R, T, W], begin with those of the checkpoint before.

    Raises:
        InputError: it cannot be written, as on a full disk; the old one is left.
    """
    rest, rows = _without_rows(content)
    try:
        with replacing(path) as temporary:
            parts = path.parent / "parts"
            parts.mkdir(parents=True, exist_ok=True)
            tree = _tree(rest, iter(_pack_all(rest, parts)))
            chunks = [] if rows is None else _chunks(rows, _chunks_before(path.parent), parts)
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump({"version": CHECKPOINT_VERSION, "content": tree, "rows": chunks}, file)
                file.flush()
                os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            _prune(path.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint (tensors and plain containers only, never code) onto the CPU.

    Raises:
        InputError: it is damaged, or written by an older or newer version.
    """
    try:
        index = _read_index(path)
        refusal = _of_other_version(path, index["version"])
        if refusal is None:
            return _restored(index, path.parent / "parts")
    except _DAMAGED as error:
        older = any(other < path for other in _checkpoints_in(path.parent))
        cure = "delete it to resume from the one before" if older else "there is none before it, so train anew"
        foreign = isinstance(error, LookupError | TypeError | AttributeError)
        reason = "it does not hold what a training writes" if foreign else reason_of(error)
        raise InputError(f"checkpoint {path} is damaged ({reason}): {cure}") from error
    raise refusal


def require_version(path: Path) -> None:
    """Refuse a checkpoint of an older or newer version, without reading its parts; a damaged one passes.

    Raises:
        InputError: says which version it has.
    """
    refusal = None
    with contextlib.suppress(*_DAMAGED):
        refusal = _of_other_version(path, _read_index(path)["version"])
    if refusal is not None:
        raise refusal


def _of_other_version(path: Path, version: int) -> InputError | None:
    other = version - CHECKPOINT_VERSION
    if not other:
        return None
    cure = "train the run anew, in a new folder, as the learner has changed since" if other < 0 else "update it"
    given = f"{version} or older" if path.suffix == ".pt" else version
    return InputError(
        f"checkpoint {path} has version {given}, and this mage_diffsim reads version {CHECKPOINT_VERSION}: {cure}"
    )


def _restored(index: dict[str, Any], folder: Path) -> dict[str, Any]:
    parts = _Parts(folder)
    content = _content(index["content"], parts)
    if index["rows"]:
        rows = [unshared(_content(chunk["stored"], parts)) for chunk in index["rows"]]
        content["trainer"]["buffer"]["rows"] = torch.cat(rows, dim=1)
    _ = content["train_s"] + content["wall_s"] + content["trainer"]["env_step"]  # what every reader uses
    return content


def _checkpoints_in(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)), key=step_of)


def _read_index(path: Path) -> dict[str, Any]:
    if path.suffix == ".pt":  # one file of torch.save
        return {"version": CHECKPOINT_VERSION - 1}
    return json.loads(path.read_text(encoding="utf-8"))


# --- tensors in parts ----------------------------------------------------------------------------------------------


def _leaves(value: Any) -> Iterator[Tensor]:
    """The tensors of nested containers, in the order in which :func:`_tree` meets them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _leaves(child)


def _pack_all(content: Any, folder: Path) -> list[list[_Place]]:
    """Pack every tensor of the content and write the parts; each tensor's places."""
    counts, blocks = [], []
    for tensor in _leaves(content):
        mine = list(blocks_of(tensor))
        counts.append(len(mine))
        blocks += mine
    places = iter(_write_parts(_in_threads(pack, blocks), folder))
    return [[next(places) for _ in range(count)] for count in counts]


def _in_threads(function: Callable[[Tensor], bytes], blocks: list[Tensor]) -> Iterator[bytes]:
    threads = torch.get_num_threads()
    if threads == 1 or len(blocks) < 2:
        yield from map(function, blocks)
        return
    with ThreadPoolExecutor(threads) as pool:  # deflating and copying let go of Python's lock
        yield from pool.map(function, blocks)


def _write_parts(packed: Iterator[bytes], folder: Path) -> list[_Place]:
    places: list[_Place] = []
    held: list[bytes] = []

    def write() -> None:
        content = b"".join(held)
        name, at = f"{_digest(content)}.bin", 0
        for block in held:
            places.append((name, at, len(block)))
            at += len(block)
        if not (folder / name).is_file():
            with replacing(folder / name) as temporary, open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        held.clear()

    for block in packed:
        if held and sum(map(len, held)) + len(block) > PART_BYTES:
            write()
        held.append(block)
    if held:
        write()
    return places


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _tree(value: Any, places: Iterator[list[_Place]]) -> Any:
    """The content as JSON holds it."""
    if isinstance(value, Tensor):
        return {_TENSOR: [NAMES[value.dtype], list(value.shape), next(places)]}
    if isinstance(value, dict):
        return {name: _tree(child, places) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_tree(child, places) for child in value]
    return value


class _Parts:
    """The parts of a folder, each read once and held to what its name says of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: dict[str, bytes] = {}

    def block(self, name: str, at: int, length: int) -> bytes:
        if name not in self.read:
            if not (self.folder / name).is_file():
                raise ValueError(f"its part {name} is gone")
            self.read[name] = (self.folder / name).read_bytes()
            if f"{_digest(self.read[name])}.bin" != name:
                raise ValueError(f"its part {name} has changed")
        return self.read[name][at : at + length]


def _content(tree: Any, parts: _Parts) -> Any:
    """The inverse of :func:`_tree`."""
    if isinstance(tree, list):
        return [_content(child, parts) for child in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        dtype, shape, places = tree[_TENSOR]
        return unpack([parts.block(*place) for place in places], DTYPES[dtype], shape)
    return {name: _content(child, parts) for name, child in tree.items()}


# --- rows of the replay buffer -------------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    """Steps of the replay buffer that lie together."""

    start: int
    stop: int
    edges: str
    """A digest of the first and the last row of every run: another training has others."""


def _without_rows(content: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
    """The content without the replay buffer's rows, and those rows, if it has any."""
    trainer = content.get("trainer", {})
    if not len(rows := trainer.get("buffer", {}).get("rows", ())) or not rows.shape[1]:
        return content, None
    buffer = {name: value for name, value in trainer["buffer"].items() if name != "rows"}
    return content | {"trainer": trainer | {"buffer": buffer}}, rows


def _chunks(rows: Tensor, before: dict[_Chunk, dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Write the chunks that are not there yet; what the index says of all of them."""
    steps = max(CHUNK_BYTES // (rows.shape[0] * rows.shape[2] * rows.element_size()), 1)
    found = []
    for start in range(0, rows.shape[1], steps):
        stop = min(start + steps, rows.shape[1])
        edges = rows[:, [start, stop - 1]].cpu().contiguous()
        chunk = _Chunk(start, stop, _digest(edges.view(torch.uint8).numpy().tobytes()))
        if chunk not in before:
            stored = shared(rows[:, start:stop].cpu())
            places = _pack_all(stored, folder)
            names = sorted({name for tensor in places for name, _, _ in tensor})
            before[chunk] = chunk._asdict() | {"parts": names, "stored": _tree(stored, iter(places))}
        found.append(before[chunk])
    return found


def _chunks_before(folder: Path) -> dict[_Chunk, dict[str, Any]]:
    """The chunks of the newest checkpoint whose parts are there."""
    there = {path.name for path in (folder / "parts").iterdir()}
    for path in _checkpoints_in(folder)[-1:]:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            index = _read_index(path)
            if index["version"] == CHECKPOINT_VERSION:
                chunks = [c for c in index["rows"] if there.issuperset(c["parts"])]
                return {_Chunk(c["start"], c["stop"], c["edges"]): c for c in chunks}
    return {}


def _prune(folder: Path) -> None:
    """Delete all checkpoints but the newest, and the parts that none of these names."""
    found = _checkpoints_in(folder)
    for old in found[:-KEPT_CHECKPOINTS]:
        old.unlink()
    text = "".join(
        path.read_text(encoding="utf-8", errors="replace")
        for path in found[-KEPT_CHECKPOINTS:]
        if path.suffix == ".json"
    )
    for part in (folder / "parts").iterdir():
        if part.name not in text:
            part.unlink()
