"""Batches put together for the engine: which, and that no figure of a sweep is another for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.build import Builder
from support.projections import Predict, Projection
from support.quantized import quantized, residual_net, table

from qpass import demo
from qpass.analysis import measuring
from qpass.analysis.grouping import Group, alone, together
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.result import AnalysisResult
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.quant.toggles import mixes_samples
from qpass.runtime.replay import Recording


def net(batch: int = -1) -> Model:
    return Builder().feed("x", [batch, 6]).matmul(6).relu().matmul(3).model()


def recorded(model: Model, batches: Sequence[np.ndarray]) -> Recording:
    recording = Recording(model)
    for batch in batches:
        recording.add(recording.checked({model.feeds[0].name: batch}), [])
    return recording


def noise(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from((8, 12))), min_size=1, max_size=12), st.integers(1, 20))
def test_groups_hold_every_call_once_in_order_and_stay_within_the_limit(
    sizes: list[tuple[int, int]], limit: int
) -> None:
    model = Builder().feed("x", [-1, 1, -1, -1]).conv2d(2).model()
    recording = recorded(model, noise(*((count, 1, side, side) for count, side in sizes)))
    groups = together(recording, limit)
    assert [call for group in groups for call in group.calls] == list(range(len(sizes)))
    for group in groups:
        assert group.samples == tuple(sizes[call][0] for call in group.calls)
        assert len({sizes[call][1] for call in group.calls}) == 1
        assert sum(group.samples) <= limit or len(group.calls) == 1
    for before, after in itertools.pairwise(groups):  # none could have taken the next call in
        fits = sum(before.samples) + after.samples[0] <= limit
        assert not fits or sizes[before.calls[-1]][1] != sizes[after.calls[0]][1]


def test_a_group_is_its_calls_one_behind_the_other() -> None:
    batches = noise((2, 6), (1, 6), (3, 6))
    (group,) = together(recorded(net(), batches), 6)
    recording = recorded(net(), batches)
    np.testing.assert_array_equal(group.feed(recording)["x"], np.concatenate(batches))
    split = list(group.split([np.arange(6), 10 * np.arange(6)]))
    assert [[part.tolist() for part in parts] for parts in split] == [
        [[0, 1], [0, 10]],
        [[2], [20]],
        [[3, 4, 5], [30, 40, 50]],
    ]


def test_a_batch_axis_of_fixed_size_keeps_calls_apart() -> None:
    batches = noise((2, 6), (2, 6))
    assert together(recorded(net(2), batches), 100) == alone(recorded(net(2), batches))
    assert [group.calls for group in alone(recorded(net(2), batches))] == [range(1), range(1, 2)]


class Groups:
    """Notes what batches are run as."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, apart: bool = False) -> None:
        self.seen: list[list[Group]] = []
        put_together = measuring.Slices._put_together

        def noting(slices: measuring.Slices, *args: object) -> list[Group]:
            groups = alone(slices.recording) if apart else put_together(slices, *args)
            self.seen.append(groups)
            return groups

        monkeypatch.setattr(measuring.Slices, "_put_together", noting)

    @property
    def calls(self) -> list[int]:
        """How many calls each batch holds."""
        (groups,) = self.seen
        return [len(group.calls) for group in groups]


def both_ways(model: Model, evaluate: object, engine: str) -> tuple[AnalysisResult, AnalysisResult, list[int]]:
    """A sweep as it is, the same with every call run alone, and how many calls were put together."""
    with pytest.MonkeyPatch.context() as patch:
        groups = Groups(patch)
        found = analyze_ptq(model, table(model), evaluate=evaluate, engine=engine)
    with pytest.MonkeyPatch.context() as patch:
        Groups(patch, apart=True)
        return found, analyze_ptq(model, table(model), evaluate=evaluate, engine=engine), groups.calls


@pytest.mark.parametrize("engine", ["executor", "inference"])
def test_figures_of_calls_of_several_sizes(engine: str) -> None:
    model = residual_net()
    batches = noise((3, 3, 8, 8), (1, 3, 8, 8), (5, 3, 8, 8), (2, 3, 8, 8))
    labels = [batch.mean((1, 2, 3)) > 0 for batch in batches]

    def evaluate(predict: Predict) -> np.ndarray:
        """Scores of samples, far finer than accuracy."""
        outputs = [predict(batch)[0] for batch in batches]
        return np.concatenate(
            [np.where(label, out[:, 0], out[:, 1]) for label, out in zip(labels, outputs, strict=True)]
        )

    found, apart, calls = both_ways(model, evaluate, engine)
    assert calls == [4]
    # sums in another order: a float32 has 6e-8
    assert [row.layer for row in found.rows] == [row.layer for row in apart.rows]
    for a, b in zip(found.rows, apart.rows, strict=True):
        assert a.metric == pytest.approx(b.metric, rel=1e-6)


def mixing() -> Model:
    """Every sample is compared with the mean of its batch."""
    b = Builder().feed("x", [-1, 6]).matmul(6)
    h = b.current
    attrs = {"dim": Attr.ints((0,)), "keep_dim": Attr.bool(True)}
    b.declare("mean", (1, 6)).op("reduce_mean", {"X": h}, {"Out": "mean"}, attrs)
    b.declare("centred", (-1, 6)).op("elementwise_sub", {"X": h, "Y": "mean"}, {"Out": "centred"})
    return b.matmul(3).model()


@pytest.mark.parametrize("engine", ["executor", "inference"])
def test_samples_that_depend_on_their_batch_are_not_put_together(engine: str) -> None:
    projection = Projection(noise((3, 6), (2, 6), (3, 6)))
    found, apart, calls = both_ways(mixing(), projection, engine)
    assert calls == [1, 1, 1]
    assert found.rows == apart.rows


def dynamic() -> Model:
    """An activation quantized at the threshold of its batch; not that of a layer."""
    b = Builder().feed("x", [-1, 6]).matmul(6).relu()
    h = b.current
    b.declare("scale", (1,)).declare("dynamic", (-1, 6))
    attrs = {"bit_length": Attr.int(8), "round_type": Attr.int(1)}
    b.op("fake_quantize_dequantize_abs_max", {"X": h}, {"Out": "dynamic", "OutScale": "scale"}, attrs)
    return b.unary("tanh").model()


def test_thresholds_of_a_batch_are_seen() -> None:
    assert mixes_samples(dynamic())
    assert not mixes_samples(quantized(residual_net(), encoding="D"))
    assert not mixes_samples(load(demo.qat_prefix()))
