"""`qpass quantize`: each option that says what is quantized, and how, reaches the model that is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.commands import qpass

from qpass import demo
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.site import Role

DIGITS = demo.float_prefix()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npy"
    np.save(path, np.concatenate(demo.calibration_data())[:32])
    return path


def quantized(data: Path, out: Path, *options: str) -> Model:
    answer = qpass("quantize", DIGITS, "--data", data, "-o", out / "m", *options)
    assert answer.code == 0, answer.err
    return load(out / "m")


def bits(model: Model, role: Role) -> set[int]:
    return {site.spec.bits for site in find_sites(model) if site.role is role}


def test_bits_and_overrides(data: Path, tmp_path: Path) -> None:
    made = quantized(data, tmp_path, "--weight-bits", "5", "--activation-bits", "9", "--override", r"linear_\d.w_0:w3")
    assert bits(made, Role.WEIGHT) == {3, 5}
    assert bits(made, Role.ACTIVATION) == {9}


def test_full_quantizes_what_has_no_weights(data: Path, tmp_path: Path) -> None:
    made = quantized(data, tmp_path, "--full")
    kinds = {made.graph.by_uid[use.op].type for site in find_sites(made) for use in site.uses}
    assert {"pool2d", "relu"} & kinds
    assert len(find_sites(made)) > len(find_sites(quantized(data, tmp_path / "plain")))


@pytest.mark.parametrize("encoding", ["A", "B", "C", "D"])
def test_encoding(encoding: str, data: Path, tmp_path: Path) -> None:
    assert {site.encoding for site in find_sites(quantized(data, tmp_path, "--encoding", encoding))} == {encoding}


def test_output_scales_and_folding(data: Path, tmp_path: Path) -> None:
    made = quantized(data, tmp_path, "--output-scales", "--fold-batch-norm")
    assert any(site.observer_only for site in find_sites(made))
    assert not any(op.type == "batch_norm" for op in made.graph.ops)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--equalize"], "conv2d_0.w_0@scale"),
        (["--round-type", "adaround"], "conv2d_1.w_0"),
        (["--bias-correction"], "batch_norm2d_0.b_0"),
        (["--bias-correction", "paddle"], "conv2d_1.w_0"),
    ],
)
def test_refinements_change_what_they_are_about(options: list[str], changes: str, data: Path, tmp_path: Path) -> None:
    plain = quantized(data, tmp_path / "plain", "--fold-batch-norm")
    made = quantized(data, tmp_path / "made", "--fold-batch-norm", *options)
    changed = {name for name in made.params if not np.array_equal(made.params[name], plain.params.get(name))}
    assert changes in changed
    if options == ["--bias-correction"]:
        assert not any(".w_0" in name for name in changed)


def test_skipped_ops_are_told_one_by_one(data: Path, tmp_path: Path) -> None:
    answer = qpass("quantize", DIGITS, "--data", data, "-o", tmp_path / "m", "--skip", r"linear_\d\.w_0", "--json")
    body = json.loads(answer.out)
    assert [row["name"] for row in body["skipped_ops"]] == body["skipped"]
    assert all(row["entry"] == r"linear_\d\.w_0" and row["planned"] for row in body["skipped_ops"])
    assert body["quantized"] + len(body["skipped"]) == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weight-bits", "1"], "invalid choice"),
        (["--override", "linear_0.w_0"], "is no override of bits"),
        (["--hist-percent", "0.9"], "goes with --algo hist"),
        (["--target", "lite", "--full"], "--full changes nothing for lite"),
        (["--encoding", "D", "--target", "onednn"], "does not go with target"),
        (["--bias-correction", "paddle", "--round-type", "adaround"], "undoes adaround"),
    ],
)
def test_wrong_options_write_nothing(options: list[str], words: str, data: Path, tmp_path: Path) -> None:
    answer = qpass("quantize", DIGITS, "--data", data, "-o", tmp_path / "m", *options)
    assert answer.code == 2
    assert words in answer.err
    assert not list(tmp_path.iterdir())


def test_refinements_measure_layers_beside_known_scales(data: Path, tmp_path: Path) -> None:
    scales = tmp_path / "s.csv"
    quantized(data, tmp_path / "plain", "--scales-out", str(scales))
    whole = quantized(data, tmp_path / "whole", "--round-type", "adaround")
    known = quantized(data, tmp_path / "known", "--scales", str(scales), "--round-type", "adaround")
    assert all(np.array_equal(known.params[name], whole.params[name]) for name in whole.params)
    answer = qpass("quantize", DIGITS, "--scales", scales, "--round-type", "adaround", "-o", tmp_path / "m")
    assert answer.code == 2
    assert "give the calibration data beside the scales" in answer.err


def test_a_file_of_names_may_have_comments(data: Path, tmp_path: Path) -> None:
    (tmp_path / "skip.txt").write_text("# the classifier\nlinear_0.w_0\n\n", encoding="utf-8")
    answer = qpass(
        "quantize", DIGITS, "--data", data, "-o", tmp_path / "m", "--skip", f"@{tmp_path}/skip.txt", "--json"
    )
    assert json.loads(answer.out)["skipped"] == ["linear_0.w_0"], answer.err
