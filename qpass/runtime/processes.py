"""Worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.connection import Connection

from qpass.errors import UsageError
from qpass.runtime.jobs import InProcess, Workers
from qpass.runtime.paddle_env import import_paddle
from qpass.runtime.pool import ExecutorWorkers


def opened(workers: Workers | int | None) -> AbstractContextManager[Workers]:
    """Workers for the time of one analysis.

    Parameters
    ----------
    workers : Workers or int or None
        A number starts `processes`; workers themselves stay open for whoever opened them; None is this process.
    """
    if workers is None:
        return nullcontext(InProcess())
    return processes(workers) if isinstance(workers, int) else nullcontext(workers)


@contextmanager
def processes(count: int) -> Iterator[Workers]:
    """Workers that are processes of this machine; they end with the context, whatever they are doing.

    Each starts when it gets its first job, in the time of ``import paddle``: 1.2 s of a core, so that analyses of less
    than some 5 s are quicker in this process. Each takes the memory of a Python with paddle, about 200 MB, the model's
    and its share of the budget. A process that dies is replaced and its job done again.

    Parameters
    ----------
    count : int
        How many; 1 is this process, and 0 too.

    Raises
    ------
    UsageError
        If `count` is no number >= 0.
    """
    if isinstance(count, bool) or count < 0:
        raise UsageError(f"workers is {count!r}, expected a number >= 0")
    if count < 2:
        yield InProcess()
        return
    workers = ExecutorWorkers(_Pool(count), count, restart=lambda: _Pool(count))
    try:
        yield workers
    finally:
        workers.close()


class _Pool(ProcessPoolExecutor):
    """Processes that end when the pool is shut down or this process dies, jobs or no jobs.

    They are spawned, not forked: paddle has threads, which a forked process would not have.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        reader, self._lifeline = context.Pipe(duplex=False)
        super().__init__(count, mp_context=context, initializer=_begin, initargs=(reader,))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes."""
        self._lifeline.close()
        super().shutdown(wait, cancel_futures=cancel_futures)


def _begin(lifeline: Connection) -> None:
    """Make a process ready for jobs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its workers itself
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # its threads must not spin while other workers compute
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    import_paddle()


def _end_with(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)
