"""Every figure of a sweep against the plain way: each variant made by passes alone, and run whole on the executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from support.corpus import corpus
from support.projections import Projection

from qpass import demo
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat
from qpass.analysis.result import AnalysisResult
from qpass.analysis.sweep import Plan
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.passes import FoldQuant, InsertQuant, StripQuant
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.rewrite.edit import edit
from qpass.runtime.calibrate import calibrate
from qpass.runtime.engines import get_engine

pytestmark = pytest.mark.filterwarnings("ignore::qpass.runtime.feed.ShapeWarning")

SHARE = 0.2
"""How far outputs of oneDNN may be from the executor's, as a share of what quantizing the layer changes (L2): a last
bit of difference before a rounding can move a value by a whole step. Largest seen: 0.06."""
LEAST = 1e-4
"""Layers that change outputs by less than this (relative, L2) have no share: float32 itself moves them by 1e-6."""

Outputs = Mapping[str, list[np.ndarray]]


class Case(NamedTuple):
    """A model, its scales, its batches, and the outputs of whole variants on the executor: by layer, and both ends."""

    model: Model
    table: ScaleTable
    batches: list[np.ndarray]
    whole: Outputs


@pytest.fixture(
    scope="module",
    params=[("resnet8_cifar10", 8, 32, 32), ("ppocr_cls", 2, 24, 48), ("mobilenetv3_small_x0_35", 2, 48, 48)],
    ids=lambda param: param[0],
)
def case(request: pytest.FixtureRequest) -> Case:
    name, count, height, width = request.param
    model = load(corpus(f"models/{name}"))
    batches = noise((count, 3, height, width), (1, 3, height, width))
    table = calibrate(model, batches, engine="executor")
    names = [layer.name for layer in find_layers(model)]
    whole = {name: run(quantized(model, table, [name]), batches) for name in names}
    ends = {"all": run(quantized(model, table, names), batches), "none": run(model, batches)}
    return Case(model, table, batches, {**whole, **ends})


@pytest.fixture(autouse=True)
def only_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sweep here may go back to whole models."""
    monkeypatch.delattr(Plan, "_measure_whole")


def noise(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def quantized(model: Model, table: ScaleTable, layers: Sequence[str]) -> Model:
    return FoldQuant(to="float")(InsertQuant(scales=table, layers=tuple(layers))(model))


def run(model: Model, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs on the executor, whole."""
    session = get_engine("executor").session(model)
    return [output for batch in batches for output in session.run({model.feeds[0].name: batch})]


def metrics(result: AnalysisResult) -> dict[str, float]:
    assert result.reference is not None
    return {**{row.layer: row.metric for row in result.rows}, "all": result.reference, "none": result.baseline}


def accuracy(outputs: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> float:
    """The share of right answers."""
    right = [output.argmax(1) == label for output, label in zip(outputs, labels, strict=True)]
    return float(np.concatenate(right).mean())


def wrong_at_the_first(labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    first = np.array(labels[0])
    first[0] = 1 - first[0] % 2
    return [first, *labels[1:]]


def distance(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """L2 distance relative to `b`."""
    return float(np.sqrt(sum(((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)) / sum((y**2).sum() for y in b)))


def test_ptq_on_the_executor_is_the_plain_evaluation_bit_for_bit(case: Case) -> None:
    projection = Projection(case.batches)
    result = analyze_ptq(case.model, case.table, evaluate=projection, engine="executor")
    plain = {key: projection.of(outputs) for key, outputs in case.whole.items()}
    assert metrics(result) == plain
    assert len(set(plain.values())) > 0.8 * len(plain)  # some layers of mobilenetv3 change nothing here


def test_ptq_on_onednn_has_the_accuracy_of_the_plain_evaluation_and_nearly_its_outputs(case: Case) -> None:
    projection = Projection(case.batches)
    found = metrics(analyze_ptq(case.model, case.table, evaluate=projection))
    assert distance(projection.outputs[found["none"]], case.whole["none"]) < 1e-5
    shares = []
    for layer in sorted(found.keys() - {"all", "none"}):
        whole, made = case.whole[layer], projection.outputs[found[layer]]
        effect = distance(case.whole["none"], whole)
        if effect > LEAST:
            shares.append(distance(made, whole) / effect)
        else:
            assert distance(made, whole) < LEAST
    assert shares
    assert max(shares) < SHARE
    labels = wrong_at_the_first([output.argmax(1) for output in case.whole["none"]])
    for key in found.keys() - {"all"}:  # there one-ulp differences add up, as in the QAT mode
        assert accuracy(projection.outputs[found[key]], labels) == accuracy(case.whole[key], labels)


@pytest.mark.parametrize(
    ("name", "restore", "every"), [("ppocr_cls", "float", 3), ("digits", "float", 1), ("digits", "self", 1)]
)
def test_qat_on_the_executor_is_the_plain_evaluation_bit_for_bit(name: str, restore: str, every: int) -> None:
    if name == "digits":
        model, twin = load(demo.qat_prefix()), load(demo.float_prefix())
        batches = demo.calibration_data()[:1]
    else:
        model, twin = load(corpus("models/ppocr_cls_qat")), load(corpus("models/ppocr_cls"))
        batches = noise((2, 3, 24, 48))
    weights = dict(zip(names_of(model), names_of(twin), strict=True))

    def without(name: str) -> Model:
        with edit(StripQuant(layers=(name,))(model)) as e:
            if restore == "float":
                e.set_param(name, twin.params[weights[name]])
        return FoldQuant(to="float")(e.model)

    whole = {name: run(without(name), batches) for name in names_of(model)[::every]}
    whole |= {"none": run(FoldQuant(to="float")(model), batches), "all": run(twin, batches)}
    projection = Projection(batches)
    result = analyze_qat(model, twin, evaluate=projection, engine="executor", restore=restore)
    plain = {key: projection.of(outputs) for key, outputs in whole.items()}
    assert plain.items() <= metrics(result).items()
    assert len(set(plain.values())) > 0.8 * len(plain)


def names_of(model: Model) -> list[str]:
    return [layer.name for layer in find_layers(model)]
