"""Torch devices by name, and the precision of their matrix products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from mage_diffsim.bridges.op import indexed
from mage_diffsim.config import Matmul
from mage_diffsim.errors import InputError


def torch_device(name: str) -> torch.device:
    """The named torch device.

    Raises:
        InputError: it is not a device name, or the device is not there.
    """
    device = indexed(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"device {name!r} was asked for and torch sees {count} CUDA devices: choose another")
    return device


def device_text(name: str) -> str:
    """A device's name, of a GPU with that of its card."""
    device = torch_device(name)
    return f"{name}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else name


@contextlib.contextmanager
def matmul_precision(precision: Matmul) -> Iterator[None]:
    """Float32 matrix products at ``precision`` (:class:`.config.TrainConfig`) inside, the process's own outside."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through these backends only, which torch then does not read by its older name
        legacy = "highest"
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
