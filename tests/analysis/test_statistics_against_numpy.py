from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qpass import demo
from qpass.analysis.metric import SQNR_LIMIT
from qpass.analysis.statistics import QUANTILES, TensorStatistics, collect_statistics
from qpass.errors import QuantError, UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.scales import ScaleTable
from qpass.runtime.calibrate import calibrate
from qpass.runtime.engines import get_engine

QUANT = Path(__file__).resolve().parents[1] / "data" / "quant"
BATCHES = [batch[:n] for batch, n in zip(demo.calibration_data(), (50, 7), strict=False)]


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.fixture(scope="module")
def table(digits: Model) -> ScaleTable:
    return calibrate(digits, BATCHES)


@pytest.fixture(scope="module")
def found(digits: Model, table: ScaleTable) -> tuple[TensorStatistics, ...]:
    return collect_statistics(digits, BATCHES, scales=table, engine="executor")


def values(model: Model, name: str) -> np.ndarray:
    session = get_engine("executor").session(model, [model.graph.last(name)])
    return np.concatenate([session.run({model.feeds[0].name: batch})[0].ravel() for batch in BATCHES])


def check(one: TensorStatistics, x: np.ndarray, quantized: np.ndarray, quantile_error: float) -> None:
    x, quantized = x.astype(np.float64).ravel(), quantized.astype(np.float64).ravel()
    assert (one.minimum, one.maximum) == (x.min(), x.max())
    assert one.mean == pytest.approx(x.mean(), rel=1e-9, abs=1e-12)
    assert one.std == pytest.approx(x.std(), rel=1e-9)
    for quantile, share in zip(one.quantiles, QUANTILES, strict=True):
        low, high = np.quantile(x, share, method="lower"), np.quantile(x, share, method="higher")
        assert low - quantile_error <= quantile <= high + quantile_error
    assert one.error_rms == pytest.approx(np.sqrt(((quantized - x) ** 2).mean()), rel=1e-5)
    assert one.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((quantized - x) ** 2).sum()), abs=1e-4)
    edges = one.bin_edges
    assert len(edges) == len(one.float_counts) + 1 == len(one.quant_counts) + 1
    assert 32 <= len(one.float_counts) <= 256
    assert edges[0] <= one.minimum
    assert edges[-1] >= one.maximum
    for counts, of in ((one.float_counts, x), (one.quant_counts, quantized)):
        assert counts.sum() == x.size
        # A value within float32 rounding of an edge may count on either side.
        inside, tolerance = np.sort(np.clip(of, edges[0], edges[-1])), 1e-6 * (edges[-1] - edges[0])
        assert (np.cumsum(counts) >= np.searchsorted(inside, edges[1:] - tolerance)).all()
        assert (np.cumsum(counts) <= np.searchsorted(inside, edges[1:] + tolerance)).all()


def test_activations_over_all_batches(digits: Model, table: ScaleTable, found: tuple[TensorStatistics, ...]) -> None:
    activations = [one for one in found if one.role == "activation"]
    assert len(activations) == 8
    for one in activations:
        x = values(digits, one.name)
        threshold = table.activations[one.name]
        assert one.threshold == pytest.approx(threshold)
        step = threshold / 127
        quantized = np.clip(np.rint(x.astype(np.float64) / step), -128, 127) * step
        check(one, x, quantized, quantile_error=1.01 * (x.max() - x.min()) / 8192)


def test_weights(digits: Model, table: ScaleTable, found: tuple[TensorStatistics, ...]) -> None:
    weights = [one for one in found if one.role == "weight"]
    assert [one.layer for one in weights] == [one.name for one in weights] == list(table.weights)
    for one in weights:
        x = digits.params[one.name].astype(np.float64)
        axis = table.weight_axes[one.name]
        assert axis is not None
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        step = table.weights[one.name].astype(np.float64).reshape(shape) / 127
        check(one, x, np.clip(np.rint(x / step), -128, 127) * step, quantile_error=1e-12)
        assert one.threshold == np.abs(digits.params[one.name]).max()


def test_no_comb_where_one_threshold_rules() -> None:
    """Evenly spread values stay evenly spread when they are quantized: no bin may hold more levels than another."""
    model = load(QUANT / "float")
    x = np.linspace(-1, 1, 4 * 192, dtype=np.float32).reshape(4, 3, 8, 8)
    table = calibrate(model, [x], algo="abs_max")
    one = next(one for one in collect_statistics(model, [x], scales=table) if one.name == "x")
    inner = one.quant_counts[2:-2]
    assert inner.max() <= 1.5 * inner.mean()
    assert inner.min() >= 0.5 * inner.mean()


def test_a_quantized_model_speaks_for_itself() -> None:
    model = load(demo.qat_prefix())
    found = collect_statistics(model, BATCHES, engine="executor", layers=["linear_1.w_0"])
    assert [(one.layer, one.role) for one in found] == [("linear_1.w_0", "weight"), ("linear_1.w_0", "activation")]
    weight, activation = found
    w = model.params["linear_1.w_0"].astype(np.float64)
    step = np.abs(w).max(0) / 127
    check(weight, w, np.clip(np.rint(w / step), -128, 127) * step, quantile_error=1e-12)
    x = values(model, activation.name)
    step = activation.threshold / 127
    check(activation, x, np.clip(np.rint(x / step), -128, 127) * step, quantile_error=(x.max() - x.min()) / 8000)


@pytest.mark.parametrize("encoding", ["a", "b", "c", "t"])
def test_stored_integers_count_without_error(encoding: str) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    found = collect_statistics(load(QUANT / encoding), [x])
    float_model = load(QUANT / "float")
    assert [one.role for one in found] == ["weight", "activation"] * 3
    for one, name in zip(found[::2], ("conv2d_0.w_0", "conv2d_1.w_0", "linear_0.w_0"), strict=True):
        assert one.error_rms < 1e-6
        assert one.threshold == pytest.approx(np.abs(float_model.params[name]).max(), rel=0.01)
        assert one.maximum == pytest.approx(float_model.params[name].max(), abs=one.threshold / 127)


def test_a_constant_tensor() -> None:
    model = load(QUANT / "float")
    x = np.zeros((2, 3, 8, 8), np.float32)
    one = next(one for one in collect_statistics(model, [x], scales=calibrate(model, [x])) if one.name == "x")
    assert (one.minimum, one.maximum, one.std, one.error_rms) == (0, 0, 0, 0)
    assert one.quantiles == (0.0,) * 7
    assert one.sqnr_db == SQNR_LIMIT
    assert one.float_counts.sum() == one.quant_counts.sum() == x.size


def test_refusals(digits: Model, table: ScaleTable) -> None:
    with pytest.raises(UsageError, match="not quantized"):
        collect_statistics(digits, BATCHES)
    with pytest.raises(QuantError, match="conv2d_99"):
        collect_statistics(digits, BATCHES, scales=table, layers=["conv2d_99.w_0"])
