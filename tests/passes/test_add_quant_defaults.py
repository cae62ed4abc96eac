"""AddQuantDefaults: Paddle 3 translates old quantized programs after it, and not before; the numbers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.build import Builder
from support.corpus import corpus
from support.infer import infer
from support.quantized import written_by_paddle

from qpass.formats.files import load, save, to_bytes
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import AddQuantDefaults
from qpass.runtime.paddle_env import legacy_static

OLD = {"ppocr_cls_qat": (2, 3, 48, 192), "ppocr_det_v3_qat": (1, 3, 64, 64)}


def translated(model: Model) -> object:
    """The PIR program that Paddle itself makes of a model's program."""
    with legacy_static() as paddle:
        program = paddle.static.Program.parse_from_string(to_bytes(model)[0])
    return paddle.pir.translate_to_pir(program.desc)


def has_pir() -> bool:
    import paddle

    return hasattr(paddle.pir_utils, "OldIrGuard") if hasattr(paddle, "pir_utils") else False


@pytest.mark.parametrize("name", OLD)
def test_paddle_translates_old_qat_models(name: str) -> None:
    if not has_pir():
        pytest.skip("this Paddle does not translate programs to PIR by default")
    model = load(corpus(f"models/{name}"))
    with pytest.raises(ValueError, match="round_type"):
        translated(model)
    text = str(translated(AddQuantDefaults()(model)))
    assert text.count("fake_quantize_dequantize_moving_average_abs_max") == sum(
        op.type == "fake_quantize_dequantize_moving_average_abs_max" for op in model.graph.ops
    )


def test_the_translated_program_computes_the_same(tmp_path: Path) -> None:
    if not has_pir():
        pytest.skip("this Paddle does not translate programs to PIR by default")
    model = AddQuantDefaults()(load(corpus("models/ppocr_cls_qat")))
    save(model, tmp_path / "old")
    x = {"x": np.random.default_rng(0).standard_normal(OLD["ppocr_cls_qat"]).astype(np.float32)}
    np.testing.assert_array_equal(run_translated(tmp_path, x["x"]), infer(model, x)[0])


def run_translated(folder: Path, x: np.ndarray) -> np.ndarray:
    """Output of what Paddle makes of ``old.pdmodel``: translated, saved as a PIR file, loaded and run."""
    import paddle
    from paddle import inference

    executor = paddle.static.Executor(paddle.CPUPlace())
    with paddle.static.scope_guard(paddle.static.Scope()):
        with legacy_static():
            program = paddle.static.load_inference_model(str(folder / "old"), executor)[0]
        made = paddle.pir.translate_to_pir(program.desc)
        ops = made.global_block().ops
        feeds = [op.result(0) for op in ops if op.name() == "pd_op.data"]
        fetches = [op.operand_source(0) for op in ops if op.name() == "pd_op.fetch"]
        paddle.enable_static()
        try:
            paddle.static.save_inference_model(str(folder / "new"), feeds, fetches, executor, program=made)
        finally:
            paddle.disable_static()
    config = inference.Config(str(folder / "new.json"), str(folder / "new.pdiparams"))
    config.disable_glog_info()
    config.disable_mkldnn()
    config.switch_ir_optim(False)
    predictor = inference.create_predictor(config)
    predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(x)
    predictor.run()
    return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


@pytest.mark.parametrize(("name", "shape"), OLD.items())
def test_outputs_stay_bit_for_bit(name: str, shape: tuple[int, ...]) -> None:
    model = load(corpus(f"models/{name}"))
    made = AddQuantDefaults()(model)
    x = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    np.testing.assert_array_equal(infer(made, x)[0], infer(model, x)[0])
    # The other rounding is not the default: it would show.
    ops = tuple(op.with_attrs(round_type=Attr.int(0)) if "round_type" in op.attrs else op for op in made.graph.ops)
    other = made.replaced(graph=type(made.graph)(ops, made.graph.decls, extra=made.graph.extra))
    assert not np.array_equal(infer(other, x)[0], infer(model, x)[0])
    assert AddQuantDefaults()(made) is made


@pytest.mark.parametrize("default", [0, 1])
def test_defaults_are_those_of_the_kernels(default: int) -> None:
    """Half-way points through each op, once without the attribute and once with what the pass adds."""
    kind = ("quantize_linear", "fake_quantize_moving_average_abs_max")[default]
    b = Builder().feed("x", [9])
    b.param("s", np.array([127.0], np.float32))
    b.param("z", np.zeros(1, np.int32))
    b.declare("y", [9])
    attrs = {"bit_length": Attr.int(8), "is_test": Attr.bool(True), "quant_axis": Attr.int(-1)}
    if kind == "quantize_linear":
        b.op(kind, {"X": "x", "Scale": "s", "ZeroPoint": "z"}, {"Y": "y"}, attrs)
    else:
        b.op(kind, {"X": "x", "InScale": "s"}, {"Out": "y", "OutScale": "s"}, attrs)
    model = b.model()
    made = AddQuantDefaults()(model)
    assert [op.attr("round_type") for op in made.graph.ops if op.type == kind] == [default]
    x = {"x": np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -127.5, 200], np.float32)}
    np.testing.assert_array_equal(infer(made, x)[0], infer(model, x)[0])


def test_files_that_say_it_stay() -> None:
    model = written_by_paddle("c")
    assert AddQuantDefaults()(model) is model
