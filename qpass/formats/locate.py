"""Finding the files of a model: a `.pdmodel`, a prefix, a folder, or the Paddle 1.x layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from qpass.errors import FormatError
from qpass.formats.foreign import refuse_foreign

PROGRAM_SUFFIX = ".pdmodel"
PARAMS_SUFFIX = ".pdiparams"
PROGRAM_1X = "__model__"
PARAMS_1X = "__params__"

Layout: TypeAlias = Literal["combined", "separate"]
"""Where parameters are: in one file, or (Paddle 1.x) in one file each, named as the parameter."""

_LISTED = 8


class ModelFiles(NamedTuple):
    """The files of one model.

    Attributes
    ----------
    program : Path
    params : Path or None
        The parameter file; the folder of the parameter files when `layout` is ``separate``; None when there is none.
    layout : {"combined", "separate"}
    """

    program: Path
    params: Path | None
    layout: Layout


def locate(
    path: str | os.PathLike[str], model_filename: str | None = None, params_filename: str | None = None
) -> ModelFiles:
    """Find the files of a model.

    Parameters
    ----------
    path : str or os.PathLike
        A program file, a prefix (``dir/inference``), or a folder.
    model_filename, params_filename : str, optional
        Names inside the folder, with or without suffix. `params_filename` may also go with a program file or a prefix.

    Raises
    ------
    FormatError
        If there is no such file (the message says what there is), or more than one to choose from.
    OSError
        If the file system refuses.
    """
    if not os.fspath(path):
        raise FormatError("an empty path", hint="give a .pdmodel file, its prefix, or a folder that holds it")
    given = Path(path)
    if given.is_dir():
        program = _in_folder(given, model_filename)
    elif model_filename is not None:
        what = "a file, but model_filename= names a file in a folder" if given.exists() else "no such folder"
        raise FormatError(what, where=str(given), hint="give the folder, or leave model_filename out")
    else:
        program = _file_or_prefix(given)
    refuse_foreign(program)
    if params_filename is not None:
        params = _with_suffix(program.parent, params_filename, PARAMS_SUFFIX, "params_filename")
        return ModelFiles(program, params, "combined")
    if program.suffix != PROGRAM_SUFFIX:
        return ModelFiles(program, program.parent, "separate")
    params = program.with_suffix(PARAMS_SUFFIX)
    return ModelFiles(program, params if params.is_file() else None, "combined")


def what_is_in(folder: Path) -> str:
    """Words for the files of a folder: the first few, model files first."""
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r}"
    names = sorted(os.listdir(folder), key=lambda name: (not _is_model_file(name), name))
    if not names:
        return f"folder {str(folder)!r} is empty"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"folder {str(folder)!r} holds {', '.join(names[:_LISTED])}{more}"


def _is_model_file(name: str) -> bool:
    return name.endswith((PROGRAM_SUFFIX, PARAMS_SUFFIX)) or name in (PROGRAM_1X, PARAMS_1X)


def _file_or_prefix(given: Path) -> Path:
    if given.is_file():
        return given
    for suffix in (PROGRAM_SUFFIX, ".json"):
        found = given.with_name(given.name + suffix) if given.name else given
        if found.is_file():
            return found
    if given.exists():
        raise FormatError("not a regular file", where=str(given), hint=what_is_in(given.parent))
    raise FormatError(
        f"no such file, and no {given.name + PROGRAM_SUFFIX!r} beside it",
        where=str(given),
        hint=what_is_in(given.parent),
    )


def _in_folder(folder: Path, model_filename: str | None) -> Path:
    if model_filename is not None:
        return _with_suffix(folder, model_filename, PROGRAM_SUFFIX, "model_filename")
    found = sorted(p for p in folder.glob("*" + PROGRAM_SUFFIX) if p.is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise FormatError(
            f"{len(found)} programs in this folder: {', '.join(p.name for p in found[:_LISTED])}",
            where=str(folder),
            hint="say which one with model_filename=",
        )
    if (folder / PROGRAM_1X).is_file():
        return folder / PROGRAM_1X
    foreign = sorted(p for suffix in (".json", ".onnx") for p in folder.glob("*" + suffix) if p.is_file())
    if len(foreign) == 1:
        return foreign[0]
    raise FormatError(
        f"no {PROGRAM_SUFFIX} and no {PROGRAM_1X} in this folder", where=str(folder), hint=what_is_in(folder)
    )


def _with_suffix(folder: Path, name: str, suffix: str, argument: str) -> Path:
    if not name:
        raise FormatError(f"{argument}= is empty", where=str(folder), hint=what_is_in(folder))
    for found in (folder / name, folder / (name + suffix)):
        if found.is_file():
            return found
    raise FormatError(f"{argument}={name!r}: no such file", where=str(folder), hint=what_is_in(folder))
