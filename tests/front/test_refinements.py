"""Post-training quantization with its refinements: better where it matters, and wrong options are told."""

from __future__ import annotations

import numpy as np
import pytest
from support.corpus import corpus, golden
from support.quantized import quantized, residual_net

from qpass.errors import UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.options import QuantOptions
from qpass.passes import FoldQuant, WeightCorrection
from qpass.post_training import post_training_quantize
from qpass.quant.encodings import find_sites
from qpass.quant.site import Role, Storage
from qpass.refine import check_refinements, prepare_float, refine
from qpass.runtime.engines import get_engine

X = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)


def outputs(model: Model, x: np.ndarray) -> np.ndarray:
    session = get_engine("inference").session(FoldQuant("float")(model))
    return session.run({session.feed_names[0]: x})[0].astype(np.float64)


def same(a: Model, b: Model) -> bool:
    return all(np.array_equal(a.params[name], b.params[name]) for name in a.params)


def test_four_bits_on_resnet8():
    model = load(corpus("models/resnet8_cifar10/inference.pdmodel"))
    with np.load(golden("resnet8_calibration.npz")) as data:
        calibration, x = data["x"][::5].astype(np.float32), data["x"][1::5].astype(np.float32)
    true = outputs(model, x)

    def sqnr(**options: object) -> float:
        given = QuantOptions.checked({"weight_bits": 4, "fold_batch_norm": True, **options})
        made = post_training_quantize(model, calibration, given).model
        return float(10 * np.log10((true**2).sum() / ((true - outputs(made, x)) ** 2).sum()))

    plain, corrected, rounded = sqnr(), sqnr(bias_correction=True), sqnr(round_type="adaround")
    # Measured on images that are not those of the calibration: 1.0, 6.4, 11.1 and 13.4 dB.
    assert corrected > plain + 3
    assert rounded > plain + 7
    assert sqnr(round_type="adaround", bias_correction=True, equalize=True) > plain + 9


def test_all_refinements_give_stored_integers():
    options = QuantOptions(round_type="adaround", bias_correction=True, equalize=True, skip=("linear_1.w_0",))
    made = post_training_quantize(residual_net(), X, options).model
    weights = {site.value.name: site for site in find_sites(made) if site.role is Role.WEIGHT}
    assert sorted(weights) == ["conv2d_0.w_0", "conv2d_1.w_0", "depthwise_conv2d_0.w_0", "linear_0.w_0"]
    assert all(site.storage is Storage.INT for site in weights.values())
    assert not any(op.type == "batch_norm" for op in made.graph.ops)


def test_nothing_asked_for_is_nothing_done():
    model = prepare_float(residual_net())
    inserted = quantized(model)
    assert refine(inserted, model, X) is inserted
    assert refine(model, model, X, round_type="adaround") is model


@pytest.mark.parametrize(("given", "meant"), [(False, "none"), (True, "bias"), ("bias", "bias"), ("paddle", "paddle")])
def test_what_bias_correction_may_be(given, meant):
    assert check_refinements("round", given) == meant


def test_the_frameworks_correction_is_found_by_name():
    model = prepare_float(residual_net())
    inserted = quantized(model)
    made = refine(inserted, model, X, bias_correction="paddle")
    assert same(made, WeightCorrection()(inserted))
    assert not same(made, inserted)


def test_wrong_options_are_told():
    model = prepare_float(residual_net())
    inserted = quantized(model)
    with pytest.raises(UsageError, match="unknown round_type 'up', expected one of round, adaround"):
        refine(inserted, model, X, round_type="up")
    with pytest.raises(UsageError, match="unknown bias_correction 'yes'"):
        refine(inserted, model, X, bias_correction="yes")
    with pytest.raises(UsageError, match="undoes adaround"):
        refine(inserted, model, X, round_type="adaround", bias_correction="paddle")
    with pytest.raises(UsageError, match="quantized already"):
        prepare_float(quantized(residual_net()))
