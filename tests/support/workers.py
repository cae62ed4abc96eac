"""Engines and executors for tests of workers: what other processes run must be importable there."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from qpass.errors import EngineError
from qpass.ir.graph import Graph, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.runtime.jobs import Done, Workers


def program(number: int) -> Model:
    """A model that `Sums` knows the number of."""
    return Model((Graph((Op.make("number", {}, {}, {"number": Attr.int(number)}),)),))


def batch(number: int) -> dict[str, np.ndarray]:
    """One batch of three samples."""
    return {"x": np.arange(3, dtype=np.float32) + number}


def run_all(workers: Workers, programs: int, batches: int, engine: Any = None) -> list[Done]:
    """Every result of some numbered programs on some numbered batches."""
    return list(start(workers, programs, batches, engine))


def start(workers: Workers, programs: int, batches: int, engine: Any = None) -> Iterator[Done]:
    """The same, one after the other."""
    return workers.run(
        engine or Sums(),
        [lambda i=i: program(i) for i in range(programs)],
        [lambda i=i: batch(i) for i in range(batches)],
    )


def expected(programs: int, batches: int) -> list[tuple[int, int, list[float]]]:
    """What `Sums` makes of them, in closed form."""
    return [(p, b, [3.0 * b + 3.0, float(p)]) for p in range(programs) for b in range(batches)]


def figures(done: Sequence[Done]) -> list[tuple[int, int, list[float]]]:
    """Results as plain numbers."""
    return [(each.program, each.batch, [float(array) for array in each.outputs]) for each in done]


@dataclass(frozen=True)
class Sums:
    """An engine without paddle: the sum of a batch, and the number of the program.

    `deadly` is the number of a program whose session ends the process, `wrong` of one that an engine refuses; with
    `once`, a file, the deadly one is so only while the file is absent. Programs from `slow` on take an hour.
    """

    name: str = "sums"
    deadly: int = -1
    wrong: int = -1
    once: str = ""
    slow: int = 1 << 30

    def session(self, model: Model, fetch: Sequence[ValueRef] | None = None) -> SumSession:
        number = model.graph.ops[0].int_attr("number", -1)
        if number == self.wrong:
            raise EngineError("refused", where=f"program {number}", hint="none")
        if number == self.deadly and not (self.once and os.path.exists(self.once)):
            if self.once:
                open(self.once, "w").close()
            os._exit(3)
        return SumSession(number, 3600 if number >= self.slow else 0)


class SumSession:
    feed_names = ("x",)
    fetch_names = ("sum", "number")

    def __init__(self, number: int, seconds: float) -> None:
        self._number = number
        self._seconds = seconds

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        time.sleep(self._seconds)
        return [feed["x"].sum(), np.int64(self._number)]

    def stream(self, feed: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
        yield from self.run(feed)


class AnyOrder(Executor):
    """Finishes what was submitted in an order of its own; at the calls that are named, a worker dies.

    `most` is the largest number of jobs that waited at the same time, `calls` the number of those that were run, dead
    ones among them. With `for_good`, the first worker that dies is the last one.
    """

    def __init__(self, seed: int = 0, breaks_at: Container[int] = (), *, for_good: bool = False) -> None:
        self.most = 0
        self.calls = 0
        self._random = random.Random(seed)
        self._breaks_at = breaks_at
        self._for_good = for_good
        self._broken = False
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._news = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._news:
            if self._broken:
                raise BrokenExecutor("no worker left")
            self.waiting.append((future, lambda: fn(*args, **kwargs)))
            self.most = max(self.most, len(self.waiting))
            self._news.notify()
        return future

    def _work(self) -> None:
        while not self._broken:
            with self._news:
                self._news.wait_for(lambda: self.waiting)
                # A pause lets jobs gather, so that there is something to choose from.
                self._news.wait_for(lambda: len(self.waiting) > 2, timeout=0.002)
                future, call = self.waiting.pop(self._random.randrange(len(self.waiting)))
            if not future.set_running_or_notify_cancel():
                continue
            self.calls += 1
            if self.calls in self._breaks_at:
                self._broken = self._for_good
                for each in (future, *(other for other, _ in self.waiting if self._for_good)):
                    each.set_exception(BrokenExecutor("a process ended"))
                continue
            try:
                future.set_result(call())
            except EngineError as e:
                future.set_exception(e)


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds, or fail."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def group_lives(leader: int) -> bool:
    """Whether a process of the leader's group is left."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True
