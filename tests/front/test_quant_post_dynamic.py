"""`quant_post_dynamic` and the pass behind it: what the framework's `WeightQuantization` writes, its faults aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.build import Builder
from support.corpus import corpus
from support.infer import infer
from support.paddle_quantizers import weights_alone

from qpass import demo, load, quant_post_dynamic, save, to_bytes
from qpass.errors import QPassError, QuantError, UsageError
from qpass.ir.dtype import DType
from qpass.ir.model import Model
from qpass.ir.op import AttrKind, Op
from qpass.ir.schema import OPERANDS
from qpass.passes import QuantizeWeights
from qpass.runtime.paddle_env import import_paddle

MARKS = ("quantization_type", "quantize_weight_bits", "with_quant_attr")


def marks(op: Op) -> dict[str, object]:
    # An op that nothing was said of says False, or nothing: the framework's file leaves it out.
    return {name: op.attr(name) for name in op.attrs if name in MARKS and op.attr(name) is not False}


def scales(op: Op) -> dict[str, Any]:
    return {name: attr for name, attr in op.attrs.items() if name.endswith("_quant_scale")}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["channel_wise_abs_max", "abs_max"])
def test_files_are_those_of_the_framework(kind: str, bits: int, tmp_path: Path) -> None:
    folder = corpus("models/ppocr_cls")
    options: dict[str, Any] = {"weight_bits": bits, "weight_quantize_type": kind}
    types = ["conv2d", "depthwise_conv2d", "mul"]
    theirs = weights_alone(folder, tmp_path / "theirs", quantizable_op_type=types, **options)
    files = quant_post_dynamic(
        folder, tmp_path / "ours", quantizable_op_type=types, generate_test_model=True, **options
    )
    assert [str(file.relative_to(tmp_path / "ours")) for file in files] == [
        "quantized_model/model.pdmodel",
        "quantized_model/model.pdiparams",
        "test_model/model.pdmodel",
        "test_model/model.pdiparams",
    ]
    for prefix, ours in zip(theirs, (load(files[0]), load(files[2])), strict=True):
        expected = load(prefix)
        _same_arrays(ours, expected)
        _same_marks(ours, expected)


def _same_arrays(ours: Model, expected: Model) -> None:
    assert set(ours.params) == set(expected.params)
    for name, array in expected.params.items():
        assert ours.params[name].dtype == array.dtype
        if array.dtype == np.float32:
            # Under numpy 1 the framework dequantizes at scales in float64: a last bit.
            np.testing.assert_array_max_ulp(ours.params[name], np.asarray(array), 1)
        else:
            assert np.array_equal(ours.params[name], array), name


def _same_marks(ours: Model, expected: Model) -> None:
    count = 0
    mine, other = _weighted(ours), _weighted(expected)
    assert {name: marks(op) for name, op in mine.items()} == {name: marks(op) for name, op in other.items()}
    for output, op in mine.items():
        said = scales(other[output])
        assert scales(op).keys() == said.keys()
        for name, attr in scales(op).items():
            count += 1
            assert attr.kind is AttrKind.FLOATS
            if said[name].kind is AttrKind.INTS:  # Paddle 3 with numpy 2 stores whole numbers: zeros
                assert int(import_paddle().__version__.split(".")[0]) >= 3
                assert set(said[name].value) == {0}
            else:
                assert attr.value == said[name].value
    assert count == 53  # the classifier is a matmul_v2, which the framework cannot


def _weighted(model: Model) -> dict[str, Op]:
    """Ops with weights by their main output; 2.6 adds ops of other kinds when it saves."""
    return {next(op.writes())[2]: op for op in model.graph.ops if op.type in OPERANDS}


def test_the_test_model_computes_what_the_integers_stand_for(tmp_path: Path) -> None:
    types = ("conv2d", "depthwise_conv2d", "matmul_v2")
    files = quant_post_dynamic(demo.float_prefix(), tmp_path, quantizable_op_type=types, generate_test_model=True)
    stored, test = load(files[0]), load(files[2])
    for op in stored.graph.ops:
        for name, attr in scales(op).items():
            weight = name.removesuffix("_quant_scale")
            axis = 1 if op.type == "matmul_v2" else 0
            shape = [-1 if i == axis else 1 for i in range(stored.params[weight].ndim)]
            floats = stored.params[weight] * np.array(attr.value, np.float32).reshape(shape)
            assert np.array_equal(test.params[weight], floats)
            step = np.abs(load(demo.float_prefix()).params[weight] - floats) / np.array(attr.value).reshape(shape)
            assert step.max() <= 0.5 + 1e-5
    x = demo.test_data()[0][:32]
    feed = load(demo.float_prefix()).feeds[0].name
    plain, made = (infer(model, {feed: x})[0] for model in (load(demo.float_prefix()), test))
    assert (plain.argmax(axis=1) == made.argmax(axis=1)).mean() > 0.9


def lookup() -> Model:
    """Rows of a table, then a product with another weight."""
    b = Builder().feed("ids", [-1], DType.INT64)
    table = b.param("table", [7, 4])
    b.declare("rows", [-1, 4]).op("lookup_table_v2", {"W": table, "Ids": "ids"}, {"Out": "rows"})
    return b.at("rows").matmul(3).model()


def test_lookups_have_a_scale_a_column(tmp_path: Path) -> None:
    save(lookup(), tmp_path / "float" / "inference")
    files = quant_post_dynamic(
        tmp_path / "float", tmp_path / "int", quantizable_op_type=["lookup_table_v2"], generate_test_model=True
    )
    stored, test, plain = load(files[0]), load(files[2]), lookup()
    assert [name for name, array in stored.params.items() if array.dtype == np.int8] == ["table"]
    op = next(op for op in stored.graph.ops if op.type == "lookup_table_v2")
    largest = np.abs(plain.params["table"]).max(axis=0)
    assert op.attr("table_quant_scale") == tuple(float(v) for v in largest / np.float32(127))
    ids = np.arange(5, dtype=np.int64)
    found, expected = (infer(model, {"ids": ids})[0] for model in (test, plain))
    bound = (largest / 254) @ np.abs(next(array for name, array in plain.params.items() if name != "table"))
    assert (np.abs(found - expected) <= bound + 1e-5).all()


def test_a_weight_of_two_ops_is_quantized_once() -> None:
    b = Builder().feed("x", [-1, 4])
    b.param("shared", [4, 4])
    b.mul(4, weight="shared").relu().mul(4, weight="shared")
    model = b.model()
    made = QuantizeWeights(op_types=("mul",))(model)
    assert np.abs(made.params["shared"]).max() == 127
    assert [len(scales(op)) for op in made.graph.ops if op.type == "mul"] == [1, 1]
    assert QuantizeWeights(op_types=("mul",))(made) is made


def test_a_weight_that_another_op_reads_is_refused() -> None:
    b = Builder().feed("x", [-1, 4])
    b.param("shared", [4, 4])
    model = b.mul(4, weight="shared").matmul(4, weight="shared").model()
    with pytest.raises(QuantError, match="matmul_v2 reads the weight 'shared' too") as caught:
        QuantizeWeights(op_types=("mul",))(model)
    assert "name matmul_v2 among the op types" in str(caught.value)
    assert QuantizeWeights(op_types=("mul", "matmul_v2"))(model).params["shared"].dtype == np.int8


def test_channels_of_zeros_stay_zero() -> None:
    b = Builder().feed("x", [-1, 4])
    weight = np.array([[1, 0], [2, 0], [-4, 0], [0, 0]], np.float32)
    b.param("w", weight)
    model = b.mul(2, weight="w").model()
    made = QuantizeWeights(op_types=("mul",))(model)
    assert made.params["w"].tolist() == [[32, 0], [64, 0], [-127, 0], [0, 0]]
    assert np.array_equal(QuantizeWeights(op_types=("mul",), simulate=True)(model).params["w"][:, 1], np.zeros(4))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"weight_bits": 4}, UsageError, "weight_bits is 4, expected 8 or 16"),
        ({"quantizable_op_type": ["conv3d"]}, UsageError, "op type 'conv3d' cannot"),
        ({"quantizable_op_type": "conv2d"}, UsageError, "expected a sequence of names"),
        ({"quantizable_op_type": ["mul"]}, UsageError, "no float weights of op types mul"),
        ({"weight_quantize_type": "mse"}, UsageError, "weight_quantize_type is 'mse'"),
        ({"model_dir": "no/such"}, QPassError, "no such file"),
        ({"model_dir": demo.qat_prefix()}, UsageError, "quantized already"),
    ],
)
def test_wrong_arguments_write_nothing(
    options: dict[str, Any], error: type[QPassError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        quant_post_dynamic(**{"model_dir": demo.float_prefix(), "save_model_dir": tmp_path / "out", **options})
    assert not list(tmp_path.iterdir())


def test_what_is_stored_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = QuantizeWeights(bits=16)(load(demo.float_prefix()))
    save(made, tmp_path / "m")
    assert to_bytes(load(tmp_path / "m")) == to_bytes(made)
