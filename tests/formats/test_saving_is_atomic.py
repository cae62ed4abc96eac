"""Saving writes both files or nothing, replaces only when told, and leaves no temporary file behind."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from support.build import Builder
from support.corpus import corpus

from qpass.errors import FormatError, VerifyError
from qpass.formats.atomic import write_together
from qpass.formats.files import load, save, to_bytes
from qpass.ir.model import Model
from qpass.rewrite.edit import edit


def tree(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def net(seed: int = 0) -> Model:
    builder = Builder(seed).feed("x", [-1, 4])
    return builder.add(builder.param("fc.b_0", (4,))).relu().model()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(net(), tmp_path / "m" / "net")
    return tmp_path / "m"


def test_existing_files_are_replaced_only_when_told(saved: Path) -> None:
    before = tree(saved)
    for present in ("net.pdmodel", "net.pdiparams"):
        (saved / present).rename(saved / "aside")
        with pytest.raises(FormatError, match=r"(?s)the file exists.*overwrite=True"):
            save(net(1), saved / "net")
        (saved / "aside").rename(saved / present)
    assert tree(saved) == before
    save(net(1), saved / "net", overwrite=True)
    assert list(tree(saved).values()) == [to_bytes(net(1))[1], to_bytes(net(1))[0]]


def test_the_models_own_input_is_named_also_through_links(saved: Path, tmp_path: Path) -> None:
    model = load(saved)
    (tmp_path / "link").symlink_to(saved, target_is_directory=True)
    for target in (saved / "net", tmp_path / "link" / "net.pdmodel", saved / ".." / "m" / "net"):
        with pytest.raises(FormatError, match=r"(?s)the model's own input.*overwrite=True"):
            save(model, target)


def test_a_model_saved_over_its_own_mapped_parameters_is_whole(tmp_path: Path) -> None:
    folder = corpus("models/resnet8_cifar10")
    source = load(folder)
    save(source, tmp_path / "net")
    model = load(tmp_path / "net")
    name = next(iter(model.params))
    with edit(model) as e:
        e.set_param(name, model.params[name] + 1)
    save(e.model, tmp_path / "net", overwrite=True)
    assert load(tmp_path / "net") == e.model
    # The map of the replaced file still holds the old bytes.
    assert model.params == source.params
    save(model, tmp_path / "net", overwrite=True)
    assert (tmp_path / "net.pdiparams").read_bytes() == (folder / "inference.pdiparams").read_bytes()


def test_separate_layout_over_its_own_input(tmp_path: Path) -> None:
    save(net(), tmp_path / "old", params_layout="separate")
    model = load(tmp_path / "old")
    with pytest.raises(FormatError, match="the model's own input"):
        save(model, tmp_path / "old")
    save(model, tmp_path / "old", overwrite=True)
    assert load(tmp_path / "old") == model


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "link", "open"])
@pytest.mark.parametrize("nth", [0, 1, 2])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_failure_at_any_step_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int, replacing: bool
) -> None:
    if replacing:
        save(net(), tmp_path / "net")
    before = tree(tmp_path)
    original, count, failed = getattr(os, call), iter(range(1000)), []

    def failing(*args: object, **kwargs: object) -> object:
        if next(count) == nth:
            failed.append(call)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        try:
            save(net(1), tmp_path / "net", overwrite=True)
        except FormatError as e:
            reason = str(e)
        else:
            reason = ""
    if reason:
        assert "No space left on device" in reason
        assert tree(tmp_path) == before
    else:
        # Hard links have a fallback; a call that never came cannot fail.
        assert call == "link" or not failed
        assert list(tree(tmp_path).values()) == [to_bytes(net(1))[1], to_bytes(net(1))[0]]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: original(descriptor, data[:7]))
        save(net(), tmp_path / "net")
    assert list(tree(tmp_path).values()) == [to_bytes(net())[1], to_bytes(net())[0]]


def test_a_content_that_fails_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> object:
        yield b"half"
        raise KeyboardInterrupt

    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_together({tmp_path / "a": [b"new"], tmp_path / "b": chunks()})
    assert tree(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "not a path"),
        ("m\0", "not a path"),
        ("m", r"(?s)a folder, expected a prefix.*m/inference"),
        ("new/", "a folder, expected a prefix"),
        ("net.json", "PIR"),
        ("net.onnx", "ONNX"),
        ("m/net.pdiparams", "a parameter file"),
        ("m/net.pdmodel/below", r"cannot be written \((Not a directory|File exists)\)"),
        ("n" * 300, r"cannot be written \(File name too long\)|File name too long"),
        ("blocked", "a folder stands where the file would be written"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, saved: Path, path: str, message: str) -> None:
    (tmp_path / "blocked.pdiparams").mkdir()
    before = tree(tmp_path)
    with pytest.raises(FormatError, match=message):
        save(net(1), f"{tmp_path}/{path}" if path else "", overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("path", ["m/net.pdmodel", "out.pdmodel"])
def test_the_separate_layout_wants_a_folder(tmp_path: Path, saved: Path, path: str) -> None:
    with pytest.raises(FormatError, match="expected a folder"):
        save(net(), tmp_path / path, params_layout="separate")


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="'both'"):
        save(net(), tmp_path / "x", params_layout="both")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(FormatError, match=r"cannot be written \(Permission denied\); no file was changed"):
        save(net(), tmp_path / "a" / "b")


def test_a_model_without_its_parameters_is_not_saved(tmp_path: Path) -> None:
    model = load(corpus("graphs/mobilenetv2.pdmodel"), structure_only=True)
    with pytest.raises(FormatError, match=r"(?s)without its \d+ parameters.*to_bytes"):
        save(model, tmp_path / "x")
    assert tree(tmp_path) == {}


def test_an_invalid_model_is_not_saved(tmp_path: Path) -> None:
    model = net()
    broken = Model(model.blocks, model.params.replaced({"stray": model.params["fc.b_0"]}), model.extra)
    with pytest.raises(VerifyError, match="stray"):
        save(broken, tmp_path / "x")
    assert tree(tmp_path) == {}


def test_files_get_the_users_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        program, params = save(net(), tmp_path / "net")
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (program, params)} == {0o640}
