"""Which ops oneDNN's int8 engine quantizes: what `quantized_ops` says against the engine's own log; marks obeyed."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter

import numpy as np
import pytest
from support.build import Builder
from support.corpus import corpus
from support.faults import FAULTS, float_net, transposed
from support.quantized import quantized

from qpass.formats.files import load, to_bytes
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.mend import mend
from qpass.passes import FoldQuant, MarkSkipQuant
from qpass.quant.onednn_placement import quantized_ops, unsimulated
from qpass.rewrite.edit import edit

_AFTER_FUSION = {
    "conv2d": "conv",
    "depthwise_conv2d": "conv",
    "fused_conv2d": "conv",
    "mul": "fc",
    "matmul": "fc",
    "matmul_v2": "fc",
}


def engine(model: Model, shape: tuple[int, ...]) -> Counter[str]:
    """Numbers of ops that the engine says it quantized, by kind."""
    from paddle import inference

    program, params = to_bytes(model)
    config = inference.Config()
    config.set_model_buffer(program, len(program), params, len(params))
    config.enable_mkldnn()
    config.enable_mkldnn_int8()
    config.set_cpu_math_library_num_threads(1)
    with tempfile.TemporaryFile() as log:
        saved = os.dup(1), os.dup(2)
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            predictor = inference.create_predictor(config)
        finally:
            for fd, old in zip((1, 2), saved, strict=True):
                os.dup2(old, fd)
                os.close(old)
        log.seek(0)
        text = log.read().decode(errors="replace")
    feed = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(feed)
    predictor.run()
    counts: Counter[str] = Counter()
    for number, kind in re.findall(r"quantized (\d+) (\w+) ops", text):
        counts[_AFTER_FUSION.get(kind, kind)] += int(number)
    return +counts


def predicted(model: Model) -> Counter[str]:
    """The same by `quantized_ops`; a sum that is fused into its convolution is not counted by the engine."""
    kinds = Counter(_AFTER_FUSION.get(op.type, op.type) for op in quantized_ops(model))
    del kinds["elementwise_add"]
    return kinds


def tail(*, scaled: bool) -> Model:
    """A float product with a bias behind pool and reshape of a quantized convolution."""
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(8).relu().conv2d(8).relu().pool2d("avg", whole=True)
    source = b.current
    b.declare("flat.shape", (0, *b.shape(source))).declare("flat", (-1, 8))
    b.op("reshape2", {"X": source}, {"Out": "flat", "XShape": "flat.shape"}, {"shape": Attr.ints((-1, 8))})
    model = b.matmul(6).add(b.param("fc.b_0", (6,))).model()
    model = FoldQuant()(quantized(model, skip=("linear_0.w_0",)))
    with edit(model) as e:
        if scaled:
            e.set_attr([op for op in model.graph.ops if op.type == "relu"][-1], "out_threshold", Attr.float(6.0))
    return e.model


def test_scales_spread_to_pools_reshapes_and_products() -> None:
    assert engine(tail(scaled=False), (2, 3, 8, 8)) == predicted(tail(scaled=False)) == {"conv": 2}
    everything = {"conv": 2, "pool2d": 1, "reshape2": 1, "fc": 1}
    assert engine(tail(scaled=True), (2, 3, 8, 8)) == predicted(tail(scaled=True)) == everything


def sums(*, scaled: bool, behind: bool = False) -> Model:
    """A sum that becomes part of a convolution, and perhaps a quantized convolution behind its relu."""
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).relu()
    h = b.current
    b.conv2d(4).relu().conv2d(4).add(h).relu()
    model = FoldQuant()(quantized((b.conv2d(4) if behind else b.pool2d("avg", whole=True)).model()))
    with edit(model) as e:
        if scaled:
            e.set_attr([op for op in model.graph.ops if op.type == "relu"][-1], "out_threshold", Attr.float(6.0))
    return e.model


@pytest.mark.parametrize(
    ("scaled", "behind", "counts", "spared"),
    [
        (False, False, {"conv": 2}, {"conv": 2}),
        (True, False, {"conv": 3, "pool2d": 1}, {"conv": 3}),
        (False, True, {"conv": 4}, {"conv": 4}),
    ],
)
def test_a_residual_sum_needs_the_scale_of_what_comes_out(
    scaled: bool, behind: bool, counts: dict[str, int], spared: dict[str, int]
) -> None:
    model = sums(scaled=scaled, behind=behind)
    assert engine(model, (2, 3, 8, 8)) == predicted(model) == counts
    assert ("elementwise_add" in {op.type for op in unsimulated(model)}) is (scaled or behind)
    marked = MarkSkipQuant()(model)
    assert engine(marked, (2, 3, 8, 8)) == predicted(marked) == spared


def test_a_float_convolution_is_spared_without_a_mark() -> None:
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).relu().conv2d(4)
    model = FoldQuant()(quantized(b.model(), skip=("conv2d_1.w_0",)))
    with edit(model) as e:
        e.set_attr(next(op for op in model.graph.ops if op.type == "relu"), "out_threshold", Attr.float(6.0))
    assert engine(e.model, (2, 3, 8, 8)) == predicted(e.model) == {"conv": 1}


def test_a_convolution_does_not_take_in_a_sum_with_its_own_input() -> None:
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).relu()
    h = b.current
    model = FoldQuant()(quantized(b.conv2d(4).add(h).relu().model()))
    assert engine(model, (2, 3, 8, 8)) == predicted(model) == {"conv": 2}


def test_marks_keep_the_engine_to_what_was_simulated() -> None:
    model = tail(scaled=True)
    assert {op.type for op in unsimulated(model)} == {"pool2d", "reshape2", "matmul_v2"}
    marked = MarkSkipQuant()(model)
    assert unsimulated(marked) == ()
    assert engine(marked, (2, 3, 8, 8)) == predicted(marked) == {"conv": 2}
    assert MarkSkipQuant()(marked) is marked


def test_the_published_twin_is_held_to_its_convolutions_and_its_product() -> None:
    model = load(corpus("models/ppocr_cls_qat/inference.pdmodel"))
    shape = (1, 3, 48, 192)
    assert engine(model, shape) + Counter(reshape2=1) == predicted(model)  # fused into the product behind it
    mended, _ = mend(model, "onednn")
    assert engine(mended, shape)["pool2d"] == 0
    assert engine(mended, shape)["conv"] == 53


def test_a_boolean_mark_kills_the_engine_and_an_integer_does_not() -> None:
    model = FAULTS["boolean-skip-mark"][0].plant()
    with pytest.raises(ValueError, match="its type is bool"):
        engine(model, (1, 3, 8, 8))
    assert engine(mend(model, "onednn")[0], (1, 3, 8, 8))["conv"] == 2


def test_integers_of_a_transposed_convolution_kill_the_engine() -> None:
    with pytest.raises(ValueError, match="int8"):
        engine(transposed(), (1, 3, 8, 8))
    mended, _ = mend(transposed(), "onednn")
    assert engine(mended, (1, 3, 8, 8)) == {}


def test_four_bits_kill_the_engine() -> None:
    with pytest.raises(ValueError, match="only 8 is supported"):
        engine(quantized(float_net(), activation_bits=4), (1, 3, 8, 8))


def test_an_infinite_scale_kills_the_engine_and_a_zero_one_leaves_the_op_in_float() -> None:
    _, infinite, _ = (fault.plant() for fault in FAULTS["nan-scale"])
    with pytest.raises((RuntimeError, ValueError), match="must be different than"):
        engine(infinite, (1, 3, 8, 8))
    assert engine(FAULTS["zero-scale"][0].plant(), (1, 3, 8, 8))["conv"] == 1
