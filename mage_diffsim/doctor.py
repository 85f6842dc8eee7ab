"""What is installed and what works: for ``mage-diffsim doctor``, and for the ``versions.json`` beside every run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.console import Group
from rich.markup import escape
from rich.table import Table

import mage_diffsim
from mage_diffsim.errors import MissingExtra, missing_extra

PACKAGES = ("torch", "numpy", "jax", "jaxlib", "warp-lang", "mujoco", "mujoco-mjx", "mujoco-warp", "gymnasium")
"""The distributions whose versions decide a run's numbers."""

NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "jax": (("jax",), "mjx"),
    "mjx": (("jax", "mujoco", "mujoco-mjx"), "mjx"),
    "mujoco": (("mujoco",), "mjx"),
    "mujoco-warp": (("warp-lang", "mujoco", "mujoco-warp"), "mujoco-warp"),
    "warp": (("warp-lang",), "warp"),
}
"""Physics backend to the distributions it needs and the extra that installs them; a backend not here needs none."""


def check_installed(backend: str) -> None:
    """Look for the distributions that a physics backend needs, importing none.

    Raises:
        MissingExtra: one is not installed; the message names the extra.
    """
    packages, extra = NEEDS.get(backend, ((), ""))
    for package in packages:
        if _version(package) is None:
            raise missing_extra(package, extra)


def versions() -> dict[str, str]:
    """What a run's numbers depend on, imported nowhere: package versions, commit, devices.

    Returns:
        name to text. A package that is not installed is left out; ``commit`` is there in a git checkout only, with
        ``-dirty`` behind it when tracked files differ from the commit.
    """
    found = {"mage_diffsim": mage_diffsim.__version__, "python": platform.python_version()}
    found |= {name: version for name in PACKAGES if (version := _version(name)) is not None}
    commit = _commit()
    if commit is not None:
        found["commit"] = commit
    found["platform"] = platform.platform()
    found["cpu"] = _cpu_name()
    if torch.cuda.is_available():
        found |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return found


def report() -> dict[str, Any]:
    """The whole check, plain values only. Imports every installed backend, which takes seconds.

    Returns:
        ``versions``: as :func:`versions`. ``cpus``: logical processors this process may use. ``threads``: torch's
        threads within an operation. ``cuda``: ``available``, the CUDA ``version`` torch was built for (None on a CPU
        build) and ``devices`` with name and memory [bytes]. ``physics``: backend name to ``{"available", "error"}``.
        ``bridges``: framework to its version, devices, importable, zero_copy and error.
    """
    from mage_diffsim.bridges import backend_report
    from mage_diffsim.envs.physics import BACKENDS

    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {
        "versions": versions(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": {
            "available": cuda,
            "version": torch.version.cuda,
            "devices": [{"name": d.name, "memory": d.total_memory} for d in devices],
        },
        "physics": {name: _physics(name, reference) for name, reference in BACKENDS.items()},
        "bridges": backend_report(),
    }


def render(report: dict[str, Any]) -> Group:
    """:func:`report` as tables for a rich console."""
    general = Table("what", "found", title="Versions and devices", title_justify="left")
    for name in dict.fromkeys(["mage_diffsim", "python", *PACKAGES, *report["versions"]]):
        general.add_row(name, report["versions"].get(name, "not installed"))
    cuda = report["cuda"]
    general.add_row("CUDA", f"{cuda['version']}" if cuda["available"] else "not available to torch")
    general.add_row("processors", f"{report['cpus']}, torch uses {report['threads']} threads")

    physics = Table("physics backend", "works", "why not", title="Physics", title_justify="left")
    for name, entry in report["physics"].items():
        physics.add_row(name, _yes(entry["available"]), escape(entry["error"] or ""))

    bridges = Table("framework", "version", "devices", "zero-copy", "why not", title="Bridges", title_justify="left")
    for name, entry in report["bridges"].items():
        devices = ", ".join(map(str, entry["devices"] or ()))
        bridges.add_row(name, entry["version"] or "-", devices, _yes(entry["zero_copy"]), escape(entry["error"] or ""))
    return Group(general, physics, bridges)


def _yes(value: bool | None) -> str:
    return {True: "[green]yes[/]", False: "[red]no[/]", None: "untried"}[value]


def _version(distribution: str) -> str | None:
    # torch and numpy are loaded already, and torch's own version names its build (+cpu, +cu130).
    loaded = {"torch": torch, "numpy": numpy}.get(distribution)
    if loaded is not None:
        return str(loaded.__version__)
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _physics(name: str, reference: str) -> dict[str, Any]:
    from mage_diffsim.envs.physics import load

    try:
        check_installed(name)
        load(reference)
    except MissingExtra as error:
        return {"available": False, "error": str(error)}
    except Exception as error:  # a broken installation can raise anything; the report exists to say what
        return {"available": False, "error": f"{type(error).__name__}: {error}"}
    return {"available": True, "error": None}


def _commit() -> str | None:
    """The checkout's commit, or None when this is no checkout of this project."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        diff = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("-dirty" if diff.returncode else "")


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
