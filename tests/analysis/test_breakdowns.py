"""Where the loss comes from: parts of layers against whole models that are quantized in that part alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.corpus import corpus, golden
from support.planted import broken, shrunk

from qpass import demo
from qpass.analysis.evaluate import evaluation
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat
from qpass.analysis.result import AnalysisResult, LayerResult
from qpass.errors import CheckpointError, UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.passes import FoldQuant, InsertQuant
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.runtime.calibrate import calibrate
from qpass.runtime.data import Batches
from qpass.runtime.engines import get_engine

IMAGES = [demo.calibration_data()[0][:24]]
BAD = "conv2d_5.w_0"


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.fixture(scope="module")
def table(digits: Model) -> ScaleTable:
    return calibrate(digits, IMAGES)


@pytest.fixture(scope="module")
def ptq(digits: Model, table: ScaleTable) -> AnalysisResult:
    return analyze_ptq(digits, table, data=IMAGES, engine="executor", breakdown=True)


def row(result: AnalysisResult, name: str) -> LayerResult:
    return next(r for r in result.rows if r.layer == name)


@pytest.mark.parametrize("name", ["conv2d_0.w_0", BAD, "linear_1.w_0"])
@pytest.mark.parametrize("role", ["weight", "activation"])
def test_ptq_parts_are_whole_models(
    digits: Model, table: ScaleTable, ptq: AnalysisResult, name: str, role: str
) -> None:
    engine = get_engine("executor")
    plain = evaluation(None, reference=digits, data=Batches.of(digits, IMAGES), engine=engine)
    part = InsertQuant(scales=table, layers=(name,), weights=role == "weight", activations=role == "activation")
    expected = plain.measure(FoldQuant(to="float")(part(digits)), "the part").metric
    assert row(ptq, name).details[f"{role}_metric"] == pytest.approx(expected, rel=1e-9)
    assert row(ptq, name).details[f"{role}_sensitivity"] == pytest.approx(1 - expected, abs=1e-9)


def test_output_sqnr_is_the_label_free_one_and_is_there_for_functions(
    digits: Model, table: ScaleTable, ptq: AnalysisResult
) -> None:
    def evaluate(predict: demo.Predict) -> float:
        return float(np.mean(predict(IMAGES[0])[0][:, 0]))

    other = analyze_ptq(digits, table, evaluate=evaluate, engine="executor", breakdown=True)
    for one in ptq.rows:
        assert one.details["output_sqnr_db"] == pytest.approx(one.details["sqnr_db"], abs=1e-9)
        assert row(other, one.layer).details["output_sqnr_db"] == pytest.approx(one.details["sqnr_db"], abs=1e-6)


def test_shares_add_up_and_without_breakdown_nothing_changes(
    digits: Model, table: ScaleTable, ptq: AnalysisResult
) -> None:
    for one in ptq.rows:
        for role in ("weight", "activation"):
            shares = [one.details[f"{role}_{kind}_share"] for kind in ("clipping", "rounding")]
            assert sum(shares) == pytest.approx(1, abs=1e-12)
    plain = analyze_ptq(digits, table, data=IMAGES, engine="executor")
    assert [(r.layer, r.metric, r.sensitivity) for r in plain.rows] == [
        (r.layer, r.metric, r.sensitivity) for r in ptq.rows
    ]
    assert not any("weight_metric" in r.details or "local_sqnr_db" in r.details for r in plain.rows)
    assert AnalysisResult.from_json(ptq.to_json()) == ptq


@pytest.mark.parametrize("weight", [False, True], ids=["activation", "weight"])
def test_a_planted_threshold_is_blamed_on_its_part(digits: Model, table: ScaleTable, weight: bool) -> None:
    result = analyze_ptq(digits, shrunk(table, digits, BAD, weight=weight), data=IMAGES, breakdown=True)
    assert result.rows[0].layer == BAD
    figures = result.rows[0].details
    bad, good = ("weight", "activation") if weight else ("activation", "weight")
    assert figures[f"{bad}_sensitivity"] > 100 * abs(figures[f"{good}_sensitivity"])
    assert figures[f"{bad}_fine_loss"] > 10 * abs(figures[f"{good}_fine_loss"])
    assert figures[f"{bad}_clipping_share"] > 0.99
    assert figures["local_sqnr_db"] < 6


def test_coarse_weights_are_rounding(digits: Model, table: ScaleTable) -> None:
    result = analyze_ptq(digits, table, data=IMAGES, overrides=[f"{BAD}:w2"], breakdown=True)
    figures = result.rows[0].details
    assert result.rows[0].layer == BAD
    assert figures["weight_sensitivity"] > 20 * figures["activation_sensitivity"]
    assert figures["weight_rounding_share"] > 0.99


def test_qat_blames_the_activation(digits: Model) -> None:
    name = "conv2d_0.w_0"
    quantized = broken(load(demo.qat_prefix()), name)
    result = analyze_qat(quantized, digits, data=IMAGES, breakdown=True)
    figures = result.rows[0].details
    assert result.rows[0].layer == name
    assert figures["activation_sensitivity"] > 5 * abs(figures["weight_sensitivity"])
    assert figures["activation_clipping_share"] > 0.99
    assert figures["local_sqnr_db"] < 6


@pytest.mark.parametrize("encoding", ["A", "B"])
def test_qat_parts_are_whole_models(digits: Model, table: ScaleTable, encoding: str) -> None:
    quantized = InsertQuant(scales=table, encoding=encoding)(digits)
    result = analyze_qat(quantized, digits, data=IMAGES, engine="executor", breakdown=True, op_types=("mul",))
    engine = get_engine("executor")
    plain = evaluation(None, reference=digits, data=Batches.of(digits, IMAGES), engine=engine)
    everything = [layer.name for layer in find_layers(digits)]
    for name in (r.layer for r in result.rows):
        rest = InsertQuant(scales=table, layers=tuple(n for n in everything if n != name))(digits)
        for role in ("weight", "activation"):
            other = InsertQuant(scales=table, layers=(name,), weights=role != "weight", activations=role == "weight")
            expected = plain.measure(FoldQuant(to="float")(other(rest)), "the part").metric
            assert row(result, name).details[f"{role}_metric"] == pytest.approx(expected, rel=1e-6)


def test_an_estimate_evaluates_the_top_alone(digits: Model, table: ScaleTable) -> None:
    wrong = shrunk(table, digits, BAD, weight=False)
    whole = analyze_ptq(digits, wrong, data=IMAGES)
    result = analyze_ptq(digits, wrong, data=IMAGES, estimate=3)
    assert result.estimate is not None
    assert set(result.estimate.scores) == {r.layer for r in whole.rows}
    assert {r.layer for r in result.rows} == set(list(result.estimate.scores)[:3])
    assert result.rows[0].layer == BAD
    for one in result.rows:
        assert one.metric == pytest.approx(row(whole, one.layer).metric, rel=1e-9)
    assert result.order[:3] == tuple(r.layer for r in result.rows)
    assert result.skip_tensor_list(top=5) == list(result.order[:5])
    assert len(result.skip_tensor_list(top=100)) == len(whole.rows)
    assert set(result.skip_tensor_list(threshold=-1.0)) == {r.layer for r in result.rows}
    assert [one.layers for one in result.estimate.agreement] == [3, 3, 3]
    assert AnalysisResult.from_json(result.to_json()) == result
    assert analyze_ptq(digits, wrong, data=IMAGES, estimate=3).to_json() == result.to_json()


def test_an_estimate_of_everything_with_settled_layers_and_parts(digits: Model, table: ScaleTable) -> None:
    result = analyze_ptq(digits, table, data=IMAGES, estimate=100, breakdown=True, settle=0.9)
    assert result.race is not None
    assert all("weight_metric" in r.details for r in result.rows)
    assert result.estimate is not None
    assert len(result.estimate.scores) == len(result.rows)


def test_qat_estimates(digits: Model) -> None:
    quantized = broken(load(demo.qat_prefix()), "conv2d_0.w_0")
    result = analyze_qat(quantized, digits, data=IMAGES, estimate=2)
    assert result.rows[0].layer == "conv2d_0.w_0"
    assert len(result.rows) == 2


def test_a_checkpoint_holds_the_parts(digits: Model, table: ScaleTable, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint.jsonl"
    first = analyze_ptq(digits, table, data=IMAGES, breakdown=True, checkpoint=place)
    keys = [json.loads(line).get("key") for line in place.read_text().splitlines()]
    assert {f"weight:{BAD}", f"activation:{BAD}", f"local:{BAD}", f"layer:{BAD}"} <= set(keys)
    lines = place.read_text().splitlines(keepends=True)
    place.write_text("".join(lines[:5]))
    again = analyze_ptq(digits, table, data=IMAGES, breakdown=True, checkpoint=place, resume=True)
    assert [(r.layer, r.metric) for r in again.rows] == [(r.layer, r.metric) for r in first.rows]
    with pytest.raises(CheckpointError, match="breakdown"):
        analyze_ptq(digits, table, data=IMAGES, checkpoint=place, resume=True)


@pytest.mark.parametrize("wanted", [{"breakdown": True}, {"estimate": 2}], ids=["breakdown", "estimate"])
def test_where_models_are_no_slices(digits: Model, table: ScaleTable, wanted: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wanted))):
        analyze_ptq(digits, table, data=IMAGES, simulate="onednn", **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -3])
def test_an_estimate_of_no_layers(digits: Model, table: ScaleTable, count: int) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        analyze_ptq(digits, table, data=IMAGES, estimate=count)


def test_estimates_of_a_residual_net_rank_as_the_outputs_do() -> None:
    model = load(corpus("models/resnet8_cifar10"))
    images = [np.load(golden("resnet8_calibration.npz"))["x"][:64].astype(np.float32)]
    result = analyze_ptq(model, images, estimate=100)
    assert result.estimate is not None
    (noise,) = (one for one in result.estimate.agreement if one.against == "noise of the outputs")
    assert noise.spearman is not None
    assert noise.spearman > 0.9
