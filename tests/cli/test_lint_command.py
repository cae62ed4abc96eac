"""`qpass lint`: exit codes, what it prints, and the model that --fix writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import qpass
from support.faults import FAULTS, clean, transposed

from qpass.formats.files import load, save
from qpass.ir.model import Model
from qpass.quant.lint.run import RULES, lint


def on_disk(model: Model, folder: Path) -> str:
    save(model, folder / "model")
    return str(folder / "model")


def test_a_model_in_order_gives_0(tmp_path: Path) -> None:
    answer = qpass("lint", on_disk(clean("onednn"), tmp_path), "--target", "onednn")
    assert (answer.code, answer.out) == (0, "no findings for onednn\n")


def test_findings_give_1_and_name_place_cause_source_and_pass(tmp_path: Path) -> None:
    answer = qpass("lint", on_disk(transposed(), tmp_path), "--target", "onednn")
    assert answer.code == 1
    lines = answer.out.splitlines()
    assert lines[0].startswith("weight-not-restored: the engine removes the dequantize op")
    assert "quant_dequant_onednn_pass.cc" in lines[1]
    assert "block 0, op 4 (conv2d_transpose), up.w_0: " in lines[2]
    assert lines[3] == '    mend: strip-quant{layers="up.w_0"}'
    assert lines[-1] == 'passes that mend: strip-quant{layers="up.w_0"}  (--fix applies them)'


def test_fix_writes_a_model_without_these_findings(tmp_path: Path) -> None:
    source = on_disk(FAULTS["zero-scale"][1].plant(), tmp_path)
    out = tmp_path / "out" / "model"
    answer = qpass("lint", source, "--target", "tensorrt", "--fix", "-o", out)
    assert answer.code == 0
    assert "applied:\n  mend-scales\nno findings left\n" in answer.out
    assert lint(load(out), "tensorrt") == ()
    assert qpass("lint", source, "--target", "tensorrt", "--fix", "-o", out).code == 1
    assert qpass("lint", source, "--target", "tensorrt", "--fix", "-o", out, "--overwrite").code == 0


def test_what_no_pass_mends_is_left_and_gives_1(tmp_path: Path) -> None:
    source = on_disk(FAULTS["bit-length"][0].plant(), tmp_path)
    answer = qpass("lint", source, "--target", "onednn", "--fix", "-o", tmp_path / "out", "--json")
    body = json.loads(answer.out)
    assert answer.code == 1
    assert {finding["rule"] for finding in body["left"]} == {"bit-length"}
    assert Path(body["files"][0]).exists()


def test_json_holds_every_finding(tmp_path: Path) -> None:
    model = FAULTS["missing-round-type"][1].plant()
    body = json.loads(qpass("lint", on_disk(model, tmp_path), "--target", "onednn", "--json").out)
    assert (body["target"], body["quantized"]) == ("onednn", True)
    assert [(f["rule"], f["position"], f["fix"]) for f in body["findings"]] == [
        (f.rule, f.position, f.fix) for f in lint(model, "onednn")
    ]


def test_a_float_model_is_called_that(tmp_path: Path) -> None:
    source = on_disk(FAULTS["batch-norm-unfolded"][0].plant(), tmp_path)
    answer = qpass("lint", source, "--target", "lite")
    assert answer.code == 1
    assert answer.out.startswith("nothing is quantized in this model; 3 layers could be\n")
    assert "passes that mend: fold-batch-norm" in answer.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "onedn"], "did you mean 'onednn'?"),
        (["--target", "lite", "--fix"], "add -o OUT"),
        (["--target", "lite", "-o", "x"], "-o goes with --fix"),
    ],
)
def test_wrong_usage_gives_2(tmp_path: Path, options: list[str], words: str) -> None:
    answer = qpass("lint", on_disk(clean(), tmp_path), *options)
    assert answer.code == 2
    assert words in answer.err


def test_a_target_has_to_be_named(tmp_path: Path) -> None:
    assert qpass("lint", on_disk(clean(), tmp_path)).code == 2


def test_rules_are_listed_without_a_model() -> None:
    answer = qpass("lint", "--rules")
    assert answer.code == 0
    assert [line.split("  ")[0] for line in answer.out.splitlines() if line[0] != " "] == [rule.name for rule in RULES]


def test_lint_never_imports_paddle(tmp_path: Path) -> None:
    source = on_disk(FAULTS["not-simulated"][0].plant(), tmp_path)
    command = ["lint", source, "--target", "onednn", "--fix", "-o", str(tmp_path / "out")]
    code = (
        f"import sys\nfrom qpass.cli.main import main\nassert main({command!r}) == 0\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('paddle', 'matplotlib')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_weights_stored_as_integers_alone_are_told(tmp_path: Path) -> None:
    source = on_disk(FAULTS["weights-alone"][0].plant(), tmp_path)
    answer = qpass("lint", source, "--target", "onednn")
    assert answer.code == 1
    assert answer.out.startswith("weights stored as integers alone, as Paddle Lite reads them: 1\n")
    assert "conv2d_0.w_0: conv2d reads int8 where it expects floats" in answer.out
    assert "1 finding for onednn" in answer.out
    assert "stored as integers alone, as Paddle Lite reads them: 1" in qpass("inspect", source).out
    refused = qpass("quantize", source, "--data", "none.npz", "-o", tmp_path / "out")
    assert refused.code == 2
    assert "weights are stored as integers alone, the first is conv2d_0.w_0" in refused.err
    assert "integers alone" not in qpass("inspect", on_disk(clean(), tmp_path / "clean")).out
