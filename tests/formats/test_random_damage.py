"""Fuzzing: whatever happens to the bytes, loading gives a model or raises a QPassError, and takes no memory for it."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.corpus import corpus

from qpass.errors import QPassError
from qpass.formats.files import load_bytes, to_bytes


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """A few changes: what to do, where (as a fraction of the length), and with which bytes."""
    kinds = st.sampled_from(["set", "insert", "cut", "end"])
    return draw(
        st.lists(st.tuples(kinds, st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)), max_size=4)
    )


def damaged(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, at, new in changes:
        i = int(at * len(data))
        if kind == "set":
            data = data[:i] + new + data[i + len(new) :]
        elif kind == "insert":
            data = data[:i] + new + data[i:]
        elif kind == "cut":
            data = data[:i] + data[i + len(new) :]
        else:
            data = data[:i]
    return data


@pytest.fixture(scope="module")
def resnet() -> tuple[bytes, bytes]:
    folder = corpus("models/resnet8_cifar10")
    return (folder / "inference.pdmodel").read_bytes(), (folder / "inference.pdiparams").read_bytes()


def load_or_refuse(program: bytes, params: bytes) -> None:
    try:
        model = load_bytes(program, params)
    except QPassError:
        return
    # What loads is whole: it is saved, and loads again as the same model.
    assert load_bytes(*to_bytes(model)) == model


@settings(max_examples=200)
@given(damages())
@example([("set", 0.0, b"\x0b")])
def test_a_damaged_program_loads_or_is_refused(resnet: tuple[bytes, bytes], changes: list) -> None:
    load_or_refuse(damaged(resnet[0], changes), resnet[1])


@settings(max_examples=200)
@given(st.integers(0, 30_000), st.integers(0, 255))
def test_one_damaged_byte_loads_or_is_refused(resnet: tuple[bytes, bytes], at: int, byte: int) -> None:
    load_or_refuse(resnet[0][:at] + bytes([byte]) + resnet[0][at + 1 :], resnet[1])


@settings(max_examples=60)
@given(damages())
def test_damaged_parameters_load_or_are_refused(resnet: tuple[bytes, bytes], changes: list) -> None:
    load_or_refuse(resnet[0], damaged(resnet[1], changes))


@settings(max_examples=60)
@given(st.integers(0, 40), st.binary(min_size=1, max_size=12))
def test_damaged_record_headers_load_or_are_refused(resnet: tuple[bytes, bytes], at: int, new: bytes) -> None:
    load_or_refuse(resnet[0], resnet[1][:at] + new + resnet[1][at + len(new) :])


@settings(max_examples=200)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_noise_is_refused(program: bytes, params: bytes) -> None:
    load_or_refuse(program, params)


@pytest.mark.parametrize("at", [4, 8, 12, 16, 21, 23, 25])
@pytest.mark.parametrize("new", [b"\xff\xff\xff\x7f", b"\xff" * 8, b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"])
def test_declared_sizes_take_no_memory(resnet: tuple[bytes, bytes], at: int, new: bytes) -> None:
    params = resnet[1][:at] + new + resnet[1][at + len(new) :]
    tracemalloc.start()
    load_or_refuse(resnet[0], params)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The objects of the program, and a few copies of its bytes: far below anything that these headers declare.
    assert peak < 16e6
