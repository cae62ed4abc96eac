"""Writing several files together: all of them, or none.

Every file is first written whole beside its target and synced; only then are the targets replaced, one `rename` each. A
failure before the renames leaves no trace; a failure between them puts the old files back.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

Chunks: TypeAlias = Iterable[bytes | memoryview]


def write_together(files: Mapping[Path, Chunks]) -> None:
    """Write every file completely, or leave everything as it was.

    Readers that hold or map an old file keep it: it is replaced, never written into.

    Parameters
    ----------
    files : Mapping[Path, Iterable[bytes or memoryview]]
        Content by target; the folders exist.

    Raises
    ------
    OSError
        If the file system refuses; no target has changed and no temporary file is left.
    """
    token = secrets.token_hex(4)
    temps = {target: target.with_name(f".{token}.{i}.tmp") for i, target in enumerate(files)}
    try:
        for target, chunks in files.items():
            _write(temps[target], chunks)
        _replace_all(temps, token)
    finally:
        for temp in temps.values():
            temp.unlink(missing_ok=True)


def _write(temp: Path, chunks: Chunks) -> None:
    descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_all(temps: Mapping[Path, Path], token: str) -> None:
    saved: dict[Path, Path] = {}
    done: list[Path] = []
    try:
        for i, target in enumerate(temps):
            if os.path.lexists(target):
                saved[target] = target.with_name(f".{token}.{i}.old")
                _keep(target, saved[target])
        for target, temp in temps.items():
            os.replace(temp, target)
            done.append(target)
        for folder in dict.fromkeys(target.parent for target in temps):
            _sync_folder(folder)
    except BaseException:
        for target in done:
            if target not in saved:
                target.unlink(missing_ok=True)
        for target, old in saved.items():
            if os.path.lexists(old):
                os.replace(old, target)
                # Not left to the rename: between two links to one file it does nothing.
                old.unlink(missing_ok=True)
        raise
    for old in saved.values():
        old.unlink(missing_ok=True)


def _keep(target: Path, old: Path) -> None:
    try:
        os.link(target, old, follow_symlinks=False)
    except (OSError, NotImplementedError):
        # Not every file system has hard links; the rename leaves a moment without the target.
        os.replace(target, old)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        # Windows has no descriptors of folders.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
