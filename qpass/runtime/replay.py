"""Recording what an evaluation feeds, and answering the same evaluation again from outputs computed in between.

`Recording` keeps the feeds, `RecordingSession` notes them while a real session answers, `ReplaySession` answers from
recorded outputs. Everything is a `Session`, so any form of evaluation function works unchanged. Feeds are matched by
content: the order of batches does not matter, and a batch that was not recorded is run for real.
"""

from __future__ import annotations

import hashlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType

import numpy as np

from qpass.errors import DataError
from qpass.ir.model import Model
from qpass.runtime.engine import Session
from qpass.runtime.feed import checked_feed
from qpass.runtime.spool import Spool, flat_bytes
from qpass.runtime.targets import targets
from qpass.runtime.wrapped import WrappedSession


class ReplayWarning(UserWarning):
    """An evaluation function feeds what it did not feed when it was recorded: it is run for real, which takes time."""


class Recording:
    """The distinct feeds of one evaluation, in the order of their first call; any number of threads may use it.

    Parameters
    ----------
    model : Model
        What is evaluated; only its inputs and outputs are looked at.
    memory_bytes : int, optional
        How much of the feeds is kept in memory; see `Spool`.

    Attributes
    ----------
    feeds : tuple of Port
        The model's inputs.
    feed_names, fetch_names : tuple of str
        As a session of the model has them.
    hits, misses : int
        Runs answered from recorded outputs and for real, over all replays that are closed.

    Raises
    ------
    EngineError
        If the model has no outputs.
    """

    def __init__(self, model: Model, memory_bytes: int | None = None) -> None:
        self.feeds = model.feeds
        self.feed_names = tuple(port.name for port in model.feeds)
        self.fetch_names = targets(model, None).names
        self.hits = 0
        self.misses = 0
        self._spool = Spool(memory_bytes)
        self._index: dict[bytes, int] = {}
        self._samples: list[int] = []
        self._full: DataError | None = None
        self._warned = False
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """Number of distinct feeds."""
        return len(self._samples)

    @property
    def full(self) -> DataError | None:
        """Why later feeds were not recorded, where the disk was full; replays run them for real."""
        return self._full

    def checked(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The feed as the engine takes it: what digests are of.

        Raises
        ------
        DataError
            If it does not fit the model's inputs.
        """
        batch = checked_feed(self.feeds, feed)
        for name, array in batch.items():
            if array.dtype.hasobject:
                raise DataError(f"dtype is {array.dtype}, expected numbers", where=f"feed, input {name!r}")
        return batch

    def add(self, batch: Mapping[str, np.ndarray], outputs: list[np.ndarray], kept: Spool | None = None) -> None:
        """Note a checked batch, once; its outputs go to `kept` under the same index.

        A disk that is full ends the recording: what was recorded before stays.
        """
        digest = feed_digest(batch)
        with self._lock:
            if digest in self._index or self._full is not None:
                return
            try:
                if kept is not None:
                    kept.add(outputs)
                self._spool.add(list(batch.values()))
            except DataError as e:
                self._full = e
                return
            self._samples.append(self._count(batch))
            self._index[digest] = len(self._index)

    def index(self, batch: Mapping[str, np.ndarray], guess: int = 0) -> int | None:
        """The index of a checked batch; None where it was not recorded.

        Parameters
        ----------
        batch : Mapping[str, np.ndarray]
        guess : int
            Looked at first; a good one saves the digest.
        """
        if guess < self.calls and self._spool.holds(guess, list(batch.values())):
            return guess
        return self._index.get(feed_digest(batch))

    def feed(self, index: int) -> dict[str, np.ndarray]:
        """The feed of an index, as arrays that the caller owns."""
        return dict(zip(self.feed_names, self._spool[index], strict=True))

    def rows(self, index: int, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Some rows along axis 0 of every input in the feed of an index, as arrays that the caller owns."""
        return {name: self._spool.rows(index, i, rows) for i, name in enumerate(self.feed_names)}

    def shapes(self, index: int) -> list[tuple[int, ...]]:
        """Shapes of the inputs in the feed of an index."""
        return self._spool.shapes(index)

    def samples(self, index: int) -> int:
        """Number of samples in the feed of an index: the length of its batch axis."""
        return self._samples[index]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for index in range(self.calls):
            yield self.feed(index)

    def count_replay(self, what: str, hits: int, misses: int, seconds: float) -> None:
        """Add a replay to `hits` and `misses`; the first with a miss gives a `ReplayWarning`.

        Parameters
        ----------
        what : str
            Words for the model that was evaluated.
        hits, misses : int
        seconds : float
            What the misses took.
        """
        with self._lock:
            self.hits += hits
            self.misses += misses
            if not misses or self._warned:
                return
            self._warned = True
        cause = "does its loader shuffle or augment? fix its order or seed"
        if self._full is not None:
            cause = f"recording ended early: {self._full.what}; {self._full.hint}"
        warnings.warn(
            f"{what}: {misses} of the {hits + misses} batches that the evaluation function fed were not recorded "
            f"({cause}); running them for real took {seconds:.2g} s, and will for every other model that is evaluated",
            ReplayWarning,
            stacklevel=3,
        )

    def _count(self, batch: Mapping[str, np.ndarray]) -> int:
        varying = [port.name for port in self.feeds if port.shape[:1] == (-1,)]
        lengths = [batch[name].shape[0] for name in varying or self.feed_names if batch[name].ndim]
        return lengths[0] if lengths else 1


class RecordingSession(WrappedSession):
    """A session that notes what another one is fed; thread-safe.

    Parameters
    ----------
    session : Session
        Answers.
    recording : Recording
    outputs : Spool, optional
        Gets the outputs of every distinct feed, at the index that the feed has in the recording.
    """

    def __init__(self, session: Session, recording: Recording, outputs: Spool | None = None) -> None:
        super().__init__(session)
        self._recording = recording
        self._outputs = outputs
        self._lock = threading.Lock()

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch for real and note it; the outputs in fetch order, as arrays that the caller owns.

        Raises
        ------
        DataError
            If the batch does not fit the model's inputs.
        EngineError
            If the engine fails.
        """
        batch = self._recording.checked(feed)
        with self._lock:
            outputs = self._session.run(batch)
            self._recording.add(batch, outputs, self._outputs)
        return outputs


class ReplaySession:
    """A session that answers with outputs computed before, and runs for real what was not recorded; thread-safe.

    A context manager: leaving it tells the recording how many runs were answered, and warns of those that were not.

    Parameters
    ----------
    recording : Recording
    outputs : callable
        Gives the outputs at an index of the recording, as arrays that nobody else holds; None where there are none.
    live : callable
        Makes a real session; called once, and only where it is needed.
    what : str
        Words for the model that is evaluated, for messages.

    Attributes
    ----------
    hits, misses : int
        Runs answered with recorded outputs, and for real.
    """

    def __init__(
        self,
        recording: Recording,
        outputs: Callable[[int], list[np.ndarray] | None],
        live: Callable[[], Session],
        what: str,
    ) -> None:
        self.hits = 0
        self.misses = 0
        self._recording = recording
        self._outputs = outputs
        self._make_live = live
        self._live: Session | None = None
        self._what = what
        self._seconds = 0.0
        self._next = 0
        self._lock = threading.Lock()

    @property
    def feed_names(self) -> tuple[str, ...]:
        """Names of the inputs, in feed order."""
        return self._recording.feed_names

    @property
    def fetch_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order `run` returns them."""
        return self._recording.fetch_names

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs for one batch in fetch order, as arrays that the caller owns.

        Raises
        ------
        DataError
            If the batch does not fit the model's inputs, or recorded outputs cannot be read back.
        EngineError
            If a batch that was not recorded makes the engine fail.
        """
        batch = self._recording.checked(feed)
        index = self._recording.index(batch, self._next)
        found = None if index is None else self._outputs(index)
        with self._lock:
            self._next = 0 if index is None else (index + 1) % self._recording.calls
            if found is not None:
                self.hits += 1
                return found
            self.misses += 1
            start = time.perf_counter()
            if self._live is None:
                self._live = self._make_live()
            found = self._live.run(batch)
            self._seconds += time.perf_counter() - start
            return found

    def stream(self, feed: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
        """The outputs of `run`, one after the other."""
        yield from self.run(feed)

    def __enter__(self) -> ReplaySession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._recording.count_replay(self._what, self.hits, self.misses, self._seconds)


def feed_digest(batch: Mapping[str, np.ndarray]) -> bytes:
    """BLAKE2b of names, dtypes, shapes and bytes of a batch; 16 bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in batch.items():
        digest.update(f"{name}\0{array.dtype.str}{array.shape}\0".encode())
        digest.update(flat_bytes(array).data)
    return digest.digest()
