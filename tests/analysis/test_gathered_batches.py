from __future__ import annotations

import numpy as np
import pytest

from qpass import demo
from qpass.analysis.gathering import Gathered, Units
from qpass.analysis.outputs import Again, Outputs
from qpass.formats.files import load
from qpass.runtime.replay import Recording
from qpass.runtime.spool import Spool

IMAGES = demo.calibration_data()[0][:10]
SIZES = (3, 1, 4, 2)


def recorded(memory_bytes: int) -> Recording:
    recording = Recording(load(demo.float_prefix()), memory_bytes)
    for part in np.split(IMAGES, np.cumsum(SIZES)[:-1]):
        recording.add({"image": part}, [])
    return recording


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_samples_are_gathered_from_calls_in_any_order(memory_bytes: int) -> None:
    units = Units(recorded(memory_bytes), single=True)
    assert units.total == units.samples == 10
    chosen = [9, 0, 1, 2, 5, 3, 4]
    batches = units.batches(chosen, 3)
    assert [batch.units for batch in batches] == [(9, 0, 1), (2, 5, 3), (4,)]
    feeds = [batch.feed(units.recording)["image"] for batch in batches]
    assert np.concatenate(feeds).tobytes() == IMAGES[chosen].tobytes()


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_outputs_are_gathered_the_same_way_also_those_that_were_not_kept(memory_bytes: int) -> None:
    units = Units(recorded(memory_bytes), single=True)
    table = np.random.default_rng(0).normal(size=(10, 5))
    spool = Spool(memory_bytes)
    parts = np.split(table, np.cumsum(SIZES)[:-1])
    for part in parts[:2]:
        spool.add([part[:, :2], part])
    outputs = Outputs(spool, (1,), lambda call: [parts[call]])
    (batch,) = units.batches([8, 2, 3, 0], 10)
    assert [array.tolist() for array in batch.of(outputs)] == [table[[8, 2, 3, 0]].tolist()]
    assert [outputs(call)[0].tolist() for call in range(4)] == [part.tolist() for part in parts]


def test_calls_that_cannot_be_taken_apart_stay_whole_and_weigh_by_their_samples() -> None:
    units = Units(recorded(1 << 20), single=False)
    assert (units.total, units.samples) == (4, 10)
    batches = units.batches([2, 0], 1)
    assert [(batch.units, len(batch.places)) for batch in batches] == [((2,), 4), ((0,), 3)]
    assert batches[0].feed(units.recording)["image"].tobytes() == IMAGES[4:8].tobytes()
    values = np.random.default_rng(0).normal(size=10)
    assert units.figures(values).shape == (4,)
    assert units.figures(values).mean() == pytest.approx(values.mean(), abs=1e-15)


def test_samples_of_other_shapes_go_into_batches_of_their_own() -> None:
    recording = Recording(load(demo.float_prefix()), 1 << 20)
    recording.shapes = lambda index: [(2, 1, 8, 8 + index % 2)]  # type: ignore[method-assign]
    recording.samples = lambda index: 2  # type: ignore[method-assign]
    recording._samples = [2, 2, 2]
    batches = Units(recording, single=True).batches(range(6), 10)
    assert [batch.units for batch in batches] == [(0, 1, 4, 5), (2, 3)]


def test_what_was_not_kept_is_run_again_by_one_session() -> None:
    made = []

    class Session:
        feed_names = ("other_name",)

        def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [feed["other_name"] * 2]

    def make() -> Session:
        made.append(1)
        return Session()

    again = Again(make, lambda call: {"x": np.full(2, call)})  # type: ignore[arg-type]
    assert not made
    assert again(3)[0].tolist() == [6, 6]
    assert again(1)[0].tolist() == [2, 2]
    assert made == [1]


def test_splitting_gives_one_piece() -> None:
    outputs = [np.zeros(3), np.ones(3)]
    assert list(Gathered((0, 1, 2), ((0, 0), (0, 1), (0, 2)), whole=False).split(outputs)) == [outputs]
