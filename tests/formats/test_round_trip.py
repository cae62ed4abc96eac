"""Loading and saving gives back the very bytes, for every program of the corpus and in every layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from support.build import Builder
from support.corpus import MODELS, PROGRAMS, corpus
from support.strategies import models

from qpass.formats.files import load, load_bytes, save, to_bytes
from qpass.ir.model import Model
from qpass.rewrite.edit import edit


@pytest.mark.parametrize("path", PROGRAMS)
def test_program_and_parameters_come_back_byte_for_byte(path: str) -> None:
    program = corpus(path)
    params = program.with_suffix(".pdiparams")
    expected = program.read_bytes(), params.read_bytes() if params.exists() else b""
    model = load(program, structure_only=not params.exists())
    assert to_bytes(model) == expected
    with edit(model) as e:
        pass
    assert to_bytes(e.model) == expected


@pytest.mark.parametrize("path", MODELS)
def test_files_from_memory_and_from_disk_are_the_same_model(path: str, tmp_path) -> None:
    program = corpus(path)
    params = program.with_suffix(".pdiparams")
    model = load(program)
    assert load_bytes(program.read_bytes(), params.read_bytes()) == model
    saved = save(model, tmp_path / "copy")
    assert saved == (tmp_path / "copy.pdmodel", tmp_path / "copy.pdiparams")
    assert [p.read_bytes() for p in saved] == [program.read_bytes(), params.read_bytes()]


def test_separate_layout_goes_there_and_back(tmp_path) -> None:
    model = load(corpus("models/resnet8_cifar10"))
    program, combined = to_bytes(model)
    folder = tmp_path / "old"
    assert save(model, folder, params_layout="separate") == (folder / "__model__", folder)
    records = sorted(p for p in folder.iterdir() if p.name != "__model__")
    assert b"".join(p.read_bytes() for p in sorted(records, key=lambda p: p.name.encode())) == combined
    assert (folder / "__model__").read_bytes() == program
    again = load(folder)
    assert again == model
    assert again.source.params_layout == "separate"
    # The layout is kept when it is not asked for, and left when the name says so.
    assert save(again, tmp_path / "kept")[0] == tmp_path / "kept" / "__model__"
    assert save(again, tmp_path / "left.pdmodel")[1].read_bytes() == combined


def test_parameter_names_with_a_slash_become_folders(tmp_path) -> None:
    builder = Builder().feed("x", [-1, 4])
    model = builder.add(builder.param("block/fc.b_0", (4,))).model()
    save(model, tmp_path, params_layout="separate")
    assert (tmp_path / "block" / "fc.b_0").is_file()
    assert load(tmp_path) == model


def test_parameters_are_mapped_and_stay_shared() -> None:
    model = load(corpus("models/resnet8_cifar10"))
    arrays = list(model.params.values())
    assert all(_root(a) is _root(arrays[0]) for a in arrays)
    assert isinstance(_root(arrays[0]), np.memmap)
    assert not any(a.flags.writeable for a in arrays)
    name = next(iter(model.params))
    with edit(model) as e:
        e.set_param(name, model.params[name] + 1)
    others = [n for n in model.params if n != name]
    assert all(np.shares_memory(e.model.params[n], model.params[n]) for n in others)


@settings(max_examples=30, deadline=None)
@given(models())
def test_generated_models_survive(model: Model) -> None:
    again = load_bytes(*to_bytes(model))
    assert to_bytes(again) == to_bytes(model)
    assert again.params == model.params
    assert [g.ops for g in again.blocks] == [g.ops for g in model.blocks]


def _root(array: np.ndarray) -> object:
    base: object = array
    while True:
        if isinstance(base, np.memmap) and not isinstance(base.base, np.memmap):
            return base
        if isinstance(base, memoryview):
            base = base.obj
        elif isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        else:
            return base
