"""FoldBias changes nothing of what is computed, and lets the engine fuse the bias into the convolution."""

from __future__ import annotations

import numpy as np
import pytest
from support.build import Builder
from support.corpus import corpus
from support.infer import infer
from support.onednn import calibrated

import qpass
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import FoldBias
from qpass.runtime.onednn_plan import onednn_plan


def biased(shape: tuple[int, ...]) -> Model:
    b = Builder().feed("x", [-1, 3, 8, 8])
    for i in range(2):
        b.conv2d(4)
        out, bias = b.current, b.param(f"conv2d_{i}.b_0", (4,))
        b.declare(f"bias_{i}.xshape", (0, 4)).declare(f"bias_{i}", (1, 4, 1, 1))
        b.op("reshape2", {"X": bias}, {"Out": f"bias_{i}", "XShape": f"bias_{i}.xshape"}, {"shape": Attr.ints(shape)})
        b.declare(f"sum_{i}", b.shape(out))
        b.op("elementwise_add", {"X": out, "Y": f"bias_{i}"}, {"Out": f"sum_{i}"}, {"axis": Attr.int(-1)}).relu()
    return b.model()


@pytest.mark.parametrize("shape", [(1, -1, 1, 1), (1, 4, 1, 1)])
def test_outputs_are_equal_bit_for_bit(shape: tuple[int, ...]) -> None:
    model = biased(shape)
    made = FoldBias()(model)
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    assert "reshape2" not in {op.type for op in made.graph.ops}
    np.testing.assert_array_equal(infer(made, x)[0], infer(model, x)[0])


def test_a_real_exporter_s_biases() -> None:
    model = qpass.load(corpus("models/resnet8_cifar10"))
    made = FoldBias()(model)
    gone = [sum(op.type == "reshape2" for op in each.graph.ops) for each in (model, made)]
    assert gone == [9, 0]
    x = {"image": np.random.default_rng(0).uniform(0, 255, (2, 3, 32, 32)).astype(np.float32)}
    np.testing.assert_array_equal(infer(made, x)[0], infer(model, x)[0])


def test_the_engine_fuses_folded_biases() -> None:
    kinds = {fold: [op.type for op in onednn_plan(calibrated(net)).ops] for fold, net in both().items()}
    assert kinds["folded"] == ["fused_conv2d", "fused_conv2d"]
    assert len(kinds["reshaped"]) > 2


def both() -> dict[str, Model]:
    model = biased((1, -1, 1, 1))
    return {"reshaped": model, "folded": FoldBias()(model)}
