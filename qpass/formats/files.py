"""Loading and saving models: `load`, `load_bytes`, `to_bytes`, `save`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qpass.errors import FormatError, VerifyError
from qpass.formats import pdiparams, pdmodel
from qpass.formats.atomic import Chunks, write_together
from qpass.formats.foreign import refuse_foreign
from qpass.formats.locate import PARAMS_SUFFIX, PROGRAM_1X, PROGRAM_SUFFIX, Layout, ModelFiles, locate, what_is_in
from qpass.ir.model import Model, Source
from qpass.ir.params import Params
from qpass.ir.verify import persistable_tensors, verify


def load(
    path: str | os.PathLike[str],
    *,
    model_filename: str | None = None,
    params_filename: str | None = None,
    structure_only: bool = False,
) -> Model:
    """Load a model from its files.

    Parameters
    ----------
    path : str or os.PathLike
        A `.pdmodel` file, its prefix (``dir/inference``), or a folder: one with a single `.pdmodel` in it, one whose
        files the next two arguments name, or the Paddle 1.x layout (``__model__`` and one file a parameter).
    model_filename, params_filename : str, optional
        Names inside the folder, with or without suffix.
    structure_only : bool
        Whether the program alone will do where its parameters are missing. They are read where they are present.

    Returns
    -------
    Model
        Verified. Parameters of a `.pdiparams` are views of the memory-mapped file.

    Raises
    ------
    FormatError
        If a file is missing, unreadable, damaged, or of another format.
    VerifyError
        If the program breaks an invariant, or the parameters do not match it.
    """
    try:
        files = locate(path, model_filename, params_filename)
        blocks, extra = pdmodel.decode(files.program.read_bytes(), str(files.program))
        model = Model(blocks, extra=extra)
        model = model.replaced(params=_read_params(files, sorted(persistable_tensors(model)), structure_only))
    except OSError as e:
        raise FormatError(
            f"cannot be read ({e.strerror or e})",
            where=str(e.filename or path),
            hint="check the path and its permissions",
        ) from e
    found = files.params if model.params else None
    source = Source("pdmodel", str(files.program), str(found) if found else None, files.layout)
    return _verified(Model(model.blocks, model.params, extra, source), str(files.program))


def load_bytes(program: bytes, params: bytes | None = None) -> Model:
    """Load a model from the content of its files.

    Parameters
    ----------
    program : bytes
        Content of a `.pdmodel`.
    params : bytes, optional
        Content of a `.pdiparams`; the model's arrays are views of it. None: the structure alone.

    Raises
    ------
    FormatError, VerifyError
        As `load`.
    """
    blocks, extra = pdmodel.decode(program, "program bytes")
    model = Model(blocks, extra=extra, source=Source("pdmodel"))
    if params is not None:
        buffer = np.frombuffer(params, np.uint8)
        arrays = pdiparams.decode(buffer, list(persistable_tensors(model)), "parameter bytes")
        model = model.replaced(params=Params(arrays))
    return _verified(model, "program bytes")


def to_bytes(model: Model) -> tuple[bytes, bytes]:
    """The content of a model's `.pdmodel` and `.pdiparams`; of an unchanged model, the bytes that were loaded.

    The second is empty for a model without parameters.

    Raises
    ------
    FormatError
        If the model holds something that the format cannot store.
    """
    return pdmodel.encode(model.blocks, model.extra), b"".join(pdiparams.encode(model.params))


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    params_layout: Layout | None = None,
) -> tuple[Path, Path]:
    """Save a model: both of its files, or nothing.

    Files are written beside their targets, synced, and renamed, so a model may be saved over its own input.

    Parameters
    ----------
    model : Model
        Verified before anything is written.
    path : str or os.PathLike
        A prefix (``dir/inference``), or the `.pdmodel` itself; for the separate layout, a folder. Missing folders are
        made.
    overwrite : bool
        Whether files that exist, the model's own input among them, may be replaced.
    params_layout : {"combined", "separate"}, optional
        One `.pdiparams`, or ``__model__`` and one file a parameter. None: as the model was loaded, unless `path`
        ends in ``.pdmodel``.

    Returns
    -------
    tuple of Path
        The program file, and the parameter file (separate layout: the folder).

    Raises
    ------
    FormatError
        If files exist and `overwrite` is off, if the model has no parameters to save, or if the file system refuses.
    VerifyError
        If the model breaks an invariant.
    """
    verify(model)
    if not model.params and persistable_tensors(model):
        raise FormatError(
            f"the model was loaded without its {len(persistable_tensors(model))} parameters",
            where=str(path),
            hint="load it with its parameters, or write the program alone: to_bytes(model)[0]",
        )
    try:
        target = _target(path, model, params_layout)
        files = _contents(model, target)
        _refuse_existing(model, list(files), overwrite)
        for folder in dict.fromkeys(file.parent for file in files):
            folder.mkdir(parents=True, exist_ok=True)
        write_together(files)
    except OSError as e:
        raise FormatError(
            f"cannot be written ({e.strerror or e}); no file was changed",
            where=str(path),
            hint="free some space, or choose a folder that can be written",
        ) from e
    return target.program, target.params


def check_target(model: Model, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse, before a long job, a path to which `save` could not write `model` because of what stands there.

    Raises
    ------
    FormatError
        If it is no prefix, or files exist and `overwrite` is off.
    """
    _refuse_existing(model, list(_contents(model, _target(path, model, None))), overwrite)


class _Target(NamedTuple):
    program: Path
    params: Path
    layout: Layout


def _read_params(files: ModelFiles, names: list[str], structure_only: bool) -> Params:
    if files.layout == "separate":
        return _read_separate(files.program.parent, names, structure_only)
    if files.params is None:
        if names and not structure_only:
            raise FormatError(
                f"the program declares {len(names)} parameters, and there is no "
                f"{files.program.with_suffix(PARAMS_SUFFIX).name!r} beside it",
                where=str(files.program),
                hint=f"{what_is_in(files.program.parent)}; name the file with params_filename=, "
                "or pass structure_only=True for the program alone",
            )
        return Params()
    return Params(pdiparams.decode(_mapped(files.params), names, str(files.params)))


def _mapped(path: Path) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)


def _read_separate(folder: Path, names: list[str], structure_only: bool) -> Params:
    paths = {name: _param_path(folder, name) for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing and structure_only and len(missing) == len(names):
        return Params()
    if missing:
        raise FormatError(
            f"no file for {len(missing)} of {len(names)} parameters; the first is {missing[0]!r}",
            where=str(folder),
            hint=f"{what_is_in(folder)}; if one file holds all parameters, name it with params_filename=",
        )
    # Read, not mapped: every map holds a file descriptor, and a model has hundreds of parameters.
    return Params({name: pdiparams.decode(np.fromfile(p, np.uint8), [name], str(p))[name] for name, p in paths.items()})


def _param_path(folder: Path, name: str) -> Path:
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name or name in (PROGRAM_1X, "."):
        raise FormatError(
            f"parameter {name!r} cannot be the name of a file in this folder",
            where=str(folder),
            hint="use the layout with one parameter file",
        )
    return folder / name


def _verified(model: Model, where: str) -> Model:
    try:
        return verify(model)
    except VerifyError as e:
        raise VerifyError(e.what, where=f"{where}, {e.where}" if e.where else where, hint=e.hint) from e


def _target(path: str | os.PathLike[str], model: Model, layout: Layout | None) -> _Target:
    text = os.fspath(path)
    given = Path(text)
    if not text or "\0" in text:
        raise FormatError("not a path", where=repr(text), hint="give a prefix such as out/inference")
    refuse_foreign(given)
    named = given.suffix == PROGRAM_SUFFIX
    if layout is None:
        layout = "separate" if model.source.params_layout == "separate" and not named else "combined"
    if layout == "separate":
        if named or given.is_file():
            raise FormatError("expected a folder", where=text, hint="the separate layout writes a file a parameter")
        return _Target(given / PROGRAM_1X, given, layout)
    if layout != "combined":
        raise FormatError(f"unknown layout {layout!r}", where=text, hint="'combined' or 'separate'")
    if given.is_dir() or text.endswith(("/", os.sep)):
        raise FormatError("a folder, expected a prefix", where=text, hint=f"for example {given / 'inference'}")
    prefix = given.with_suffix("") if named else given
    program, params = (prefix.with_name(prefix.name + suffix) for suffix in (PROGRAM_SUFFIX, PARAMS_SUFFIX))
    return _Target(program, params, layout)


def _contents(model: Model, target: _Target) -> dict[Path, Chunks]:
    program = [pdmodel.encode(model.blocks, model.extra)]
    if target.layout == "combined":
        return {target.params: pdiparams.encode(model.params), target.program: program}
    files: dict[Path, Chunks] = {
        _param_path(target.params, name): pdiparams.encode({name: array}) for name, array in model.params.items()
    }
    files[target.program] = program
    return files


def _refuse_existing(model: Model, files: list[Path], overwrite: bool) -> None:
    for file in files:
        if file.is_dir():
            raise FormatError("a folder stands where the file would be written", where=str(file), hint="choose another")
        if overwrite or not os.path.lexists(file):
            continue
        if _is_input(model, file):
            raise FormatError(
                "this is the model's own input", where=str(file), hint="save elsewhere, or pass overwrite=True"
            )
        raise FormatError("the file exists", where=str(file), hint="save elsewhere, or pass overwrite=True")


def _is_input(model: Model, file: Path) -> bool:
    if not file.exists():
        return False
    inputs = [name for name in (model.source.program, model.source.params) if name is not None and os.path.exists(name)]
    ours = file.parent if model.source.params_layout == "separate" else file
    return any(file.samefile(name) or ours.samefile(name) for name in inputs)
