"""Workers of a Dask cluster."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager

from qpass.errors import EngineError, UsageError
from qpass.ir.model import Model
from qpass.runtime.engine import Engine
from qpass.runtime.jobs import Done, Feed, Workers
from qpass.runtime.pool import ExecutorWorkers, library

_INSTALL = "pip install 'qpass[distributed]', on the workers too"
_HINT = "give the address that `dask scheduler` prints, as tcp://host:8786"
_ADDRESS = re.compile(r"((tcp|tls|ws|wss|ucx)://)?[^\s/]+:\d+")
_SILENT = (OSError, asyncio.TimeoutError)
"""What Dask raises where nobody answers; before Python 3.11 these timeouts are no `OSError`."""

_SECONDS = 10
"""How long to wait for the scheduler, and for its first worker."""


@contextmanager
def cluster(address: str) -> Iterator[Workers]:
    """Workers of a Dask cluster, which is left running.

    They need qpass and paddle in the versions of this process. Programs and batches go through the scheduler, and stay
    there until they are done: when a worker dies, another does its job again.

    Parameters
    ----------
    address : str
        Of the scheduler, as ``tcp://host:8786``.

    Raises
    ------
    UsageError
        If it is no address.
    EngineError
        If Dask distributed is not installed, there is no scheduler at the address, it has no workers, or workers with
        other versions.
    """
    if not _ADDRESS.fullmatch(address):
        raise UsageError(f"{address!r} is no address of a Dask scheduler", where="scheduler", hint=_HINT)
    try:
        import dask
        from distributed import Client
    except ImportError as e:
        raise EngineError(f"Dask distributed cannot be imported ({e})", where="scheduler", hint=_INSTALL) from e
    try:
        client = Client(address, timeout=_SECONDS, set_as_default=False)
    except _SILENT as e:
        raise EngineError(
            f"cannot connect to a Dask scheduler ({e})", where=f"scheduler {address!r}", hint=_HINT
        ) from e
    # A program is what Dask calls a large graph, and warns of.
    with client, dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}):
        try:
            client.wait_for_workers(1, timeout=_SECONDS)
        except _SILENT as e:
            raise EngineError(
                "the scheduler has no workers", where=f"scheduler {address!r}", hint=f"dask worker {address}"
            ) from e
        _check_versions(client.run(library, on_error="return"), address)
        # pure: a digest of each job would find no other job like it
        yield _Cluster(ExecutorWorkers(client.get_executor(pure=False), len(client.nthreads())), address)


def _check_versions(found: Mapping[str, object], address: str) -> None:
    """Refuse workers on which jobs fail, or give other bits."""
    here = library()
    for worker, versions in found.items():
        if versions != here:
            raise EngineError(
                f"worker {worker} has {versions}, expected {here}"
                if isinstance(versions, str)
                else f"worker {worker} cannot run jobs ({versions})",
                where=f"scheduler {address!r}",
                hint="install the same versions of qpass and paddle on all workers",
            )


class _Cluster:
    """Workers that say what went wrong in the words of qpass."""

    def __init__(self, workers: Workers, address: str) -> None:
        self._workers = workers
        self._where = f"scheduler {address!r}"

    @property
    def count(self) -> int:
        """How many programs run at the same time."""
        return self._workers.count

    def run(
        self, engine: Engine, programs: Sequence[Callable[[], Model]], batches: Sequence[Callable[[], Feed]]
    ) -> Iterator[Done]:
        """Run every program on every batch, in order.

        Raises
        ------
        EngineError, DataError
            As the engine does; EngineError too if one job is the death of several workers, or the scheduler is gone.
        """
        from distributed import KilledWorker

        try:
            yield from self._workers.run(engine, programs, batches)
        except KilledWorker as e:
            raise EngineError(
                f"a program was the death of every worker that ran it ({e.allowed_failures + 1})",
                where=self._where,
                hint="they may have run out of memory, their logs tell; what was measured is in the checkpoint",
            ) from e
        except (CancelledError, *_SILENT) as e:
            raise EngineError(
                f"the cluster does not answer any more ({e or type(e).__name__})",
                where=self._where,
                hint="what was measured is in the checkpoint: start the scheduler again and resume",
            ) from e
