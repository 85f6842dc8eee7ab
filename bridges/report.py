"""Reports which array frameworks work here, and whether arrays reach them without a copy."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch

from mage_diffsim.bridges.jax import load_jax
from mage_diffsim.bridges.warp import load_warp


def backend_report() -> dict[str, dict[str, Any]]:
    """Says for ``jax`` and ``warp`` what ``doctor`` prints. It imports both packages.

    Every entry holds ``version`` (str or None), ``importable`` (bool), ``devices`` (list of str), ``zero_copy`` (bool:
    arrays keep their address both ways; None if it could not be tried) and ``error`` (str or None).
    """
    return {"jax": _report("jax", _probe_jax), "warp": _report("warp-lang", _probe_warp)}


def _report(package: str, probe: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "version": None,
        "importable": False,
        "devices": [],
        "zero_copy": None,
        "error": None,
    }
    try:
        found["version"] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        found["error"] = f"{package} is not installed"
        return found
    try:
        probe(found)
    except Exception as error:  # whatever a broken installation raises is what the report is for
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def _probe_jax(found: dict[str, Any]) -> None:
    jax = load_jax()
    found["importable"] = True
    found["devices"] = [str(device) for device in jax.devices()]
    on_gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    x = torch.arange(16.0, device="cuda" if on_gpu else "cpu")
    array = jax.dlpack.from_dlpack(x)
    found["zero_copy"] = array.unsafe_buffer_pointer() == x.data_ptr() == torch.from_dlpack(array).data_ptr()


def _probe_warp(found: dict[str, Any]) -> None:
    warp = load_warp()
    found["importable"] = True
    found["devices"] = [str(device) for device in warp.get_devices()]
    on_gpu = torch.cuda.is_available() and warp.is_cuda_available()
    x = torch.arange(16.0, device="cuda" if on_gpu else "cpu")
    array = warp.from_torch(x)
    found["zero_copy"] = array.ptr == x.data_ptr() == warp.to_torch(array).data_ptr()
