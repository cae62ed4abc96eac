"""`qpass quantize --target`: what is written has the target's encoding and op types, and lint finds nothing in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.commands import qpass

import qpass as library
from qpass import demo
from qpass.deploy import prepared_for, spelled_for
from qpass.errors import UsageError
from qpass.formats.files import load
from qpass.passes import InsertQuant
from qpass.quant.encodings import find_sites
from qpass.quant.lint.run import lint
from qpass.quant.presets import TARGETS
from qpass.quant.recipe import Recipe

DIGITS = demo.float_prefix()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npy"
    np.save(path, np.concatenate(demo.calibration_data())[:32])
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_written_suits_the_target(target: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    answer = qpass("quantize", DIGITS, "--data", data, "--target", target, "-o", out)
    assert answer.code == 0, answer.err
    made = load(out)
    assert {site.encoding for site in find_sites(made)} == {TARGETS[target].encoding}
    assert lint(made, target) == ()
    assert any(op.type == "batch_norm" for op in made.graph.ops) is (target == "generic")


def test_only_the_target_s_op_types_are_quantized() -> None:
    assert "conv2d_transpose" in TARGETS["lite"].op_types
    assert "conv2d_transpose" not in TARGETS["onednn"].op_types


@pytest.mark.parametrize("target", TARGETS)
def test_recipes_of_targets_are_recipes(target: str) -> None:
    preset = TARGETS[target]
    assert preset.fitted(Recipe()) == Recipe(op_types=preset.op_types, activation_op_types=preset.sums)
    chosen = Recipe(op_types=("mul",), activation_op_types=preset.activation_op_types or ("pool2d",))
    assert preset.fitted(chosen) == chosen


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "tensort"], "did you mean 'tensorrt'?"),
        (["--target", "lite", "--target-metric", "0.9", "--eval", "qpass.demo:accuracy"], "does not go with"),
    ],
)
def test_wrong_usage_is_told_before_any_work(options: list[str], words: str, data: Path, tmp_path: Path) -> None:
    answer = qpass("quantize", DIGITS, "--data", data, "-o", tmp_path / "x", *options)
    assert answer.code == 2
    assert words in answer.err
    assert not list(tmp_path.iterdir())


def test_bits_that_a_target_does_not_take_are_refused(data: Path) -> None:
    model = prepared_for(load(DIGITS), "onednn")
    scales = library.calibrate(model, [np.load(data)])
    with pytest.raises(UsageError, match="onednn takes 8 bits"):
        library.quantize(model, scales, activation_bits=6, target="onednn")
    assert library.quantize(model, scales, target="onednn") == spelled_for(InsertQuant(scales=scales)(model), "onednn")
