"""The commands that read and rewrite files: exit codes, messages, JSON, and that none of them imports paddle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import check_command, commands_in
from support.corpus import corpus

from qpass import demo
from qpass.analysis.result import AnalysisResult, LayerResult
from qpass.cli.common import size
from qpass.cli.main import COMMANDS, build_parser, main
from qpass.formats.files import load, save
from qpass.passes import ConvertEncoding, StripQuant
from qpass.quant.encodings import find_sites

DIGITS = str(demo.float_prefix())
TWIN = str(demo.qat_prefix())


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = tuple(LayerResult(f"w{i}", "conv2d", 0.9 - s, s) for i, s in enumerate((0.5, 0.2, 0.0)))
    result = AnalysisResult("ptq", "accuracy", True, 0.9, None, rows)
    (tmp_path / "analysis.json").write_text(result.to_json())
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    examples = capsys.readouterr().out.split("example:")[1]
    assert f"qpass {command}" in examples
    for arguments in commands_in(examples):
        check_command(arguments)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_every_command_can_be_configured() -> None:
    build_parser()


@pytest.mark.parametrize("arguments", [[], ["no-such"], ["run", DIGITS], ["skiplist", "x"], ["dump"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_inspect_counts_what_the_twin_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", TWIN, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    fakes = [op for op in load(TWIN).graph.ops if op.type.startswith("fake_")]
    assert sum(facts["sites"].values()) == len(fakes) > 0
    assert facts["layers_quantized"] == len(facts["layers"])
    assert all(row["activation_threshold"] > 0 and row["weight_absmax"] > 0 for row in facts["layers"])


def test_inspect_for_people_lists_the_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", DIGITS, "--layers"]) == 0
    out = capsys.readouterr().out
    assert "conv2d_0.w_0" in out
    assert "0 of them quantized" in out


def test_run_writes_what_the_passes_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lean" / "digits"
    assert main(["run", DIGITS, "-p", "fold-batch-norm,drop-debug-info", "-o", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [step["spec"] for step in answer["passes"]] == ["fold-batch-norm", "drop-debug-info"]
    assert not any(op.type == "batch_norm" for op in load(out).graph.ops)
    assert main(["diff", DIGITS, str(out), "--exit-code"]) == 1
    assert "batch_norm" in capsys.readouterr().out


def test_run_strips_one_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "digits"
    assert main(["run", TWIN, "-p", "strip-quant{layers=conv2d_0.w_0}", "-o", str(out)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out), "--json"]) == 0
    rows = {row["layer"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    assert rows.pop("conv2d_0.w_0")["weight"] is None
    assert all(row["weight"] for row in rows.values())


def test_run_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", DIGITS, "-p", "drop-identity", "-o", str(tmp_path / "m")]
    assert main(command) == 0
    assert main(command) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_diff_of_a_model_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "--exit-code", DIGITS, DIGITS]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", "--json", "--exit-code", DIGITS, TWIN]) == 1
    assert json.loads(capsys.readouterr().out)


def test_skiplist_by_count_and_by_threshold(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["skiplist", str(results), "--top", "1"]) == 0
    assert capsys.readouterr().out == "w0\n"
    assert main(["skiplist", str(results / "analysis.json"), "--threshold", "0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"skip_tensor_list": ["w0", "w1"]}
    assert main(["skiplist", str(results), "--threshold", "1"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["inspect", "no/such/model"], 1, "no/such/model"),
        (["run", DIGITS, "-p", "fold-batchnorm", "-o", "x"], 2, "fold-batch-norm"),
        (["run", TWIN, "-p", "strip-quant{layers=conv2d_0.w_1}", "-o", "x"], 1, "conv2d_0.w_0"),
        (["skiplist", "no/such/folder", "--top", "1"], 2, "qpass analyze"),
    ],
)
def test_an_error_is_one_message(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert err.startswith(f"qpass {arguments[0]}: ")
    assert words in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "no/such/model", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_json_model_is_named_for_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "inference.json"
    file.write_text('{"base_code":{"magic":"pir","trainable":true,"version":1},"program":{}}')
    assert main(["inspect", str(file)]) == 1
    assert "Paddle 3" in capsys.readouterr().err


def test_commands_on_files_never_import_paddle(results: Path, tmp_path: Path) -> None:
    commands = [
        ["inspect", DIGITS],
        ["convert", TWIN, "--to", "B", "-o", str(tmp_path / "b")],
        ["dump", TWIN],
        ["diff", DIGITS, TWIN],
        ["run", TWIN, "-p", "strip-quant,drop-identity", "-o", str(tmp_path / "m")],
        ["skiplist", str(results), "--top", "1"],
    ]
    code = (
        "import sys\nfrom qpass.cli.main import main\n"
        f"codes = [main(c) for c in {commands!r}]\n"
        "assert codes == [0] * len(codes), codes\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('paddle', 'matplotlib')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_convert_writes_int8_weights_and_tells_both_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "int8"
    assert main(["convert", TWIN, "--to", "B", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    before, after = (Path(f"{name}.pdiparams").stat().st_size for name in (TWIN.removesuffix(".pdmodel"), str(out)))
    assert after < 0.5 * before
    assert f"({size(before)} -> {size(after)})" in said
    sites = find_sites(load(TWIN))
    assert f"sites by encoding: {len(sites)} in D -> {len(sites)} in B" in said
    assert {site.encoding for site in find_sites(load(out))} == {"B"}
    assert (
        main(["convert", TWIN, "--to", "A", "--layers", "conv2d_0.w_0", "-o", str(out), "--overwrite", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["after"] == {"A": 2, "D": len(sites) - 2}


def test_convert_refuses_a_float_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", DIGITS, "--to", "B", "-o", str(tmp_path / "int8")]) == 2
    assert "nothing is quantized in this model" in (said := capsys.readouterr().err)
    assert "qpass quantize --encoding B" in said
    assert not list(tmp_path.iterdir())


def test_inspect_tells_the_size_without_quantization(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sizes(path: object) -> tuple[int, int]:
        assert main(["inspect", str(path), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        return facts["float_parameter_bytes"], facts["parameter_bytes"]

    plain = sum(array.nbytes for array in StripQuant()(load(TWIN)).params.values())
    for to in "ABCD":
        save(ConvertEncoding(to)(load(TWIN)), tmp_path / to)
        assert sizes(tmp_path / f"{to}.pdmodel")[0] == plain
    assert sizes(DIGITS)[0] == sizes(DIGITS)[1]
    assert sizes(tmp_path / "B.pdmodel")[1] < 0.5 * plain
    assert main(["inspect", str(tmp_path / "B")]) == 0
    assert f"{size(plain)} without quantization" in capsys.readouterr().out


def test_inspect_reads_a_program_without_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(corpus("graphs/ch_PP-OCRv3_rec_slim_infer.pdmodel"))]) == 0
    out = capsys.readouterr().out
    assert "D activation: 45 sites" in out
    assert "D weight: 45 sites" in out
