"""`quant_post_static`: PaddleSlim's arguments, files beside the framework's own, every form of data, every engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpus import corpus, golden
from support.paddle_quantizers import post_training

from qpass import demo, get_engine, load, quant_post_static, to_bytes
from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.site import Role, Storage
from qpass.quant.skip import check_skipped

IMAGES = demo.test_data()[0][:64]


def resnet8_batches(count: int) -> list[np.ndarray]:
    with np.load(golden("resnet8_calibration.npz")) as data:
        return [data["x"][i : i + 32].astype(np.float32) for i in range(0, 32 * count, 32)]


def activations(model: Model, *, observers: bool) -> dict[str, float]:
    """Thresholds that a file holds, by value."""
    return {
        site.value.name: float(site.threshold)
        for site in find_sites(model)
        if site.role is Role.ACTIVATION and (observers or not site.observer_only)
    }


def out_thresholds(model: Model) -> dict[str, object]:
    """Thresholds that ops hold as attributes, by the value that they are of."""
    return {
        next(name for _, _, name in op.writes()).split(".quantized")[0]: op.attr("out_threshold")
        for op in model.graph.ops
        if "out_threshold" in op.attrs
    }


def run(model: Model, engine: str, x: np.ndarray) -> np.ndarray:
    return get_engine(engine).session(model).run({model.feeds[0].name: x})[0]


@pytest.mark.parametrize("algo", ["avg", "mse"])
@pytest.mark.parametrize("onnx_format", [True, False])
def test_compat_writes_the_scales_and_integers_of_the_framework(algo: str, onnx_format: bool, tmp_path: Path) -> None:
    folder = corpus("models/resnet8_cifar10")
    batches = [x[:4] for x in resnet8_batches(2)]
    common: dict[str, Any] = {
        "algo": algo,
        "onnx_format": onnx_format,
        "quantizable_op_type": ["conv2d", "depthwise_conv2d", "mul", "matmul_v2"],
        "weight_quantize_type": "channel_wise_abs_max",
    }
    theirs = load(post_training(folder, "image", batches, tmp_path / "theirs", **common))
    quant_post_static(
        None, folder, tmp_path / "ours", data_loader=batches, compat="paddle", engine="executor", **common
    )
    ours = load(tmp_path / "ours")
    expected, found = activations(theirs, observers=True), activations(ours, observers=True)
    assert len(found) == (18 if onnx_format else 8)
    assert found == {name: expected[name] for name in found}
    if not onnx_format:
        outputs, known = out_thresholds(ours), out_thresholds(theirs)
        assert len(outputs) == 10
        assert outputs == {name: known[name] for name in outputs}
    weights = {site.value.name: site for site in find_sites(ours) if site.role is Role.WEIGHT}
    assert len(weights) == 10
    off: dict[str, np.ndarray] = {}
    for name, site in weights.items():
        assert ours.params[name].dtype == theirs.params[name].dtype == (np.int8 if onnx_format else np.float32)
        off[name] = np.abs(ours.params[name].astype(int) - theirs.params[name].astype(int))
        assert site.storage is (Storage.INT if onnx_format else Storage.INT_AS_FLOAT)
    # The framework quantizes weights by x / s * 127, its own kernels (and this library) by 127 / s * x: where the last
    # bit of that decides a tie, they differ by one level. Seen: in one number of all ten layers.
    assert sum(int(each.sum()) for each in off.values()) <= 1


@pytest.mark.parametrize(("algo", "onnx_format"), [("KL", True), ("hist", False)])
def test_scales_of_searches_are_the_goldens(algo: str, onnx_format: bool, tmp_path: Path) -> None:
    expected = json.loads(golden(f"resnet8_scales/{algo}_{'onnx' if onnx_format else 'old'}.json").read_text())
    quant_post_static(
        None,
        corpus("models/resnet8_cifar10"),
        tmp_path,
        batch_generator=lambda: ([x] for x in resnet8_batches(10)),
        algo=algo,
        hist_percent=0.99999,
        onnx_format=onnx_format,
        compat="paddle",
    )
    found = activations(load(tmp_path), observers=True)
    # The goldens were measured on another machine: the last bits of activations differ.
    assert found == pytest.approx({name: expected["activation_threshold"][name] for name in found}, rel=1e-5)


def loader() -> Any:
    import paddle

    class Digits(paddle.io.Dataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return IMAGES[index], 0

        def __len__(self) -> int:
            return 64

    return paddle.io.DataLoader(Digits(), batch_size=16, places=paddle.CPUPlace())


def batches() -> Iterator[list[np.ndarray]]:
    return ([IMAGES[i : i + 16]] for i in range(0, 64, 16))


FEED = load(demo.float_prefix()).feeds[0].name
FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "batch generator": lambda: {"batch_generator": batches},
    "batch generator of dicts": lambda: {"batch_generator": lambda: ({FEED: b[0]} for b in batches())},
    "iterator, read once": lambda: {"batch_generator": batches()},
    "sample generator": lambda: {"sample_generator": lambda: ((x, 3) for x in IMAGES), "batch_size": 16},
    "bare samples": lambda: {"sample_generator": lambda: iter(IMAGES), "batch_size": 16},
    "dict samples": lambda: {"sample_generator": lambda: ({FEED: x} for x in IMAGES), "batch_size": 16},
    "list": lambda: {"data_loader": list(batches())},
    "DataLoader": lambda: {"data_loader": loader()},
    "first batches": lambda: {"data_loader": [*batches(), [IMAGES[:16] * 9]], "batch_nums": 4},
    "samples that do not fill a batch": lambda: {
        "sample_generator": lambda: [*IMAGES, IMAGES[0] * 9],
        "batch_size": 16,
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_scales(form: str, tmp_path: Path) -> None:
    made = quant_post_static(None, demo.float_prefix(), tmp_path, algo="avg", **FORMS[form]())
    largest = np.abs(IMAGES).reshape(4, 16, -1).max(axis=2)
    assert made.scales.activations[FEED] == pytest.approx(largest.mean(), rel=1e-6)
    assert made.scales.samples == 64


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"onnx_format": False},
        {"is_full_quantize": True},
        {"is_full_quantize": True, "onnx_format": False},
        {"target": "onednn"},
        {"deploy_backend": "MKLDNN", "is_full_quantize": True},
        {"target": "lite"},
        {"optimize_model": True, "compat": "paddle"},
        {"equalize": True, "round_type": "adaround", "bias_correction": True, "algo": "mse"},
        {"bias_correction": "paddle", "onnx_format": False},
        {"activation_quantize_type": "moving_average_abs_max", "weight_quantize_type": "abs_max"},
        {"save_model_filename": None, "skip_tensor_list": ["linear_1.w_0"]},
    ],
    ids=str,
)
def test_files_run_in_every_engine(options: dict[str, Any], tmp_path: Path) -> None:
    made = quant_post_static(None, demo.float_prefix(), tmp_path / "int8", data_loader=list(batches()), **options)
    assert {file.name for file in (tmp_path / "int8").iterdir()} == {"model.pdmodel", "model.pdiparams"}
    saved, plain = load(tmp_path / "int8"), load(demo.float_prefix())
    assert to_bytes(saved) == to_bytes(made.model)
    float_answer = run(plain, "inference", IMAGES).argmax(axis=1)
    for engine in ("executor", "inference", "int8"):
        # One layer of this net was made to suffer from int8. Seen: 58 of 64 with everything quantized, 59 to 64 else.
        assert (run(saved, engine, IMAGES).argmax(axis=1) == float_answer).sum() >= 56, engine


def test_a_skip_list_keeps_ops_in_float_by_name_and_by_expression(tmp_path: Path) -> None:
    made = quant_post_static(
        None,
        demo.float_prefix(),
        tmp_path,
        data_loader=list(batches()),
        is_full_quantize=True,
        compat="paddle",
        skip_tensor_list=["conv2d_1.w_0", r"linear_\d+\.w_0"],
    )
    assert {row.mention.name for row in made.skipped} >= {"conv2d_1.w_0", "linear_0.w_0", "linear_1.w_0"}
    assert not {"conv2d_1.w_0", "linear_0.w_0", "linear_1.w_0"} & set(made.layers)
    check_skipped(load(tmp_path), made.skipped)


def test_bits_may_differ_by_role_and_by_layer(tmp_path: Path) -> None:
    made = quant_post_static(
        None,
        demo.float_prefix(),
        tmp_path,
        data_loader=list(batches()),
        weight_bits=4,
        activation_bits=16,
        algo="abs_max",
        overrides=["conv2d_0.w_0:w12a8"],
    )
    sites = find_sites(load(tmp_path))
    weights = {site.value.name: site for site in sites if site.role is Role.WEIGHT}
    assert {name: site.spec.bits for name, site in weights.items()} == {
        name: 12 if name == "conv2d_0.w_0" else 4 for name in made.layers
    }
    assert weights["conv2d_0.w_0"].storage is Storage.FLOAT
    assert weights["conv2d_1.w_0"].storage is Storage.INT
    bits = {site.value.name: site.spec.bits for site in sites if site.role is Role.ACTIVATION}
    assert bits.pop(FEED) == 8
    assert set(bits.values()) == {16}


def test_optimize_model_folds_batch_norms_as_the_framework_does(tmp_path: Path) -> None:
    assert any(op.type == "batch_norm" for op in load(demo.float_prefix()).graph.ops)
    quant_post_static(None, demo.float_prefix(), tmp_path, data_loader=list(batches()), optimize_model=True)
    assert not any(op.type == "batch_norm" for op in load(tmp_path).graph.ops)


def test_quantizing_again_needs_no_data(tmp_path: Path) -> None:
    first = quant_post_static(None, demo.float_prefix(), tmp_path / "a", data_loader=list(batches()), algo="mse")
    first.scales.save(tmp_path / "scales.json")
    quant_post_static(None, demo.float_prefix(), tmp_path / "b", scales=tmp_path / "scales.json")
    for name in ("model.pdmodel", "model.pdiparams"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
