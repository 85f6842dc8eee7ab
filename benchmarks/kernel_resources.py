"""What do the Warp kernels of tasks need on a GPU? Needs no GPU: NVIDIA's ptxas compiles for it and prints the numbers.

    python benchmarks/kernel_resources.py                         # HalfCheetah, Hopper, Walker2d, Ant in float32
    python benchmarks/kernel_resources.py --tasks Ant --dtype float64

ptxas is taken from the PATH, and nvdisasm if it is there. `pip install nvidia-cuda-nvcc nvidia-cuda-nvdisasm` brings
both, into site-packages/nvidia/*/bin.
Prints a Markdown table, a row per kernel:

    registers  per thread; 255 is the most there are
    frame      bytes of local memory per thread, which holds arrays and what does not fit registers
    arrays     bytes of the frame that are arrays of the code
    code       KiB of machine code
    float      arithmetic instructions; 2 operations where it is a multiply-add
    local      loads and stores of local memory
    calls      calls and branches, which cut the code into pieces that are scheduled apart
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from mage_diffsim.bridges.warp import load_warp, quiet
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.warp.model import ModelKernels
from mage_diffsim.errors import InputError
from mage_diffsim.experiments.command import script_exit_code
from mage_diffsim.experiments.tables import markdown_table

HEADER = ("task", "kernel", "registers", "frame", "arrays", "code", "float", "local", "calls")
FLOAT = frozenset(("FFMA", "FMUL", "FADD", "FSEL", "FSETP", "FMNMX", "MUFU", "DFMA", "DMUL", "DADD", "DSETP", "FCHK"))
LOCAL = frozenset(("LDL", "STL"))
CALLS = frozenset(("CALL", "BRA", "RET", "BSSY"))

NEWER = "pip install nvidia-cuda-nvcc brings a new one; put its folder, site-packages/nvidia/*/bin, first on the PATH"


@dataclass(frozen=True)
class Options:
    """Which kernels to compile, and for what."""

    tasks: tuple[str, ...] = ("HalfCheetah", "Hopper", "Walker2d", "Ant")
    """Tasks of MuJoCo models."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the kernels."""
    arch: int = 90
    """Compute capability times 10: 90 is H100 and H200."""


def tool(name: str) -> str | None:
    """The path of a command of NVIDIA's toolkit, or None."""
    return shutil.which(name)


def measure(options: Options, task: str, which: str, folder: Path) -> list[str]:
    """Compiles one kernel and returns its row of the table.

    Raises:
        InputError: the task has no MuJoCo model, or ptxas does not compile what Warp gives.
    """
    made = make_task(task)
    if not isinstance(made, MujocoTask):
        raise InputError(f"task {task} has no MuJoCo model; accepted are tasks whose physics is one")
    module = ModelKernels(made.simulation, getattr(torch, options.dtype), torch.device("cuda")).build(which)[0].module
    with quiet():
        load_warp().compile_aot_module(module, arch=options.arch, use_ptx=True, module_dir=folder)
    (listing,) = folder.glob("*.ptx")
    text = listing.read_bytes().rstrip(b"\0")
    listing.write_bytes(text)
    binary = folder / "kernel.cubin"
    command = ["ptxas", "-v", f"-arch=sm_{options.arch}", str(listing), "-o", str(binary)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        cause = (done.stderr or done.stdout).splitlines()[0]
        raise InputError(
            f"{tool('ptxas')} does not compile {task}'s {which} ({cause}): if it is older than Warp, {NEWER}"
        )
    arrays = sum(map(int, re.findall(r"__local_depot\d+\[(\d+)\]", text.decode().split("{", 1)[1])[:1]))
    return row(done.stderr, arrays, disassembled(binary))


def row(report: str, arrays: int, counts: Counter[str] | None) -> list[str]:
    """Cells of the table from what ptxas printed, bytes of arrays, and the number of instructions of each kind."""
    registers, frame = (int(re.findall(p, report)[0]) for p in (r"Used (\d+) registers", r"(\d+) bytes stack frame"))
    if counts is None:
        return [*map(str, (registers, frame, arrays)), "-", "-", "-", "-"]
    kinds = (sum(counts[k] for k in kind) for kind in (FLOAT, LOCAL, CALLS))
    return [*map(str, (registers, frame, arrays, 16 * counts.total() >> 10, *kinds))]


def disassembled(binary: Path) -> Counter[str] | None:
    """The number of instructions of each kind, or None without nvdisasm."""
    if tool("nvdisasm") is None:
        return None
    text = subprocess.run(["nvdisasm", "-c", binary], capture_output=True, text=True, check=True).stdout
    return Counter(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)", text, re.M))


def main(parse: Callable[[], Options]) -> int:
    """Prints the table; returns the exit code."""

    def run() -> int:
        options = parse()
        if tool("ptxas") is None:
            raise InputError(f"there is no ptxas on the PATH: {NEWER}")
        rows = []
        for task in options.tasks:
            for which in ("forward", "adjoint"):
                with tempfile.TemporaryDirectory() as folder:
                    rows.append([task, which, *measure(options, task, which, Path(folder))])
        print(markdown_table(HEADER, rows), end="")
        return 0

    return script_exit_code(run)


if __name__ == "__main__":
    sys.exit(main(lambda: tyro.cli(Options, description=__doc__)))
