"""Models go to other processes: pickle gives the same model back."""

from __future__ import annotations

import pytest
from hypothesis import given
from support.corpus import MODELS, corpus
from support.pickling import through_pickle
from support.strategies import models

from qpass.formats.files import load
from qpass.ir.model import Model


def check(model: Model) -> None:
    again = through_pickle(model)
    assert again == model
    assert again.program_digest() == model.program_digest()
    assert again.params_digest() == model.params_digest()
    assert again.source == model.source  # no part of equality, like the uids
    assert [[op.uid for op in g.ops] for g in again.blocks] == [[op.uid for op in g.ops] for g in model.blocks]
    assert not any(array.flags.writeable for array in again.params.values())


@given(models())
def test_generated_models(model: Model) -> None:
    check(model)


@pytest.mark.parametrize("path", MODELS)
def test_files_after_they_were_looked_at(path: str) -> None:
    model = load(corpus(path))
    assert all((model.feeds, model.fetches, model.graph.nx, model.graph.by_uid))  # computed once, kept in the model
    check(model)


def test_mappings_stay_frozen() -> None:
    model = through_pickle(load(corpus(MODELS[-1])))
    with pytest.raises(TypeError):
        model.graph.decls["new"] = None
    with pytest.raises(TypeError):
        model.graph.ops[0].attrs["new"] = None
