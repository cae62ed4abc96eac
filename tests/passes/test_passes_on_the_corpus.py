"""The passes on real models: what Paddle computes stays the same, within rounding."""

from __future__ import annotations

import numpy as np
import pytest
from support.corpus import PROGRAMS, corpus
from support.infer import infer

from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.passes import DropDebugInfo, DropIdentity, FoldBatchNorm, RemoveUnused
from qpass.rewrite.pipeline import run

ALL = (FoldBatchNorm(), DropIdentity(), RemoveUnused(), DropDebugInfo())
SHAPES = {
    "resnet8_cifar10": (4, 3, 32, 32),
    "ppocr_cls": (2, 3, 48, 192),
    "mobilenetv3_small_x0_35": (1, 3, 64, 64),
    "ppocr_det_v3": (1, 3, 64, 64),
}
# Folding rounds each weight once to float32 (2**-24 relative); measured here: 0.7e-6 to 3.9e-6 of the largest
# output, on Paddle 2.6.2 and 3.3.1.
TOLERANCE = 2e-5


def model_and_feed(name: str) -> tuple[Model, dict[str, np.ndarray]]:
    model = load(corpus(f"models/{name}/inference.pdmodel"))
    random = np.random.default_rng(0)
    data = random.uniform(0, 255, SHAPES[name]) if name.startswith("resnet8") else random.normal(size=SHAPES[name])
    return model, {model.feeds[0].name: data.astype(np.float32)}


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_stay(name: str) -> None:
    model, feed = model_and_feed(name)
    before = infer(model, feed)
    exact = run(model, ALL[1:])
    assert all(np.array_equal(a, b) for a, b in zip(before, infer(exact, feed), strict=True))
    folded = run(model, ALL)
    for a, b in zip(before, infer(folded, feed), strict=True):
        assert np.abs(a - b).max() <= TOLERANCE * np.abs(a).max()
    assert not any(op.type == "batch_norm" for op in folded.graph.ops)
    assert folded.feeds == model.feeds
    assert folded.fetches == model.fetches


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_second_run_changes_nothing(path: str) -> None:
    once = run(load(corpus(path), structure_only=True), ALL)
    assert run(once, ALL) is once


@pytest.mark.parametrize("path", PROGRAMS)
def test_no_batch_norm_behind_quantized_weights_is_folded(path: str) -> None:
    model = load(corpus(path), structure_only=True)
    quantizers = {op.output("Out")[0] for op in model.graph.ops if op.type.startswith("fake_") and op.output("Out")}
    kept = {op.output("Y") for op in run(model, FoldBatchNorm()).graph.ops if op.type == "batch_norm"}
    convs = {op.output("Output")[0] for op in model.graph.ops if set(op.input("Filter")) & quantizers}
    for op in model.graph.ops:
        if op.type == "batch_norm" and op.input("X")[0] in convs:
            assert op.output("Y") in kept


def test_debug_info_is_most_of_a_program() -> None:
    from qpass.formats import pdmodel

    model = load(corpus("models/ppocr_cls/inference.pdmodel"))
    made = DropDebugInfo()(model)
    before, after = (len(pdmodel.encode(m.blocks, m.extra)) for m in (model, made))
    assert before == 1_624_487
    assert after < 0.1 * before
    assert {"op_callstack", "op_role_var"}.isdisjoint(n for op in made.graph.ops for n in op.attrs)
    assert [(o.type, o.inputs, o.outputs) for o in made.graph.ops] == [
        (o.type, o.inputs, o.outputs) for o in model.graph.ops
    ]
