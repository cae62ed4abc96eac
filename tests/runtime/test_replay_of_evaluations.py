"""Evaluation functions give the same from a replay as from the model itself, whatever they do."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.corpus import corpus
from support.full_disk import file_size_limit
from support.replays import ENGINE, computed, model_and_variant, replayed

from qpass import demo
from qpass.analysis.evaluate import evaluation
from qpass.errors import DataError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.runtime.data import Batches
from qpass.runtime.engine import Session
from qpass.runtime.facade import call_eval_function
from qpass.runtime.replay import Recording, RecordingSession, ReplaySession, ReplayWarning
from qpass.runtime.spool import Spool

IMAGES = demo.test_data()[0][:200]
LABELS = demo.test_data()[1][:200]


@pytest.fixture(scope="module")
def models() -> tuple[Model, Model]:
    return model_and_variant()


@pytest.fixture(scope="module")
def model(models: tuple[Model, Model]) -> Model:
    return models[0]


@pytest.fixture(scope="module")
def variant(models: tuple[Model, Model]) -> Model:
    return models[1]


def recorded(model: Model, call: Callable[[Session], object], memory_bytes: int | None = None) -> Recording:
    recording = Recording(model, memory_bytes)
    call(RecordingSession(ENGINE.session(model), recording))
    return recording


class Answering:
    """An engine that answers for one model by a given session, and for others itself."""

    name = "inference"

    def __init__(self, model: Model, session: Session) -> None:
        self._model, self._session = model, session

    def session(self, model: Model, fetch: None = None) -> Session:
        return self._session if model is self._model else ENGINE.session(model)


def paddle_form(executor: Any, program: Any, feed_names: list[str], fetch_list: list[Any]) -> float:
    found = [
        executor.run(program, feed={feed_names[0]: IMAGES[at : at + 30]}, fetch_list=fetch_list)[0]
        for at in range(0, len(IMAGES), 30)
    ]
    return float(np.concatenate(found)[np.arange(len(LABELS)), LABELS].mean())


def predict_form(predict: Callable[[object], list[np.ndarray]]) -> float:
    total = 0.0
    for at in range(0, 200, 50):  # each batch twice
        total += float(predict(IMAGES[at : at + 50])[0][:, 3].sum())
        total += float(predict([IMAGES[at : at + 50], LABELS[at : at + 50]])[0][:, 5].sum())
    return total


@pytest.mark.parametrize("function", [paddle_form, predict_form, None])
@pytest.mark.parametrize("memory_bytes", [None, 20_000])
def test_every_form_measures_the_same_in_a_replay(
    model: Model, variant: Model, function: Callable[..., float] | None, memory_bytes: int | None
) -> None:
    def measured(of: Model, session: Session) -> Any:
        data = None if function else Batches.of(model, [IMAGES[:90], IMAGES[90:]])
        engine = Answering(of, session)
        return evaluation(function, reference=model, data=data, engine=engine).measure(of, "it")

    recording = recorded(model, lambda session: measured(model, session), memory_bytes)
    assert [recording.samples(i) for i in range(recording.calls)] == (
        [30] * 6 + [20] if function is paddle_form else [50] * 4 if function else [90, 110]
    )
    with replayed(variant, recording) as replay:
        found = measured(variant, replay)
    expected = measured(variant, ENGINE.session(variant))
    assert found == expected
    assert found != measured(model, ENGINE.session(model))
    assert (replay.hits, replay.misses) == (8 if function is predict_form else recording.calls, 0)
    assert (recording.hits, recording.misses) == (replay.hits, 0)


class Loader:
    """Batches as a data loader gives them; the order of batches, or which samples are in them, changes every time."""

    def __init__(self, shuffle: str) -> None:
        self._shuffle = shuffle
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.epoch += 1
        rng = np.random.default_rng(self.epoch)
        order = rng.permutation(200) if self._shuffle == "samples" else np.arange(200)
        batches = order.reshape(10, 20)
        if self._shuffle == "some":
            batches[7:] = rng.permutation(batches[7:].ravel()).reshape(3, 20)
        for rows in rng.permutation(batches, axis=0):
            yield IMAGES[rows], LABELS[rows]


def loss(loader: Loader, session: Session, name: str) -> float:
    return float(sum(np.log(session.run({name: x})[0][np.arange(20), y]).sum(dtype=np.float64) for x, y in loader))


def test_a_loader_that_changes_the_order_of_batches_hits(model: Model, variant: Model) -> None:
    name, loader = model.feeds[0].name, Loader("batches")
    recording = recorded(model, lambda session: loss(loader, session, name))
    assert recording.calls == 10
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with replayed(variant, recording) as replay:
                found = loss(loader, replay, name)
        assert (replay.hits, replay.misses) == (10, 0)
        assert found == pytest.approx(loss(loader, ENGINE.session(variant), name), rel=1e-12)  # another order of a sum


@pytest.mark.parametrize(("shuffle", "missed"), [("samples", 10), ("some", 3)])
def test_a_loader_that_shuffles_within_batches_is_run_for_real_and_warned_of_once(
    model: Model, variant: Model, shuffle: str, missed: int
) -> None:
    name, loader = model.feeds[0].name, Loader(shuffle)
    recording = recorded(model, lambda session: loss(loader, session, name))
    outputs = computed(variant, recording)
    made = []

    def live() -> Session:
        made.append(ENGINE.session(variant))
        return made[-1]

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for what in ("layer 'a'", "layer 'b'", "layer 'c'"):
            with ReplaySession(recording, outputs.__getitem__, live, what) as replay:
                found = loss(loader, replay, name)
            assert (replay.hits, replay.misses) == (10 - missed, missed)
            again = Loader(shuffle)
            again.epoch = loader.epoch - 1
            assert found == loss(again, ENGINE.session(variant), name)
    assert len(made) == 3  # one a replay
    assert (recording.hits, recording.misses) == (3 * (10 - missed), 3 * missed)
    (warning,) = seen
    assert warning.category is ReplayWarning
    text = str(warning.message)
    assert text.startswith(f"layer 'a': {missed} of the 10 batches that the evaluation function fed were not recorded")
    assert "shuffle or augment" in text
    assert " s, and will for every other model" in text


class OneAtATime:
    """A session that is not thread-safe, and notices."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.feed_names, self.fetch_names = session.feed_names, session.fetch_names
        self.runs = 0
        self._busy = False

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert not self._busy
        self._busy = True
        time.sleep(0.001)  # other threads get their chance
        outputs = self._session.run(feed)
        self.runs += 1
        self._busy = False
        return outputs


def from_threads(executor: Any, program: Any, feed_names: list[str], fetch_list: list[Any]) -> float:
    def one(at: int) -> float:
        (found,) = executor.run(program, feed={feed_names[0]: IMAGES[at : at + 10]}, fetch_list=fetch_list)
        return float(found[:, 1].sum())

    with ThreadPoolExecutor(6) as pool:
        return sum(pool.map(one, [*range(0, 200, 10), *range(0, 200, 10)]))


def test_a_function_that_calls_from_several_threads(model: Model, variant: Model) -> None:
    recording, outputs = Recording(model), Spool()
    session = OneAtATime(ENGINE.session(model))
    assert call_eval_function(from_threads, model, session) == pytest.approx(  # type: ignore[arg-type]
        call_eval_function(from_threads, model, RecordingSession(session, recording, outputs)),  # type: ignore[arg-type]
        rel=1e-12,
    )
    assert recording.calls == 20
    assert session.runs == 80
    for feed, kept in zip(recording, outputs, strict=True):  # in the same order, whichever it was
        np.testing.assert_array_equal(kept[0], session.run(feed)[0])

    live = OneAtATime(ENGINE.session(variant))
    known = computed(variant, recording)
    with (
        pytest.warns(ReplayWarning, match="18 of the 40 batches"),
        ReplaySession(recording, lambda i: known[i] if i < 11 else None, lambda: live, "it") as replay,  # type: ignore
    ):
        found = call_eval_function(from_threads, variant, replay)
    assert found == call_eval_function(from_threads, variant, ENGINE.session(variant))
    assert live.runs == 18


def test_a_predict_function_that_calls_from_several_threads(model: Model) -> None:
    def function(predict: Callable[[object], list[np.ndarray]]) -> float:
        with ThreadPoolExecutor(6) as pool:
            return float(sum(pool.map(lambda at: predict(IMAGES[at : at + 10])[0][:, 1].sum(), range(0, 200, 10))))

    recording, outputs = Recording(model), Spool()
    session = OneAtATime(ENGINE.session(model))
    recorder = RecordingSession(session, recording, outputs)  # type: ignore[arg-type]
    with ReplaySession(recording, outputs.__getitem__, lambda: ENGINE.session(model), "it") as replay:
        first, again = (
            evaluation(function, reference=model, data=None, engine=Answering(model, s)).measure(model, "it").metric
            for s in (recorder, replay)
        )
    assert first == again
    assert (recording.calls, replay.hits, replay.misses) == (20, 20, 0)


def test_a_disk_that_fills_while_recording_leaves_a_shorter_recording(model: Model, variant: Model) -> None:
    name, loader = model.feeds[0].name, Loader("batches")
    recording, outputs = Recording(model, 2 * 20 * 64 * 4), Spool()
    with file_size_limit(3 * 20 * 64 * 4 + 100):  # two batches in memory, three on the disk
        found = loss(loader, RecordingSession(ENGINE.session(model), recording, outputs), name)
    assert found == pytest.approx(loss(loader, ENGINE.session(model), name), rel=1e-12)
    assert recording.calls == 5
    assert recording.full is not None
    for feed, kept in zip(recording, [outputs[i] for i in range(5)], strict=True):
        np.testing.assert_array_equal(kept[0], ENGINE.session(model).run(feed)[0])

    known = computed(variant, recording)
    with (
        pytest.warns(ReplayWarning, match=r"5 of the 10 .*recording ended early: .*File too large.*TMPDIR"),
        ReplaySession(recording, known.__getitem__, lambda: ENGINE.session(variant), "it") as replay,
    ):
        found = loss(loader, replay, name)
    assert found == pytest.approx(loss(loader, ENGINE.session(variant), name), rel=1e-12)


def test_outputs_that_cannot_be_kept_end_the_recording_too(model: Model) -> None:
    name, outputs = model.feeds[0].name, Spool(0)
    recording = Recording(model)
    session = RecordingSession(ENGINE.session(model), recording, outputs)
    with file_size_limit(1000):  # one batch of outputs
        assert all(session.run({name: IMAGES[at : at + 20]})[0].shape == (20, 10) for at in (0, 20, 40))
    assert (recording.calls, len(outputs)) == (1, 1)


def test_what_a_replay_refuses_is_what_the_session_refuses(model: Model) -> None:
    name = model.feeds[0].name
    recording = recorded(model, lambda session: session.run({name: IMAGES[:4]}))
    with replayed(model, recording) as replay:
        for bad in ({"y": IMAGES[:4]}, {name: IMAGES[:4, 0]}, {name: np.array([[object()]])}):
            with pytest.raises(DataError) as expected:
                ENGINE.session(model).run(bad)
            with pytest.raises(DataError) as found:
                replay.run(bad)
            assert str(found.value) == str(expected.value)
        # safe casts are no difference
        np.testing.assert_array_equal(
            *(r[0] for r in (replay.run({name: IMAGES[:4].astype(np.float64)}),)), replay.run({name: IMAGES[:4]})[0]
        )


def test_arrays_are_the_callers(model: Model) -> None:
    name, buffer = model.feeds[0].name, np.empty((20, 1, 8, 8), np.float32)

    def function(session: Session) -> list[np.ndarray]:
        found = []
        for at in range(0, 200, 20):
            buffer[:] = IMAGES[at : at + 20]
            (outputs,) = session.run({name: buffer})
            found.append(outputs.copy())
            outputs[:] = np.nan
        return found

    recording, outputs = Recording(model), Spool()
    expected = function(RecordingSession(ENGINE.session(model), recording, outputs))
    assert recording.calls == 10
    for _ in range(2):
        with ReplaySession(recording, outputs.__getitem__, lambda: ENGINE.session(model), "it") as replay:
            np.testing.assert_array_equal(function(replay), expected)
    assert recording.misses == 0


def test_streams_and_names(model: Model) -> None:
    name, plain = model.feeds[0].name, ENGINE.session(model)
    recording, outputs = Recording(model), Spool()
    recorder = RecordingSession(plain, recording, outputs)
    replay = ReplaySession(recording, outputs.__getitem__, lambda: plain, "it")
    for session in (recorder, replay):
        assert (session.feed_names, session.fetch_names) == (plain.feed_names, plain.fetch_names)
        np.testing.assert_array_equal(list(session.stream({name: IMAGES[:5]})), plain.run({name: IMAGES[:5]}))
    assert (replay.hits, replay.misses) == (1, 0)


def test_a_real_network_from_disk() -> None:
    net = load(corpus("models/resnet8_cifar10/inference.pdmodel"))
    rng = np.random.default_rng(5)
    batches = rng.normal(size=(5, 8, *net.feeds[0].shape[1:])).astype(np.float32)

    def function(session: Session) -> np.ndarray:
        with ThreadPoolExecutor(3) as pool:
            return np.stack([r[0] for r in pool.map(lambda x: session.run({session.feed_names[0]: x}), batches)])

    recording, outputs = Recording(net, 0), Spool(0)
    expected = function(RecordingSession(ENGINE.session(net), recording, outputs))
    with ReplaySession(recording, outputs.__getitem__, lambda: ENGINE.session(net), "it") as replay:
        np.testing.assert_array_equal(function(replay), expected)
    assert (replay.hits, replay.misses) == (5, 0)
