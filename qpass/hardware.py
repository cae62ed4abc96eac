"""`Hardware`: on what an analysis runs and how much memory it may take, checked before any work."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass

from qpass.analysis.budget import DEFAULT_MEMORY
from qpass.errors import UsageError
from qpass.runtime.cluster import cluster
from qpass.runtime.jobs import Workers
from qpass.runtime.processes import processes

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMG]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class Hardware:
    """What an analysis may use.

    Parameters
    ----------
    workers : int
        Processes on this machine; 1 is this process alone.
    scheduler : str or None
        Address of a Dask scheduler whose workers run variants instead.
    memory : int or str
        What this process and each worker may take beyond what running the model takes: bytes, or a number with K, M or
        G (powers of 1,024), as ``512M``.

    Raises
    ------
    UsageError
        If a value is none of these, or both kinds of workers are asked for.
    """

    workers: int = 1
    scheduler: str | None = None
    memory: int | str = DEFAULT_MEMORY

    def __post_init__(self) -> None:
        if not isinstance(self.workers, int) or isinstance(self.workers, bool) or self.workers < 0:
            raise UsageError(f"workers is {self.workers!r}, expected a number >= 0")
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            raise UsageError(f"scheduler is {self.scheduler!r}, expected an address as tcp://host:8786")
        if self.scheduler is not None and self.workers > 1:
            raise UsageError(
                "workers and scheduler are both given", hint="a Dask cluster has its own workers: leave one of them out"
            )
        self.memory_bytes  # noqa: B018 - it checks itself

    @property
    def memory_bytes(self) -> int:
        """`memory` in bytes."""
        found = _SIZE.fullmatch(str(self.memory).strip())
        size = 0 if found is None or isinstance(self.memory, bool) else float(found[1]) * _UNITS[found[2].upper()]
        if size < 1:
            raise UsageError(f"memory is {self.memory!r}, expected a size such as 512M or 2G, or a number of bytes")
        return int(size)

    def open(self) -> AbstractContextManager[Workers]:
        """The workers, for the time of one analysis.

        Raises
        ------
        EngineError
            If the cluster is not there.
        """
        return processes(self.workers) if self.scheduler is None else cluster(self.scheduler)
