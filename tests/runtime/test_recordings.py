from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.build import Builder

from qpass.errors import DataError, EngineError
from qpass.ir.model import Model
from qpass.runtime.engines import get_engine
from qpass.runtime.replay import Recording, RecordingSession, ReplaySession, feed_digest
from qpass.runtime.spool import Spool


def two_inputs() -> Model:
    """``(x + y) rectified``; the second input has a fixed first axis."""
    made = Builder().feed("y", [3]).feed("x", [-1, 3])
    return made.add("y").relu().model()


MODEL = two_inputs()
SMALL = st.sampled_from([-1.5, -0.0, 0.0, 1.0, 2.0])


@st.composite
def feeds(draw: st.DrawFn) -> dict[str, np.ndarray]:
    rows = draw(st.integers(1, 3))
    x = draw(st.lists(SMALL, min_size=3 * rows, max_size=3 * rows))
    return {
        "x": np.array(x, np.float32).reshape(rows, 3),
        "y": np.array(draw(st.lists(SMALL, min_size=3, max_size=3)), np.float32),
    }


class Rectified:
    """A session of the model above, in NumPy; counts its runs."""

    feed_names, fetch_names = ("y", "x"), ("relu_0.tmp_0",)

    def __init__(self) -> None:
        self.runs = 0

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self.runs += 1
        return [np.maximum(feed["x"] + feed["y"], 0)]

    def stream(self, feed: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
        return iter(self.run(feed))


def key(feed: Mapping[str, np.ndarray]) -> tuple[object, ...]:
    return tuple((feed[n].shape, feed[n].tobytes()) for n in ("x", "y"))


@given(fed=st.lists(feeds(), min_size=1, max_size=12), more=st.lists(feeds(), max_size=4), order=st.randoms())
def test_distinct_feeds_in_the_order_of_their_first_call(
    fed: list[dict[str, np.ndarray]], more: list[dict[str, np.ndarray]], order: random.Random
) -> None:
    distinct = {key(feed): feed for feed in reversed(fed)}
    expected = [distinct[k] for k in dict.fromkeys(map(key, fed))]
    recordings = []
    for memory in (0, 60, 1 << 20):
        recording, outputs = Recording(MODEL, memory), Spool(memory)
        session = RecordingSession(Rectified(), recording, outputs)
        for feed in fed:
            session.run(feed)
        assert recording.calls == len(outputs) == len(expected)
        assert [recording.samples(i) for i in range(recording.calls)] == [len(feed["x"]) for feed in expected]
        for index, feed in enumerate(expected):
            assert key(recording.feed(index)) == key(feed)
            np.testing.assert_array_equal(outputs[index][0], Rectified().run(feed)[0])
            assert [recording.index(recording.checked(feed), guess) for guess in range(len(expected) + 1)] == (
                [index] * (len(expected) + 1)
            )
        recordings.append([key(feed) for feed in recording])
    assert recordings[0] == recordings[1] == recordings[2]

    again = [*fed, *more]
    order.shuffle(again)
    live = Rectified()
    replay = ReplaySession(recording, outputs.__getitem__, lambda: live, "it")
    for feed in again:
        np.testing.assert_array_equal(replay.run(feed)[0], Rectified().run(feed)[0])
    new = sum(key(feed) not in distinct for feed in more)
    assert (replay.hits, replay.misses, live.runs) == (len(again) - new, new, new)


def test_names_dtypes_and_shapes_make_another_digest() -> None:
    x = np.arange(6, dtype=np.float32)
    batches = [
        {"x": x},
        {"z": x},
        {"x": x.reshape(2, 3)},
        {"x": x.reshape(3, 2)},
        {"x": x.view(np.int32)},
        {"x": x[:3], "y": x[3:]},
        {"x": x[:2], "y": x[2:]},
    ]
    assert len({feed_digest(batch) for batch in batches}) == len(batches)
    assert feed_digest({"x": np.asfortranarray(x.reshape(2, 3))}) == feed_digest({"x": x.reshape(2, 3)})


def test_several_readers_at_the_same_time() -> None:
    recording = Recording(MODEL, 100)
    session = RecordingSession(Rectified(), recording)
    rng = np.random.default_rng(0)
    fed = [{"x": rng.normal(size=(4, 3)).astype("f4"), "y": rng.normal(size=3).astype("f4")} for _ in range(30)]
    for feed in fed:
        session.run(feed)
    with ThreadPoolExecutor(5) as pool:
        passes = list(pool.map(lambda _: [key(feed) for feed in recording], range(5)))
    assert passes == [[key(feed) for feed in fed]] * 5


def test_a_fixed_batch_counts_too_and_a_scalar_is_one_sample() -> None:
    for shape, count in (([5, 3], 5), ([], 1)):
        recording = Recording(Builder().feed("x", shape).relu().model())
        recording.add({"x": np.zeros(shape, np.float32)}, [])
        assert recording.samples(0) == count


def test_names_are_those_of_the_session() -> None:
    for made in (MODEL, Builder().feed("x", [-1, 3]).relu().model()):
        session, recording = get_engine("executor").session(made), Recording(made)
        assert (recording.feed_names, recording.fetch_names) == (session.feed_names, session.fetch_names)


def test_an_input_of_unknown_dtype_takes_no_objects() -> None:
    made = Builder().feed("x", [-1, 3]).relu().model()
    port = made.feeds[0]
    recording = Recording(made)
    recording.feeds = (type(port)(port.name, None, port.shape),)
    with pytest.raises(DataError, match=r"feed, input 'x': dtype is object, expected numbers"):
        recording.checked({"x": np.array([[None, 1, 2]])})


def test_a_failing_engine_leaves_nothing_in_the_recording() -> None:
    class Failing(Rectified):
        def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            raise EngineError("failed")

    recording = Recording(MODEL)
    session = RecordingSession(Failing(), recording)
    feed = {"x": np.ones((2, 3), np.float32), "y": np.ones(3, np.float32)}
    for _ in range(2):  # and the lock is free again
        with pytest.raises(EngineError):
            session.run(feed)
    assert recording.calls == 0
