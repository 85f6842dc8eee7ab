"""Brings the files of public models onto this machine, once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

from mage_diffsim.files import make_folder
from mage_diffsim.model_checks.finding import gymnasium_assets
from public_models.collections import ARCHIVES, WHEELS, Archive

ADDRESS = "https://codeload.github.com/{repository}/tar.gz/{commit}"
TIMEOUT_S = 60.0
"""Seconds without an answer after which a download has failed."""
TAKEN = ("brax/envs/assets/", "dm_control/suite/", "dm_control/locomotion/walkers/assets/")
"""Folders of wheels that are unpacked."""


class NotHad(Exception):
    """The files of a source could not be had; the message says why."""


def bring(source: str, folder: Path) -> Path:
    """The folder of a source's files, downloaded if it is not there.

    Args:
        source: see :attr:`.collections.Public.source`.
        folder: where sources lie. A wheel that lies there is not downloaded.

    Raises:
        NotHad: a download failed.
    """
    if source == "gymnasium":
        return gymnasium_assets()
    if source in _failed:
        raise NotHad(_failed[source])
    try:
        return _wheel(source, WHEELS[source], folder) if source in WHEELS else _archive(ARCHIVES[source], folder)
    except NotHad as error:
        _failed[source] = str(error)
        raise


_failed: dict[str, str] = {}
"""Why sources could not be had, which is not tried again."""


def _wheel(name: str, version: str, folder: Path) -> Path:
    unpacked = folder / f"{name}-{version}"
    if unpacked.exists():
        return unpacked
    make_folder(folder)
    if not (wheels := sorted(folder.glob(f"{name}-{version}-*.whl"))):
        command = ("-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder))
        done = subprocess.run([sys.executable, *command, f"{name}=={version}"], capture_output=True, text=True)
        wheels = sorted(folder.glob(f"{name}-{version}-*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["pip gave no wheel"])[-1]
            raise NotHad(f"the wheel of {name} {version} could not be downloaded: {last}")
    partial = folder / f"{unpacked.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheels[0]) as file:
        file.extractall(partial, [name for name in file.namelist() if name.startswith(TAKEN)])
    partial.rename(unpacked)
    return unpacked


def _archive(archive: Archive, folder: Path) -> Path:
    unpacked = folder / archive.repository.rpartition("/")[2]
    if unpacked.exists():
        return folder
    make_folder(folder)
    partial = folder / f"{unpacked.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    address = ADDRESS.format(repository=archive.repository, commit=archive.commit)
    try:
        with (
            urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer,
            tarfile.open(fileobj=answer, mode="r|gz") as tar,
        ):
            for member in tar:  # the first folder is named after the commit
                member.name = member.name.partition("/")[2]
                if member.isfile() and member.name.startswith(tuple(f"{x}/" for x in archive.folders)):
                    tar.extract(member, partial, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise NotHad(f"{address} could not be downloaded: {error}") from error
    inside = partial / archive.folders[0].partition("/")[0]
    (inside if inside.name == unpacked.name else partial).rename(unpacked)
    return folder
