"""Worker processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

from qpass.errors import QPassError, UsageError
from qpass.runtime.jobs import InProcess, Workers
from qpass.runtime.pool import ExecutorWorkers

P = ParamSpec("P")
T = TypeVar("T")

_MASKS = hasattr(signal, "pthread_sigmask")  # not on Windows


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
    with ProcessPool(count) as pool:
        yield ExecutorWorkers(pool, count)


@dataclass(frozen=True)
class _Call:
    future: Future[object]
    pickled: bytes


class ProcessPool(Executor):
    """Processes that are replaced when they die, and killed when the pool is shut down or this process dies.

    `concurrent.futures.ProcessPoolExecutor` gives up all its jobs when one process dies, waits for those that run when
    it is shut down, and before Python 3.12 can wait for ever after a process died (CPython, issue 94777).

    Processes are spawned, not forked: paddle has threads, which a forked process would not have.

    Parameters
    ----------
    count : int
        How many.
    """

    def __init__(self, count: int) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = False
        self._workers: list[_Worker] = []
        if _MASKS:
            resource_tracker.ensure_running()  # its start, with the first process, would undo the mask of that thread
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have one process call a function that other processes can import.

        The future fails with `BrokenExecutor` when the process dies.
        """
        if self._ended:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[T] = Future()
        self._calls.put(_Call(future, pickle.dumps((fn, args, kwargs))))  # type: ignore[arg-type]  # invariant in T
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Kill the processes; calls that have not begun are cancelled."""
        with self._lock:
            self._ended = True
            for worker in self._workers:
                worker.kill()
        for _ in self._threads:
            self._calls.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self) -> None:
        """Pass calls to one process after the other; the work of a thread."""
        if _MASKS:  # processes inherit it: Ctrl-C goes to all, this process ends them
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        worker: _Worker | None = None
        while (call := self._calls.get()) is not None:
            if self._ended:
                call.future.cancel()
            if not call.future.set_running_or_notify_cancel():
                continue
            try:
                worker = worker or self._start()
                done, value = worker.call(call.pickled)
            except (EOFError, OSError) as e:
                code = None if worker is None else worker.end()
                worker = None
                call.future.set_exception(BrokenExecutor(f"a process ended with exit code {code} ({e})"))
                continue
            if done:
                call.future.set_result(value)
            else:
                assert isinstance(value, BaseException)
                call.future.set_exception(value)
        if worker is not None:
            worker.end()

    def _start(self) -> _Worker:
        with self._lock:
            if self._ended:
                raise EOFError("the pool was shut down")
            worker = _Worker()
            self._workers = [each for each in self._workers if each.alive] + [worker]
            return worker


class _Worker:
    """One process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # now it is theirs alone, and its end is seen here

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def call(self, pickled: bytes) -> tuple[bool, object]:
        """Whether the call returned or raised, and what."""
        self._pipe.send_bytes(pickled)
        answer: tuple[bool, object] = self._pipe.recv()
        return answer

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> int | None:
        """Kill and reap it; its exit code."""
        self.kill()
        self._process.join()
        self._pipe.close()
        return self._process.exitcode


def _work(pipe: Connection) -> None:
    """Answer calls until the pipe ends; what a process does."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads must not spin while other workers compute
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            fn, args, kwargs = pickle.loads(pipe.recv_bytes())  # noqa: S301 - our own parent's
            try:
                answer = True, fn(*args, **kwargs)
            except QPassError as e:
                answer = False, e
            pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
