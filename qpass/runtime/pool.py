"""Programs run by any executor of `concurrent.futures`: pure jobs that hold all they need, sent few at a time."""

from __future__ import annotations

import itertools
import math
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass, field

import numpy as np

from qpass._version import __version__
from qpass.errors import EngineError
from qpass.ir.model import Model
from qpass.runtime.engine import Engine, Session
from qpass.runtime.jobs import Done, Feed
from qpass.runtime.paddle_env import import_paddle

_AHEAD = 2
"""Jobs for each worker that are sent and not yet done: one runs, one waits. More would only take memory."""

_FEED_BYTES = 8 << 20
"""Batches of a job, in bytes, where one batch is not more: what is copied for a job stays small beside its program."""

_TRIES = 3
"""How often a job is sent again when its worker dies."""

_HINT = (
    "they may have run out of memory: give less memory to each worker or have fewer of them; what was measured is in "
    "the checkpoint. Scripts need `if __name__ == '__main__':` around what starts workers"
)


@dataclass(frozen=True)
class ProgramJob:
    """A program and some batches: a pure function's argument.

    Parameters
    ----------
    engine : Engine
    program : Model
    token : str
        The same for the jobs of one program: a worker that has just run it has its session.
    library : str
        Versions of what the result depends on, see `library`.
    number, batch : int
        Numbers of the program and of its first batch.
    feeds : tuple of Feed
        The batches.
    """

    engine: Engine
    program: Model
    token: str
    library: str
    number: int
    batch: int
    feeds: tuple[Feed, ...]


@dataclass
class _Ready:
    """The session that a worker process used last; its threads take turns."""

    token: str = ""
    session: Session | None = None
    turn: threading.Lock = field(default_factory=threading.Lock)


_READY = _Ready()


def run_job(job: ProgramJob) -> list[list[np.ndarray]]:
    """The outputs of a program for each of its batches.

    Raises
    ------
    EngineError
        If the engine fails, or this process has other versions of qpass or paddle than the one that made the job.
    DataError
        If a batch does not fit.
    """
    here = library()
    if here != job.library:
        raise EngineError(
            f"a worker has {here}, and the analysis {job.library}", hint="install the same versions on all workers"
        )
    with _READY.turn:
        if _READY.session is None or _READY.token != job.token:
            _READY.session = None  # its memory goes before the next one takes some
            _READY.session, _READY.token = job.engine.session(job.program), job.token
        return [_READY.session.run(feed) for feed in job.feeds]


def library() -> str:
    """What computes here, in words."""
    return f"qpass {__version__} with paddle {import_paddle().__version__}"


@dataclass
class _Sent:
    job: ProgramJob
    future: Future[list[list[np.ndarray]]]


class ExecutorWorkers:
    """Programs run by an executor.

    Only programs and batches are sent, never the evaluation function: it may hold what cannot be pickled. Results come
    back in the order in which jobs were sent, so that a sweep is the same in any number of workers, to the order of
    lines in its checkpoint.

    Parameters
    ----------
    executor : Executor
        Of processes: threads take turns, because Paddle's `Predictor.run` holds Python's lock. Jobs that fail with
        `BrokenExecutor` are sent to it again. It is not shut down.
    count : int
        How many jobs it runs at the same time.

    Raises
    ------
    ValueError
        If `count` is below 1.
    """

    def __init__(self, executor: Executor, count: int) -> None:
        if count < 1:
            raise ValueError(f"count is {count}, expected a number >= 1")
        self._executor = executor
        self._count = count
        self._where = f"workers ({count})"

    @property
    def count(self) -> int:
        """How many programs run at the same time."""
        return self._count

    def run(
        self, engine: Engine, programs: Sequence[Callable[[], Model]], batches: Sequence[Callable[[], Feed]]
    ) -> Iterator[Done]:
        """Run every program on every batch, in order.

        Raises
        ------
        EngineError, DataError
            As the engine does; EngineError too if workers die again and again.
        """
        jobs = self._jobs(engine, programs, batches)
        sent: deque[_Sent] = deque()
        try:
            while True:
                for job in itertools.islice(jobs, _AHEAD * self._count - len(sent)):
                    sent.append(_Sent(job, self._send(job)))
                if not sent:
                    return
                found = self._result(sent[0], len(programs))
                job = sent.popleft().job
                for batch, outputs in enumerate(found, job.batch):
                    yield Done(job.number, batch, outputs)
        finally:
            for each in sent:
                each.future.cancel()

    def _jobs(
        self, engine: Engine, programs: Sequence[Callable[[], Model]], batches: Sequence[Callable[[], Feed]]
    ) -> Iterator[ProgramJob]:
        """Every program on every batch, as jobs that are made when they are asked for."""
        run, versions = uuid.uuid4().hex, library()
        share = math.ceil(len(batches) / self._count)
        for number, make in enumerate(programs):
            program, token = make(), f"{run} {number}"
            feeds: list[Feed] = []
            for batch, feed in enumerate(batches, 1):
                feeds.append(feed())
                size = sum(array.nbytes for each in feeds for array in each.values())
                if len(feeds) == share or size >= _FEED_BYTES or batch == len(batches):
                    yield ProgramJob(engine, program, token, versions, number, batch - len(feeds), tuple(feeds))
                    feeds = []

    def _send(self, job: ProgramJob) -> Future[list[list[np.ndarray]]]:
        try:
            return self._executor.submit(run_job, job)
        except BrokenExecutor as e:
            raise EngineError(f"the executor takes no more jobs ({e})", where=self._where, hint=_HINT) from e

    def _result(self, sent: _Sent, programs: int) -> list[list[np.ndarray]]:
        """The result of a job, sent again when its worker dies."""
        times = 0
        while True:
            try:
                return sent.future.result()
            except BrokenExecutor as e:
                times += 1
                if times > _TRIES:
                    raise EngineError(
                        f"workers died {times} times while they ran program {sent.job.number + 1} of {programs} ({e})",
                        where=self._where,
                        hint=_HINT,
                    ) from e
                sent.future = self._send(sent.job)
