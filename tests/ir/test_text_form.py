"""The text form: it reads back exactly, hides what it says it hides, and its errors say where and what."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Builder
from support.corpus import PROGRAMS, corpus
from support.strategies import models

from qpass.errors import FormatError
from qpass.formats import pdmodel
from qpass.ir.graph import Decl, Graph
from qpass.ir.model import Model
from qpass.ir.op import Attr, AttrKind, Op
from qpass.ir.schema import DEBUG_ATTRS
from qpass.ir.text import dump, parse

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "small_net.txt"


def small_net() -> Model:
    """The model of the golden file; its numbers are exact in every numpy."""
    build = Builder().feed("x", [-1, 1, 4, 4])
    weight = build.param("conv w", np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3))
    build.conv2d(1, weight=weight).add(build.current)
    build.op("batch size", {"X": ["x", "", "@EMPTY@"], "None": ()}, {}, every_kind())
    return build.unary("relu", {"op_device": Attr.str("cpu"), "op_role": Attr.int(0)}).model()


def every_kind() -> dict[str, Attr]:
    return {
        "int": Attr.int(-3),
        "float": Attr.float(0.10000000149011612),
        "string": Attr.str('"\u6743\n#\\'),
        "ints": Attr.ints((1, -1)),
        "floats": Attr(AttrKind.FLOATS, (math.inf, -math.inf, -0.0, 2.0**-149)),
        "strings": Attr.strs(("", "a b")),
        "boolean": Attr.bool(True),
        "booleans": Attr(AttrKind.BOOLEANS, (False, True)),
        "long": Attr(AttrKind.LONG, 2**62),
        "longs": Attr(AttrKind.LONGS, ()),
        "float64": Attr(AttrKind.FLOAT64, 0.1),
        "float64s": Attr(AttrKind.FLOAT64S, (5e-324,)),
        "var": Attr(AttrKind.VAR, "x"),
        "vars": Attr(AttrKind.VARS, ("x", "y")),
        "no value": Attr(AttrKind.INT, None),
    }


def structure(model: Model) -> tuple[tuple[Graph, ...], bytes]:
    return model.blocks, model.extra


def test_golden():
    assert dump(small_net()) == GOLDEN.read_text(encoding="utf-8")


@given(models())
@settings(max_examples=100)
def test_full_text_reads_back_exactly(model: Model):
    again = parse(dump(model, full=True))
    assert structure(again) == structure(model)
    assert pdmodel.encode(*structure(again)) == pdmodel.encode(*structure(model))


@given(models())
def test_plain_text_reads_back_without_what_it_hides(model: Model):
    again = parse(dump(model))
    for old, new in zip(model.blocks, again.blocks, strict=True):
        assert [op.type for op in new.ops] == [op.type for op in old.ops]
        assert [op.inputs for op in new.ops] == [op.inputs for op in old.ops]
        assert [op.outputs for op in new.ops] == [op.outputs for op in old.ops]
        for a, b in zip(old.ops, new.ops, strict=True):
            assert dict(b.attrs) == {k: v for k, v in a.attrs.items() if k not in DEBUG_ATTRS}
        assert all(not decl.extra for decl in new.decls.values())
    assert not again.extra


@pytest.mark.parametrize("path", PROGRAMS)
def test_corpus_reads_back_exactly(path: str):
    data = corpus(path).read_bytes()
    blocks, extra = pdmodel.decode(data, path)
    again = parse(dump(Model(blocks, extra=extra), full=True))
    assert structure(again) == (blocks, extra)
    assert pdmodel.encode(*structure(again)) == data


def test_hidden_attributes_are_counted_and_shown_when_full():
    model = small_net()
    line = next(line for line in dump(model).splitlines() if line.startswith("  relu("))
    assert line.endswith("{}  # +2 hidden")
    full = dump(model, full=True)
    assert '{op_device: string "cpu", op_role: int 0}' in full
    assert "hidden" not in full


def test_every_kind_keeps_its_kind_and_value():
    parsed = parse(dump(small_net(), full=True))
    attrs = next(op for op in parsed.graph.ops if op.type == "batch size").attrs
    assert {k: (a.kind, repr(a.value)) for k, a in attrs.items()} == {
        k: (a.kind, repr(a.value)) for k, a in every_kind().items()
    }


@given(st.sampled_from((AttrKind.FLOAT, AttrKind.FLOAT64)), st.floats())
def test_floats_read_back_exactly(kind: AttrKind, value: float):
    graph = Graph((Op("op", attrs={"a": Attr(kind, value)}, uid=0),))
    read = parse(dump(Model((graph,)))).graph.ops[0].attr("a")
    assert math.isnan(read) if math.isnan(value) else repr(read) == repr(value)


def test_equal_models_have_equal_text_and_parameters_show_in_it():
    model = small_net()
    assert dump(model) == dump(small_net())
    other = model.replaced(params=model.params.replaced({"conv w": model.params["conv w"] + 1}))
    before, after = dump(model).splitlines(), dump(other).splitlines()
    changed = [line for line in after if line not in before]
    assert len(changed) == 1
    assert changed[0].startswith('param "conv w" float32[1, 1, 3, 3] sha256 ')


def test_versions_and_comments_are_optional():
    head = "qpass text 1\n# a comment\nblock 0 parent -1\n\n"
    graph = parse(head + "  var a: tensor float32[]  # here too\n  f(X: [a]) -> (Out: [a]) {}\n").graph
    assert graph.ops[0] == Op.make("f", {"X": "a"}, {"Out": "a"})
    assert graph.decls["a"] == Decl("a")


HEAD = "qpass text 1\nblock 0 parent -1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the text is empty, expected 'qpass text 1'"),
        ("{}", "line 1, column 1: expected 'qpass text 1', found '{}'"),
        ("qpass text 12\nblock 0 parent -1", "line 1, column 13: expected the end of the line, found '2'"),
        ("qpass text 1\n", "line 2: the text ends, expected 'block'"),
        ("qpass text 1\nf() -> () {}", "line 2, column 1: expected 'block', found 'f() -> () {}'"),
        ("qpass text 1\nblock zero", "line 2, column 7: expected an integer, found 'zero'"),
        (HEAD + "  f(", "line 3, column 5: expected a name, found 'the end of the line'"),
        (HEAD + "  f() () {}", "line 3, column 7: expected '->', found '() {}'"),
        (HEAD + "  f(X: [a b]) -> () {}", "line 3, column 11: expected ',', found 'b]) -> () {}'"),
        (HEAD + "  f(X: [], X: []) -> () {}", "line 3, column 13: expected a new name; 'X' is given twice"),
        (HEAD + '  "f() -> () {}', "line 3, column 3: expected a JSON string"),
        (HEAD + "  f(X: [a@1]) -> () {}", "line 3, column 11: expected version 0 of 'a', found '1]) -> () {}'"),
        (HEAD + "  f() -> (Out: [a@2]) {}", "line 3, column 19: expected version 1 of 'a'"),
        (HEAD + "  f() -> () {a: word 1}", "line 3, column 17: expected an attribute kind (int, float, string,"),
        (HEAD + "  f() -> () {a: int " + "9" * 5000, "line 3, column 40: expected ',', found '9999"),
        (HEAD + "  f() -> () {a: string " + "[" * 9999, "line 3, column 24: expected a JSON string"),
        (HEAD + "  f() -> () {a: int 1.5}", "line 3, column 22: expected ',', found '.5}'"),
        (HEAD + "  f() -> () {a: boolean yes}", "line 3, column 25: expected 'true' or 'false', found 'yes}'"),
        (HEAD + "  f() -> () {a: string b}", "line 3, column 24: expected a JSON string, found 'b}'"),
        (HEAD + "  f() -> () {a: float x}", "line 3, column 23: expected a number, found 'x}'"),
        (HEAD + "  f() -> () {a: scalar 12}", "line 3, column 24: expected 0x and pairs of hexadecimal digits"),
        (HEAD + "  f() -> () {} more", "line 3, column 16: expected the end of the line, found 'more'"),
        (HEAD + "  var a tensor", "line 3, column 9: expected ':', found 'tensor'"),
        (HEAD + "  var a: tensor float31[]", "line 3, column 17: expected an element type (bool, int8,"),
        (HEAD + "  var a: tensor\n  var a: tensor", "line 4, column 8: expected a new name; 'a' is declared above"),
        (HEAD + "param w float32[] md5 00", "line 3, column 19: expected 'sha256', found 'md5 00'"),
    ],
)
def test_errors_name_the_place_and_the_expectation(text: str, message: str):
    with pytest.raises(FormatError) as found:
        parse(text)
    assert str(found.value).startswith(message)


@given(models(max_ops=3), st.data())
def test_damaged_text_ends_in_format_error_or_a_model(model: Model, data: st.DataObject):
    text = dump(model, full=True)
    at = data.draw(st.integers(0, len(text)))
    damaged = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 5)) :]
    with contextlib.suppress(FormatError):
        parse(damaged)
