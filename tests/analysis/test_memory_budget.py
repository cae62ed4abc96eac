"""The memory of a sweep: how variants are cut into programs, what is refused, and that figures do not depend on it."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.build import Builder
from support.projections import Predict, Projection
from support.quantized import quantized, residual_net

from qpass import demo
from qpass.analysis.budget import Budget, _cut
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat
from qpass.analysis.result import AnalysisResult
from qpass.analysis.skeleton import find_skeleton
from qpass.errors import UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.quant.layers import find_layers
from qpass.quant.toggles import Switched, Toggles
from qpass.runtime.calibrate import calibrate
from qpass.runtime.engines import get_engine
from qpass.runtime.jobs import InProcess
from qpass.runtime.replay import Recording

MIB = 1 << 20
IMAGES = demo.calibration_data()[0]


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 200))
def test_pieces_hold_everything_in_order_and_stay_within_the_limit(costs: list[int], limit: int) -> None:
    numbers = list(range(len(costs)))
    pieces = list(_cut(numbers, costs, limit))
    assert [number for piece in pieces for number in piece] == numbers
    for piece in pieces:
        assert piece
        assert len(piece) == 1 or sum(costs[number] for number in piece) <= limit
    for before, after in itertools.pairwise(pieces):
        assert sum(costs[number] for number in before) + costs[after[0]] > limit


@pytest.fixture(scope="module")
def toggles() -> Toggles:
    model = residual_net()
    whole = quantized(model)
    found = find_skeleton(whole, model.params, find_layers(whole), get_engine("executor"))
    assert found is not None
    return found.toggles


def recorded(model: Model, count: int) -> Recording:
    recording = Recording(model)
    batch = np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)
    recording.add(recording.checked({"x": batch}), [])
    return recording


def test_variants_are_cut_for_memory_and_for_workers(toggles: Toggles) -> None:
    layers = list(toggles.operands)
    variants = [Switched.both([name]) for name in layers] * 8
    recording = recorded(toggles.model, 2)
    whole = Budget(toggles, recording, 1 << 30).chunks(variants, lambda on: on, 1)
    assert [len(chunk) for chunk in whole] == [len(variants)]
    for least in (2, 3, 5):
        chunks = Budget(toggles, recording, 1 << 30).chunks(variants, lambda on: on, least)
        assert len(chunks) >= least
        assert [variant for chunk in chunks for variant in chunk] == variants
    small = Budget(toggles, recording, 2 * MIB).chunks(variants, lambda on: on, 1)
    assert len(small) > 1
    assert [variant for chunk in small for variant in chunk] == variants
    assert len(Budget(toggles, recording, 4 * MIB).chunks(variants, lambda on: on, 1)) < len(small)
    assert Budget(toggles, recording, 1 << 30).chunks([], lambda on: on, 3) == []


def test_more_memory_takes_larger_batches_up_to_what_pays(toggles: Toggles) -> None:
    recording = recorded(toggles.model, 1)
    samples = [Budget(toggles, recording, size).samples for size in (64 << 10, MIB, 16 * MIB, 1 << 30, 1 << 34)]
    assert samples == sorted(samples)
    assert samples[0] < samples[2]
    assert samples[-1] == samples[-2]


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.mark.parametrize("engine", ["executor", "inference"])
def test_figures_do_not_depend_on_the_memory(digits: Model, engine: str) -> None:
    scales = calibrate(digits, [IMAGES])
    batches = [IMAGES[:8], IMAGES[8:11], IMAGES[11:20]]
    results = [
        analyze_ptq(digits, scales, evaluate=Sum(batches), engine=engine, memory_bytes=size)
        for size in (8 * MIB, 64 * MIB, 1 << 30)
    ]
    assert_equal_figures(results)


class Sum:
    """A smooth metric of all outputs."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self._batches = batches

    def __call__(self, predict: Predict) -> float:
        outputs = np.concatenate([predict(batch)[0] for batch in self._batches]).astype(np.float64)
        return float((outputs * np.arange(1, outputs.shape[1] + 1)).sum())


def assert_equal_figures(results: list[AnalysisResult]) -> None:
    """To 1e-5: batches of other sizes are added up in another order, by up to 1e-6."""
    first = results[0]
    for other in results[1:]:
        assert other.baseline == pytest.approx(first.baseline, rel=1e-5)
        assert other.reference == pytest.approx(first.reference, rel=1e-5)
        metrics = {row.layer: row.metric for row in first.rows}
        assert {row.layer: row.metric for row in other.rows} == pytest.approx(metrics, rel=1e-5)


def test_figures_of_the_qat_mode_do_not_depend_on_the_memory(digits: Model) -> None:
    results = [
        analyze_qat(load(demo.qat_prefix()), digits, data=[IMAGES], engine="executor", memory_bytes=size)
        for size in (16 * MIB, 1 << 30)
    ]
    assert_equal_figures(results)


class Several(InProcess):
    """Workers that run one after the other."""

    def __init__(self, count: int) -> None:
        self.count = count


def mixing() -> Model:
    """Every image is compared with the mean of its batch, which so cannot be run in parts."""
    b = Builder().feed("x", [-1, 3, 32, 32]).conv2d(16)
    h = b.current
    attrs = {"dim": Attr.ints((0,)), "keep_dim": Attr.bool(True)}
    b.declare("mean", (1, 16, 32, 32)).op("reduce_mean", {"X": h}, {"Out": "mean"}, attrs)
    b.declare("centred", (-1, 16, 32, 32)).op("elementwise_sub", {"X": h, "Y": "mean"}, {"Out": "centred"})
    return b.conv2d(4).model()


@pytest.mark.parametrize("workers", [1, 2])
def test_too_little_memory_for_a_batch_says_how_much_is_needed(workers: int) -> None:
    model = mixing()
    images = np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32)
    scales = calibrate(model, [images])

    def analyze(size: int) -> str:
        return analyze_ptq(
            model,
            scales,
            data=[images],
            engine="executor",
            memory_bytes=size,
            workers=Several(workers),
        ).to_json()

    with pytest.raises(UsageError, match=f"too little for one batch of {len(images)} samples") as caught:
        analyze(MIB)
    found = re.search(r"needs about (\d+) MiB, and has (\d+) MiB", str(caught.value))
    assert found is not None
    needed, has = map(int, found.groups())
    assert has == 1
    assert analyze(needed * MIB)
    with pytest.raises(UsageError, match=f"needs about {needed} MiB, and has {needed - 2} MiB"):
        analyze((needed - 2) * MIB)


def test_independent_samples_are_run_in_parts_where_memory_is_short(digits: Model) -> None:
    scales = calibrate(digits, [IMAGES])
    little, much = (
        analyze_ptq(digits, scales, data=[IMAGES], engine="executor", memory_bytes=size) for size in (MIB, 1 << 30)
    )
    assert [row.layer for row in little.rows] == [row.layer for row in much.rows]
    for a, b in zip(little.rows, much.rows, strict=True):  # matrix products add in an order of their batch size
        assert a.metric == pytest.approx(b.metric, rel=1e-7)
    with pytest.raises(UsageError, match="too little for one batch of 1 samples"):
        analyze_ptq(digits, scales, evaluate=Projection([IMAGES]), engine="executor", memory_bytes=1 << 10)
