"""Which files a path means, and what the message says when there are none, too many, or files of another kind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.build import Builder
from support.corpus import corpus

from qpass.errors import FormatError
from qpass.formats.files import load, save
from qpass.ir.model import Model


@pytest.fixture
def model() -> Model:
    builder = Builder().feed("x", [-1, 4])
    return builder.add(builder.param("fc.b_0", (4,))).relu().model()


@pytest.fixture
def folder(tmp_path: Path, model: Model) -> Path:
    save(model, tmp_path / "m" / "net.v1")
    return tmp_path / "m"


def test_file_prefix_and_folder_mean_the_same(folder: Path, model: Model) -> None:
    for path, names in (
        (folder / "net.v1.pdmodel", {}),
        (str(folder / "net.v1"), {}),
        (folder, {}),
        (f"{folder}/", {}),
        (folder, {"model_filename": "net.v1"}),
        (folder, {"model_filename": "net.v1.pdmodel", "params_filename": "net.v1.pdiparams"}),
        (folder, {"model_filename": "net.v1", "params_filename": "net.v1"}),
        (folder, {"params_filename": "net.v1"}),
        (folder / "net.v1", {"params_filename": "net.v1.pdiparams"}),
    ):
        loaded = load(path, **names)
        assert loaded == model
        assert loaded.source.program == str(folder / "net.v1.pdmodel")
        assert loaded.source.params == str(folder / "net.v1.pdiparams")
        assert loaded.source.params_layout == "combined"


def test_parameters_under_another_name(folder: Path, model: Model) -> None:
    (folder / "net.v1.pdiparams").rename(folder / "weights.bin")
    with pytest.raises(FormatError, match=r"(?s)1 parameters.*net\.v1\.pdiparams.*weights\.bin.*params_filename"):
        load(folder)
    assert load(folder, params_filename="weights.bin") == model
    assert len(load(folder, structure_only=True).params) == 0


def test_paddle_1x_layouts(tmp_path: Path, model: Model) -> None:
    save(model, tmp_path / "new")
    save(model, tmp_path / "old", params_layout="separate")
    assert load(tmp_path / "old") == model
    assert load(tmp_path / "old" / "__model__") == model
    assert load(tmp_path / "old", model_filename="__model__") == model
    (tmp_path / "old" / "fc.b_0").unlink()
    with pytest.raises(FormatError, match=r"no file for 1 of 1 parameters; the first is 'fc\.b_0'"):
        load(tmp_path / "old")
    assert len(load(tmp_path / "old", structure_only=True).params) == 0
    shutil.copy(tmp_path / "new.pdiparams", tmp_path / "old" / "__params__")
    with pytest.raises(FormatError, match=r"(?s)__params__.*params_filename="):
        load(tmp_path / "old")
    combined = load(tmp_path / "old", params_filename="__params__")
    assert combined == model
    assert combined.source.params_layout == "combined"


def test_structure_only_reads_parameters_that_are_there(folder: Path, model: Model) -> None:
    assert load(folder, structure_only=True) == model


def test_a_program_without_parameters_needs_none(tmp_path: Path) -> None:
    model = Builder().feed("x", [-1, 4]).relu().model()
    program, params = save(model, tmp_path / "relu")
    assert params.read_bytes() == b""
    assert load(program) == model
    params.unlink()
    assert load(program) == model


def test_several_programs_must_be_named(folder: Path, model: Model) -> None:
    save(model, folder / "other")
    with pytest.raises(FormatError, match=r"(?s)2 programs.*net\.v1\.pdmodel, other\.pdmodel.*model_filename="):
        load(folder)
    assert load(folder, model_filename="other") == model


@pytest.mark.parametrize(
    ("path", "names", "message"),
    [
        (
            "m/none",
            {},
            r"(?s)no such file, and no 'none\.pdmodel'.*folder .*m' holds net\.v1\.pdiparams, net\.v1\.pdmodel",
        ),
        ("nowhere/net", {}, r"(?s)no such file.*there is no folder .*nowhere'"),
        ("m", {"model_filename": "absent"}, r"(?s)model_filename='absent'.*net\.v1\.pdmodel"),
        ("m", {"params_filename": "absent"}, r"(?s)params_filename='absent'.*net\.v1\.pdiparams"),
        ("m", {"model_filename": ""}, r"model_filename= is empty"),
        ("m/net.v1.pdmodel", {"model_filename": "x"}, r"a file, but model_filename="),
        ("nowhere", {"model_filename": "x"}, r"no such folder"),
        ("empty", {}, r"(?s)no \.pdmodel and no __model__.*is empty"),
        ("m/net.v1.pdiparams", {}, r"(?s)a parameter file.*give the \.pdmodel"),
        ("m/\0", {}, r"no such file"),
        ("m/" + "n" * 5000, {}, r"cannot be read \(File name too long\)"),
        ("m/net.v1.pdmodel/deeper", {}, r"no such file"),
        ("pipe", {}, r"not a regular file"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, folder: Path, path: str, names: dict, message: str) -> None:
    (tmp_path / "empty").mkdir()
    if path == "pipe":
        os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match=message):
        load(f"{tmp_path}/{path}", **names)


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(FormatError, match="an empty path"):
        load("")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path, model: Model) -> None:
    (tmp_path / "net.pdmodel").mkdir()
    with pytest.raises(FormatError, match="no such file"):
        load(tmp_path / "net")
    save(model, tmp_path / "old", params_layout="separate")
    (tmp_path / "old" / "fc.b_0").unlink()
    (tmp_path / "old" / "fc.b_0").mkdir()
    with pytest.raises(FormatError, match="no file for 1 of 1"):
        load(tmp_path / "old")


def test_a_file_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(FormatError, match=r"net\.v1\.pdmodel: cannot be read \(Permission denied\)"):
        load(folder)


@pytest.mark.parametrize("path", ["", "/inference", "/inference.json"])
def test_a_paddle_3_program_says_what_it_is(path: str) -> None:
    with pytest.raises(
        FormatError, match=r"(?s)inference\.json: a Paddle 3 program in JSON \(PIR\).*FLAGS_enable_pir_api=0"
    ):
        load(f"{corpus('models/textline_ori_pir')}{path}")


def test_json_under_the_name_of_a_program_says_what_it_is(tmp_path: Path) -> None:
    shutil.copy(corpus("models/textline_ori_pir/inference.json"), tmp_path / "m.pdmodel")
    with pytest.raises(FormatError, match=r"(?s)PIR.*FLAGS_enable_pir_api=0"):
        load(tmp_path / "m.pdmodel")


def test_onnx_and_checkpoints_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="an ONNX model"):
        load(corpus("onnx/ppocr_cls.onnx"))
    with pytest.raises(FormatError, match="an ONNX model"):
        load(corpus("onnx"))
    (tmp_path / "net.pdparams").write_bytes(b"\x80\x02")
    with pytest.raises(FormatError, match=r"(?s)training checkpoint.*paddle\.jit\.save"):
        load(tmp_path / "net.pdparams")


@pytest.mark.parametrize("name", ["../escape", "/absolute", "a/../../b", "__model__"])
def test_parameter_names_do_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    builder = Builder().feed("x", [-1, 4])
    model = builder.add(builder.param(name, (4,))).model()
    with pytest.raises(FormatError, match="cannot be the name of a file"):
        save(model, tmp_path / "out", params_layout="separate")
    assert list(tmp_path.iterdir()) == []
    assert save(model, tmp_path / "out")[0].is_file()
