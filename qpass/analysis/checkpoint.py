"""Checkpoints of a sweep: JSON lines, so that a job killed at any moment goes on where it stopped.

The first line says what the job is: digests of programs, parameters and data, and the settings. Every further line is
one finished piece of work, on the disk (fsync) before the next piece begins; so a kill loses at most the current one.
A line that a kill cut short is dropped. Nothing in the file is ever executed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from qpass.errors import CheckpointError

_VERSION = 1
_SAMPLES = ("losses", "scores")


class Record(NamedTuple):
    """One finished piece of work.

    Parameters
    ----------
    metric : float
    details : Mapping[str, float]
        Further figures.
    losses, scores : tuple of float
        By sample: loss by the fine metric, score by the user's; empty where there are none.
    """

    metric: float
    details: Mapping[str, float]
    losses: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()


class Checkpoint:
    """An open checkpoint; use as a context manager.

    Without `resume`, an existing file of the same name is kept as ``<name>.bak`` (an older ``.bak`` is replaced). With
    it, a missing file is an ordinary start.

    Parameters
    ----------
    path : str or Path
        Its folder is created.
    header : Mapping[str, str]
        What identifies the job.
    resume : bool
        Whether to take over what the file holds.

    Attributes
    ----------
    done : dict of str to Record
        The pieces of work that are on the disk, in the order they were finished.

    Raises
    ------
    CheckpointError
        If the file cannot be read or written, is no checkpoint, or belongs to another job; the message names every
        field that differs.
    """

    def __init__(self, path: str | Path, header: Mapping[str, str], *, resume: bool) -> None:
        self.path = Path(path)
        self.done: dict[str, Record] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = self._take_over(header) if resume and self.path.exists() else self._put_aside()
            # Unbuffered: a buffer that a full disk did not take would be written again when the file is closed.
            self._file: FileIO = self.path.open("r+b" if size else "wb", buffering=0)
            self._file.truncate(size)
            self._file.seek(size)
            if not size:
                self._write({"qpass_checkpoint": _VERSION, "job": dict(header)})
                _sync_folder(self.path.parent)
        except OSError as e:
            raise self._failed(e) from e

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, key: str, record: Record) -> None:
        """Put one finished piece of work on the disk.

        Raises
        ------
        CheckpointError
            If the disk does not take it.
        """
        try:
            body = {"key": key, "metric": record.metric, "details": dict(record.details)}
            samples = {name: getattr(record, name) for name in _SAMPLES if getattr(record, name)}
            self._write({**body, **samples})
        except OSError as e:
            raise self._failed(e) from e
        self.done[key] = record

    def _write(self, body: Mapping[str, object]) -> None:
        rest = memoryview(json.dumps(body, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def _put_aside(self) -> int:
        if self.path.exists():
            os.replace(self.path, self.path.with_name(self.path.name + ".bak"))
        return 0

    def _take_over(self, header: Mapping[str, str]) -> int:
        """Read the file; the number of bytes that are whole lines."""
        data = self.path.read_bytes()
        size = data.rfind(b"\n") + 1
        lines = data[:size].splitlines(keepends=True)
        if not lines:
            self._check_torn_header(data)
            return 0
        self._check_header(lines[0], header)
        for number, line in enumerate(lines[1:], 2):
            found = _record(line)
            if found is None and number == len(lines):
                return size - len(line)
            if found is None:
                raise CheckpointError(
                    "not a checkpoint record", where=f"{self.path}, line {number}", hint="start anew without resume"
                )
            self.done[found[0]] = found[1]
        return size

    def _check_torn_header(self, data: bytes) -> None:
        start = b'{"qpass_checkpoint"'
        if not start.startswith(data[: len(start)]):
            raise self._foreign()

    def _check_header(self, line: bytes, header: Mapping[str, str]) -> None:
        body = _parse(line)
        job = body.get("job") if isinstance(body, dict) else None
        if not isinstance(body, dict) or body.get("qpass_checkpoint") != _VERSION or not isinstance(job, dict):
            raise self._foreign()
        differ = [
            f"{name}: {_short(job.get(name))} in the checkpoint, {_short(header.get(name))} now"
            for name in dict.fromkeys((*header, *job))
            if job.get(name) != header.get(name)
        ]
        if differ:
            raise CheckpointError(
                "the checkpoint was made from something else\n  " + "\n  ".join(differ),
                where=str(self.path),
                hint="start anew without resume, or name another checkpoint",
            )

    def _foreign(self) -> CheckpointError:
        return CheckpointError(
            "not a checkpoint of this version of qpass",
            where=str(self.path),
            hint="start anew without resume (the file is kept as .bak), or name another checkpoint",
        )

    def _failed(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"cannot use the checkpoint ({error.strerror})",
            where=str(self.path),
            hint="give a file on a disk with room that you may write to",
        )


def _parse(line: bytes) -> object:
    try:
        body: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return body


def _record(line: bytes) -> tuple[str, Record] | None:
    body = _parse(line)
    if not isinstance(body, dict):
        return None
    key, metric, details = body.get("key"), body.get("metric"), body.get("details")
    if not isinstance(key, str) or not _is_finite(metric) or not isinstance(details, dict):
        return None
    if not all(_is_finite(value) for value in details.values()):
        return None
    samples = {name: body.get(name, []) for name in _SAMPLES}
    if not all(isinstance(each, list) and all(map(_is_finite, each)) for each in samples.values()):
        return None
    losses, scores = (tuple(map(float, samples[name])) for name in _SAMPLES)
    return key, Record(float(metric), details, losses, scores)  # type: ignore[arg-type]  # _is_finite has checked it


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _sync_folder(folder: Path) -> None:
    """Make a new file's name durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
