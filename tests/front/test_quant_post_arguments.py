"""Wrong arguments of `quant_post_static` and `ptq_config`: refused before any work, with nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qpass import AnalysisPTQ, ScaleTable, calibrate, demo, load, quant_post_static
from qpass.errors import DataError, FormatError, QPassError, QuantError, UsageError
from qpass.quant.encodings import find_sites
from qpass.quant.site import Role

BATCHES = [demo.test_data()[0][:16]]


def alone(x: np.ndarray) -> ScaleTable:
    """Scales for the layers of another model."""
    return ScaleTable({"image": 1.0, "elsewhere": 2.0}, {}, {})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"data_loader": None}, UsageError, "no data are given, expected one of batch_generator, sample_generator"),
        ({"batch_generator": BATCHES}, UsageError, "batch_generator and data_loader given"),
        ({"algo": "kl"}, UsageError, "unknown algo 'kl'"),
        ({"round_type": "floor"}, UsageError, "unknown round_type 'floor'"),
        ({"bias_correction": "yes"}, UsageError, "unknown bias_correction 'yes'"),
        ({"bias_correction": 1}, UsageError, "bias_correction is 1, expected True or False"),
        ({"weight_bits": 1}, UsageError, "weight_bits is 1, expected 2 to 16"),
        ({"activation_bits": 17}, UsageError, "activation_bits is 17, expected 2 to 16"),
        ({"hist_percent": 99.99}, UsageError, "a share, not a percentage"),
        ({"batch_nums": 0}, UsageError, "number of batches is 0"),
        ({"weight_quantize_type": "range_abs_max"}, UsageError, "unknown weight_algo 'range_abs_max'"),
        ({"activation_quantize_type": "abs_max"}, UsageError, "stores no scale"),
        ({"activation_quantize_type": "dynamic"}, UsageError, "expected 'moving_average_abs_max' or"),
        ({"quantizable_op_type": ["conv2", "mul"]}, UsageError, "nearest are conv2d"),
        ({"quantizable_op_type": ["pool2d"]}, UsageError, "names no op type with weights"),
        ({"quantizable_op_type": ["lookup_table_v2"]}, UsageError, "quant_post_dynamic"),
        ({"is_full_quantize": 1}, UsageError, "is_full_quantize is 1, expected True or False"),
        ({"skip_tensor_list": "conv2d_0.w_0"}, UsageError, "skip_tensor_list is 'conv2d_0.w_0', expected a sequence"),
        ({"skip_tensor_list": [1]}, UsageError, "skip_tensor_list is [1], expected a sequence of names"),
        ({"quantizable_op_type": 5}, UsageError, "quantizable_op_type is 5, expected a sequence of names"),
        ({"skip_tensor_list": ["conv2d_0.w_1"]}, QuantError, "nearest are conv2d_0.w_0"),
        ({"overrides": ["conv2d_0.w_0"]}, UsageError, "is no override of bits"),
        ({"overrides": ["nothing:w4"]}, QuantError, "'nothing' matches no"),
        ({"target": "onedn"}, UsageError, "did you mean 'onednn'"),
        ({"deploy_backend": "npu"}, UsageError, "deploy_backend is 'npu', expected 'tensorrt' or"),
        ({"deploy_backend": "arm", "target": "onednn"}, UsageError, "are two"),
        ({"target": "onednn", "weight_bits": 4}, UsageError, "onednn takes 8 bits"),
        ({"target": "onednn", "onnx_format": False}, UsageError, "does not go with target 'onednn'"),
        ({"sample_generator": [1], "data_loader": None, "batch_size": 0}, UsageError, "batch_size is 0"),
        ({"compat": "torch"}, UsageError, "unknown compat 'torch'"),
        ({"engine": "cuda"}, UsageError, "unknown engine 'cuda'"),
        ({"model_dir": "no/such"}, FormatError, "no such file"),
        ({"model_dir": demo.qat_prefix()}, UsageError, "quantized already"),
        ({"data_loader": [np.zeros((2, 7), np.float32)]}, DataError, "batch 1"),
        ({"sample_generator": [np.zeros(3), np.zeros(4)], "data_loader": None, "batch_size": 2}, DataError, "batch 1"),
        ({"scales": "no.json", "data_loader": None}, QuantError, "cannot read it"),
        ({"scales": alone(BATCHES[0]), "data_loader": None}, QuantError, "belongs to another model"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_arguments_write_nothing(
    options: dict[str, Any], error: type[QPassError], words: str, tmp_path: Path
) -> None:
    given = {"model_dir": demo.float_prefix(), "data_loader": BATCHES, "algo": "avg", **options}
    with pytest.raises(error) as caught:
        quant_post_static(None, quantize_model_path=tmp_path / "out", **given)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_scales_alone_cannot_be_refined(tmp_path: Path) -> None:
    scales = calibrate(load(demo.float_prefix()), BATCHES)
    with pytest.raises(UsageError, match="measure layers on data"):
        quant_post_static(None, demo.float_prefix(), tmp_path / "out", scales=scales, round_type="adaround")
    assert not list(tmp_path.iterdir())


def test_the_float_model_is_not_overwritten(tmp_path: Path) -> None:
    for suffix in (".pdmodel", ".pdiparams"):
        shutil.copy(demo.float_prefix().with_suffix(suffix), tmp_path / f"model{suffix}")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="would replace the float model"):
        quant_post_static(None, tmp_path, tmp_path, data_loader=BATCHES)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"is_full_quantise": True}, "did you mean 'is_full_quantize'?"),
        ({"skip_tensors": []}, "did you mean 'skip_tensor_list'?"),
        ({"is_full_quantize": 1}, "is_full_quantize is 1, expected True or False"),
        ({"quantizable_op_type": ["lookup_table_v2"]}, "no activations to calibrate"),
        ({"round_type": "floor"}, "unknown round_type 'floor'"),
        ({"overrides": [("conv2d_0.w_0", 4)]}, "overrides is [('conv2d_0.w_0', 4)], expected a sequence of names"),
        ({"skip_tensor_list": ["conv2d_0.w_0", None]}, "skip_tensor_list is ['conv2d_0.w_0', None], expected"),
        ({"batch_nums": "3"}, "batch_nums is '3', expected a whole number"),
    ],
)
def test_wrong_ptq_config(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        AnalysisPTQ(demo.float_prefix(), data_loader=BATCHES, save_dir=tmp_path / "out", ptq_config=config)
    assert words in str(caught.value)
    assert str(caught.value).startswith("ptq_config")
    assert not list(tmp_path.iterdir())


def test_ptq_config_means_what_the_arguments_of_quant_post_static_mean(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "algo": "mse",
        "onnx_format": False,
        "is_full_quantize": True,
        "optimize_model": True,
        "round_type": "adaround",
        "bias_correction": True,
        "skip_tensor_list": ["linear_1.w_0"],
        "overrides": ["conv2d_0.w_0:w6"],
        "compat": "paddle",
        "outputs": True,
    }
    analysis = AnalysisPTQ(
        demo.float_prefix(),
        eval_function=lambda predict: 1.0,
        data_loader=BATCHES,
        save_dir=tmp_path / "results",
        num_histogram_plots=0,
        ptq_config=config,
    )
    assert analysis.get_target_quant_model(0.5).skip_tensor_list == ()
    quant_post_static(None, demo.float_prefix(), tmp_path / "direct", data_loader=BATCHES, **config)
    for suffix in (".pdmodel", ".pdiparams"):
        ours = (tmp_path / "results" / "target_quant_model" / f"model{suffix}").read_bytes()
        assert ours == (tmp_path / "direct" / f"model{suffix}").read_bytes()
    made = load(tmp_path / "direct")
    assert {site.encoding for site in find_sites(made)} == {"A", "D"}
    assert "linear_1.w_0" not in {site.value.name for site in find_sites(made) if site.role is Role.WEIGHT}
    assert "linear_1.w_0" not in {row.layer for row in analysis.result.rows}
