"""A `.pdiparams` that is damaged, hostile, or another model's: one QPassError that names the place."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from support.build import Builder
from support.corpus import corpus

from qpass.errors import FormatError, QPassError, VerifyError
from qpass.formats import pdiparams
from qpass.formats.files import load, load_bytes, to_bytes
from qpass.ir.model import Model


def varint(n: int) -> bytes:
    n %= 2**64
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def description(dims: Sequence[int], dtype: int = 5) -> bytes:
    return b"\x08" + varint(dtype) + b"".join(b"\x10" + varint(d) for d in dims)


def record(
    dims: Sequence[int],
    data: bytes,
    *,
    dtype: int = 5,
    version: int = 0,
    lod: int = 0,
    tensor: int = 0,
    length: int | None = None,
    extra: bytes = b"",
) -> bytes:
    desc = description(dims, dtype) + extra
    return struct.pack("<IQIi", version, lod, tensor, len(desc) if length is None else length) + desc + data


def bias_model(*names: str) -> Model:
    """x plus one bias of four floats a name."""
    builder = Builder().feed("x", [-1, 4])
    for name in names or ("b",):
        builder.add(builder.param(name, (4,)))
    return builder.model()


PROGRAM = to_bytes(bias_model())[0]
GOOD = struct.pack("<4f", 1, 2, 3, 4)


def test_the_helper_writes_a_record_that_loads() -> None:
    model = load_bytes(PROGRAM, record([4], GOOD))
    np.testing.assert_array_equal(model.params["b"], np.array([1, 2, 3, 4], np.float32))
    assert to_bytes(model)[1] == record([4], GOOD)


@pytest.mark.parametrize(
    ("params", "expectation"),
    [
        (b"", "ends after 0 of 1 parameters; the next is 'b'"),
        (b"\0" * 7, "7 bytes are left, a record header needs 20"),
        (record([4], GOOD, version=1), "version 1"),
        (record([4], GOOD, lod=1), "1 LoD levels"),
        (record([4], GOOD, lod=2**64 - 1), "LoD levels"),
        (record([4], GOOD, tensor=9), "tensor version 9"),
        (record([4], GOOD, length=-5), "-5 bytes"),
        (record([4], GOOD, length=0), "0 bytes"),
        (record([4], GOOD, length=2**31 - 1), "2147483647 bytes"),
        (record([4], GOOD, length=1), "not a tensor description"),
        (record([4], GOOD, dtype=99), "no known element type"),
        (record([4], GOOD, dtype=7), "element type number 7"),
        (record([4], GOOD, extra=b"\x98\x06\x01"), "unknown fields"),
        (record([-4], GOOD), "negative"),
        (record([-1], GOOD), "negative"),
        (record([5], GOOD), "needs 20 bytes, 16 are left"),
        (record([2**62], GOOD), "too large"),
        (record([2**31, 2**31, 2**31], GOOD), "too large"),
        (record([2**40], GOOD), "needs 4398046511104 bytes"),
        (record([0, 2**40, 2**40], b""), "too large"),
        (record([1] * 40, GOOD), "too large"),
        (record([4], GOOD[:-1]), "needs 16 bytes, 15 are left"),
        (record([4], GOOD) + b"\0", "1 bytes are left after the 1 parameters"),
        (record([4], GOOD) * 2, "bytes are left after the 1 parameters"),
    ],
)
def test_a_damaged_record_is_named(params: bytes, expectation: str) -> None:
    with pytest.raises(FormatError) as caught:
        load_bytes(PROGRAM, params)
    assert expectation in caught.value.what
    assert "parameter bytes, offset " in (caught.value.where or "")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("params", "expectation"),
    [
        (record([2, 2], GOOD), "shape [2, 2], its declaration says [4]"),
        (record([2], GOOD[:8]), "shape [2], its declaration says [4]"),
        (record([0], b""), "shape [0]"),
        (record([2], GOOD, dtype=6), "float64"),
        (record([4], GOOD[:8], dtype=4), "float16"),
    ],
)
def test_a_record_that_does_not_fit_its_declaration_is_named(params: bytes, expectation: str) -> None:
    with pytest.raises(VerifyError) as caught:
        load_bytes(PROGRAM, params)
    assert expectation in caught.value.what
    assert caught.value.where == "program bytes, parameter 'b'"


def test_fewer_and_more_parameters_than_the_program_declares() -> None:
    few, many = to_bytes(bias_model("b", "c")), to_bytes(bias_model("b", "c", "d"))
    with pytest.raises(FormatError, match="ends after 2 of 3 parameters; the next is 'd'"):
        load_bytes(many[0], few[1])
    with pytest.raises(FormatError, match="bytes are left after the 2 parameters"):
        load_bytes(few[0], many[1])


def test_another_models_parameters_are_refused() -> None:
    program = corpus("models/ppocr_cls/inference.pdmodel").read_bytes()
    for other in ("ppocr_cls_qat", "resnet8_cifar10", "mobilenetv3_small_x0_35"):
        with pytest.raises(QPassError):
            load_bytes(program, corpus(f"models/{other}/inference.pdiparams").read_bytes())


def test_every_truncation_is_refused(tmp_path) -> None:
    folder = corpus("models/resnet8_cifar10")
    program, params = ((folder / f"inference.{s}").read_bytes() for s in ("pdmodel", "pdiparams"))
    (tmp_path / "m.pdmodel").write_bytes(program)
    for end in [*range(0, 60), *range(60, len(params), 7999), len(params) - 1]:
        (tmp_path / "m.pdiparams").write_bytes(params[:end])
        with pytest.raises(FormatError, match=r"m\.pdiparams, offset \d+"):
            load(tmp_path / "m")


def test_a_record_of_every_element_type() -> None:
    for code, name in ((0, "bool"), (1, "int16"), (3, "int64"), (20, "uint8"), (21, "int8"), (22, "uint16")):
        array = np.array([1, 0, 1, 1]).astype(name)
        data = record([4], array.tobytes(), dtype=code)
        assert b"".join(pdiparams.encode({"b": array})) == data
        np.testing.assert_array_equal(
            pdiparams.decode(np.frombuffer(data, np.uint8), ["b"], "x")["b"], array, strict=True
        )


def test_big_endian_and_strided_arrays_are_written_as_little_endian_rows() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    assert b"".join(pdiparams.encode({"b": array})) == record([3, 2], struct.pack("<6f", 0, 3, 1, 4, 2, 5))


def test_scalars_and_empty_arrays() -> None:
    for shape in ((), (0,), (3, 0)):
        array = np.zeros(shape, np.float32)
        data = b"".join(pdiparams.encode({"b": array}))
        assert data == record(shape, array.tobytes())
        assert pdiparams.decode(np.frombuffer(data, np.uint8), ["b"], "x")["b"].shape == shape


def test_an_element_type_that_paddle_has_not_is_refused() -> None:
    with pytest.raises(FormatError, match="parameter 'b': Paddle has no tensors of uint32"):
        b"".join(pdiparams.encode({"b": np.zeros(3, np.uint32)}))
