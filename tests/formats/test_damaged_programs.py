"""A `.pdmodel` that is not one: a single FormatError that names the place, never anything else."""

from __future__ import annotations

import pytest
from support.build import Builder
from support.corpus import corpus

from qpass.errors import FormatError, QPassError, VerifyError
from qpass.formats import pdmodel
from qpass.formats.files import load_bytes, to_bytes
from qpass.ir.graph import Decl
from qpass.ir.model import Model
from qpass.ir.op import Attr, AttrKind, AttrValue, Op
from qpass.rewrite.edit import edit

# Fields of framework.proto, by number.
BLOCKS, VARS, OPS, IDX, PARENT = 1, 3, 4, 1, 2
OP_TYPE, OP_INPUTS, OP_OUTPUTS, OP_ATTRS = 3, 1, 2, 4
ROOT_PARENT = 2**64 - 1


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def record(field: int, *content: bytes) -> bytes:
    body = b"".join(content)
    return varint(field << 3 | 2) + varint(len(body)) + body


def program(*records: bytes) -> bytes:
    """One block with the given vars and ops, as bytes on the wire."""
    return record(BLOCKS, number(IDX, 0), number(PARENT, ROOT_PARENT), *records)


def op(*content: bytes, kind: bytes = b"relu") -> bytes:
    return record(OPS, *content, record(OP_TYPE, kind))


def tensor(name: bytes, *dims: int, dtype: int = 5, extra: bytes = b"") -> bytes:
    desc = number(1, dtype) + b"".join(number(2, d % 2**64) for d in dims)
    return record(VARS, record(1, name), record(2, number(1, 7), record(3, record(1, desc))), extra)


def attr(name: bytes, kind: int, *content: bytes) -> bytes:
    return record(OP_ATTRS, record(1, name), number(2, kind), *content)


def test_the_wire_helpers_write_a_program_that_loads() -> None:
    model = load_bytes(program(tensor(b"a", 2, 3), op(attr(b"axis", 0, number(3, 7)))))
    assert model.graph.decls["a"] == Decl("a", shape=(2, 3), extra=model.graph.decls["a"].extra)
    assert model.graph.ops[0].attrs == {"axis": Attr.int(7)}


@pytest.mark.parametrize(
    ("data", "place", "expectation"),
    [
        (b"", "program bytes", "empty"),
        (b"\x00", "program bytes", "not a Paddle program"),
        (b"garbage that is no protobuf", "program bytes", "not a Paddle program"),
        (b"PK\x03\x04" + bytes(100), "program bytes", "Paddle program"),
        (number(99, 1), "program bytes", "without blocks"),
        (b' {"base_code": {}}', "program bytes", "PIR"),
        (program(op(kind=b"\xff\xfe")), "block 0, op 0", "not UTF-8"),
        (program(op(attr(b"\xff", 0, number(3, 1)))), "op 0 (relu)", "not UTF-8"),
        (program(op(attr(b"s", 2, record(5, b"\xff")))), "op 0 (relu)", "not UTF-8"),
        (program(op(attr(b"s", 5, record(8, b"ok"), record(8, b"\xff")))), "op 0 (relu)", "not UTF-8"),
        (program(op(record(OP_INPUTS, record(1, b"X"), record(2, b"\xff")))), "op 0 (relu)", "not UTF-8"),
        (program(op(record(OP_INPUTS, record(1, b"\xff")))), "op 0 (relu)", "not UTF-8"),
        (program(tensor(b"\xff")), "block 0", "not UTF-8"),
        (program(op(attr(b"a", 40, number(3, 1)))), "program bytes", "blocks[0].ops[0].attrs[0].type"),
        (program(op(record(OP_ATTRS, record(1, b"a")))), "program bytes", "blocks[0].ops[0].attrs[0].type"),
        (program(tensor(b"w", dtype=99)), "program bytes", "data_type"),
        (program(tensor(b"w", dtype=7)), "variable 'w'", "element type number 7"),
        (program(tensor(b"w", 3, -2)), "variable 'w'", "negative"),
        (program(tensor(b"w"), tensor(b"w")), "block 0", "declared twice"),
        (program(op(attr(b"a", 0), attr(b"a", 1))), "op 0 (relu)", "given twice"),
        (program(op(record(OP_INPUTS, record(1, b"X")), record(OP_INPUTS, record(1, b"X")))), "op 0", "given twice"),
        (record(BLOCKS, number(IDX, 3), number(PARENT, ROOT_PARENT)), "block 0", "calls itself 3"),
        (record(BLOCKS, number(IDX, 0), number(PARENT, 0)), "block 0", "parent 0"),
        (program() + record(BLOCKS, number(IDX, 1), number(PARENT, 1)), "block 1", "parent 1"),
    ],
)
def test_damage_is_named(data: bytes, place: str, expectation: str) -> None:
    with pytest.raises(FormatError) as caught:
        load_bytes(data)
    assert place in (caught.value.where or "")
    assert expectation in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (program(op(), op(attr(b"a", 0, number(3, 1), number(77, 5)))), "block 0, op 1 (relu)"),
        (program(op(attr(b"a", 0, number(3, 1), record(5, b"also a string")))), "block 0, op 0 (relu)"),
        (program(op(record(OP_INPUTS, record(1, b"X"), number(77, 5)))), "block 0, op 0 (relu)"),
    ],
)
def test_what_would_be_lost_on_saving_is_refused(data: bytes, place: str) -> None:
    with pytest.raises(FormatError, match="would be lost") as caught:
        load_bytes(data)
    assert (caught.value.where or "").endswith(place)


@pytest.mark.parametrize(
    "data",
    [
        program(record(OPS, record(OP_TYPE, b"relu"), number(77, 5))),
        program(record(OPS, record(OP_TYPE, b"relu"), number(5, 1))),
        program(tensor(b"a", 1, extra=number(77, 5))),
        program(tensor(b"a", 1, extra=number(3, 0) + number(4, 1) + number(6, 0))),
        program(number(77, 5)),
        program() + number(77, 5),
        program(record(OPS, record(OP_TYPE, b"relu"), attr(b"none", 0))),
        program(record(OPS, record(OP_TYPE, b"relu"), attr(b"empty", 3))),
        program(record(OPS, record(OP_TYPE, b"relu"), attr(b"infinity", 1, b"\x25\x00\x00\x80\x7f"))),
    ],
)
def test_rare_and_unknown_fields_are_carried(data: bytes) -> None:
    assert to_bytes(load_bytes(data))[0] == data


def test_every_truncation_of_a_program_is_refused() -> None:
    whole = corpus("models/resnet8_cifar10/inference.pdmodel").read_bytes()
    for end in [*range(0, 200), *range(200, len(whole), 97), *range(len(whole) - 200, len(whole))]:
        try:
            model = load_bytes(whole[:end])
        except QPassError:
            continue
        # A cut between two records of the top level is a whole message; only the versions can be missing then.
        assert model.blocks == load_bytes(whole).blocks


def test_deep_nesting_is_refused() -> None:
    data = b""
    for _ in range(5000):
        data = record(77, data)
    group = varint(77 << 3 | 3) * 100_000
    assert to_bytes(load_bytes(program() + data))[0] == program() + data
    with pytest.raises(FormatError, match="not a Paddle program"):
        load_bytes(program() + group)


def test_swapped_files_are_refused() -> None:
    folder = corpus("models/resnet8_cifar10")
    a, b = (folder / "inference.pdmodel").read_bytes(), (folder / "inference.pdiparams").read_bytes()
    with pytest.raises(FormatError, match="swapped"):
        load_bytes(b, a)
    with pytest.raises(FormatError, match="swapped"):
        load_bytes(a, a)


def test_a_program_that_breaks_an_invariant_says_which_file() -> None:
    with pytest.raises(VerifyError) as caught:
        load_bytes(program(op(record(OP_INPUTS, record(1, b"X"), record(2, b"nowhere")))))
    assert (caught.value.where or "").startswith("program bytes, block 0, op 0")


def test_a_feed_column_of_the_wrong_kind_is_refused() -> None:
    feed = op(record(OP_OUTPUTS, record(1, b"Out"), record(2, b"x")), attr(b"col", 2, record(5, b"0")), kind=b"feed")
    with pytest.raises(QPassError):
        load_bytes(program(tensor(b"x", 1), feed))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (AttrKind.INT, "text"),
        (AttrKind.INT, 2**31),
        (AttrKind.LONG, 2**63),
        (AttrKind.FLOAT, "1.0"),
        (AttrKind.STRING, 3),
        (AttrKind.STRING, b"\xff"),
        (AttrKind.INTS, 3),
        (AttrKind.INTS, (1, "2")),
        (AttrKind.STRINGS, (1,)),
        (AttrKind.SCALAR, 1.5),
        (AttrKind.SCALAR, b"\xff\xff"),
        (AttrKind.SCALARS, b"\xff\xff"),
        (AttrKind.SCALARS, (1.0,)),
    ],
)
def test_an_attribute_of_the_wrong_python_type_is_refused(kind: AttrKind, value: AttrValue) -> None:
    model = _with_relu_attr(Attr(kind, value))
    with pytest.raises(FormatError) as caught:
        to_bytes(model)
    assert caught.value.where == "block 0, op 1 (relu)"
    assert "'bad'" in caught.value.what
    assert kind.name in caught.value.what


@pytest.mark.parametrize("decl", [Decl("v", shape=(2**63,)), Decl("v", kind="STEP_SCOPES"), Decl("v", shape=("a",))])
def test_a_declaration_that_cannot_be_stored_is_refused(decl: Decl) -> None:
    with edit(Builder().feed("x", [-1, 4]).relu().model()) as e:
        e.declare(decl)
    with pytest.raises(FormatError, match="'v'"):
        to_bytes(e.model)


def test_an_op_type_that_is_not_text_is_refused() -> None:
    graph = Builder().feed("x", [-1, 4]).relu().model().graph
    blocks = (type(graph)((*graph.ops, Op(7)), graph.decls),)
    with pytest.raises(FormatError, match=r"block 0, op 3"):
        pdmodel.encode(blocks, b"")


def test_a_tensor_without_element_type_can_be_declared() -> None:
    with edit(Builder().feed("x", [-1, 4]).relu().model()) as e:
        e.declare(Decl("v", dtype=None))
    assert load_bytes(*to_bytes(e.model)).graph.decls["v"].dtype is None


def _with_relu_attr(bad: Attr) -> Model:
    model = Builder().feed("x", [-1, 4]).relu().model()
    with edit(model) as e:
        e.set_attr(model.graph.ops[1], "bad", bad)
    return e.model
