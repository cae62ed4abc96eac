"""EnableObservers: the numbers of an engine that quantizes what Paddle only observes."""

from __future__ import annotations

import dataclasses

import numpy as np
from support.infer import infer
from support.quantized import quantized, residual_net, written_by_paddle

from qpass.formats.files import to_bytes
from qpass.ir.op import Attr
from qpass.passes import ConvertEncoding, EnableObservers, StripQuant, parse_passes
from qpass.quant.encodings import find_sites

IMAGES = {"x": np.random.default_rng(7).standard_normal((4, 3, 8, 8)).astype(np.float32)}


def test_active_observers_change_what_is_computed() -> None:
    model = written_by_paddle("b")
    made = EnableObservers()(model)
    assert not [site for site in find_sites(made) if site.observer_only]
    assert len(find_sites(made)) == len(find_sites(model))
    # Judge: the attribute taken from the raw ops, not by way of sites.
    ops = tuple(
        op.with_attrs(only_observer=Attr.bool(False)) if op.attr("only_observer") else op for op in model.graph.ops
    )
    judge = model.replaced(graph=dataclasses.replace(model.graph, ops=ops))
    found = infer(made, IMAGES)[0]
    np.testing.assert_array_equal(found, infer(judge, IMAGES)[0])
    change = np.abs(found - infer(model, IMAGES)[0]).max()
    assert 1e-4 < change < 0.1


def test_undo_gives_the_model_back() -> None:
    model = written_by_paddle("b")
    made = EnableObservers()(model)
    assert to_bytes(EnableObservers(undo=True)(made)) == to_bytes(model)
    assert EnableObservers()(made) is made
    assert EnableObservers(undo=True)(model) is model


def test_pairs_that_were_active_stay_active() -> None:
    model = quantized(residual_net())
    assert EnableObservers()(model) is model
    assert EnableObservers(undo=True)(model) is model


def test_in_encoding_c() -> None:
    model = written_by_paddle("b")
    one = EnableObservers()(ConvertEncoding("C")(model))
    np.testing.assert_array_equal(infer(one, IMAGES)[0], infer(EnableObservers()(model), IMAGES)[0])


def test_what_was_switched_on_is_stripped() -> None:
    model = written_by_paddle("b")
    assert StripQuant()(EnableObservers()(model)).graph == StripQuant()(model).graph


def test_by_name() -> None:
    assert parse_passes("enable-observers,enable-observers{undo=true}") == (
        EnableObservers(),
        EnableObservers(undo=True),
    )
