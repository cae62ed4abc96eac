from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.full_disk import file_size_limit

from qpass.errors import DataError
from qpass.runtime.spool import Spool

ARRAYS = hnp.arrays(
    dtype=st.sampled_from(["f4", "f8", "i8", "i4", "u1", "u2", "f2", "?"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@given(items=st.lists(st.lists(ARRAYS, max_size=3), max_size=6), memory=st.sampled_from([0, 50, 1 << 20]))
def test_a_spool_gives_back_what_it_was_given(items: list[list[np.ndarray]], memory: int) -> None:
    spool = Spool(memory)
    assert [spool.add(item) for item in items] == list(range(len(items)))
    assert len(spool) == len(items)
    total = sum(array.nbytes for item in items for array in item)
    assert total - memory <= spool.disk_bytes <= (0 if total <= memory else total)
    for index in reversed(range(len(items))):
        for kept, array in zip(spool[index], items[index], strict=True):
            np.testing.assert_array_equal(kept, array, strict=True)
    for first, second, item in zip(spool, spool, items, strict=True):
        for kept, again, array in zip(first, second, item, strict=True):
            assert kept.tobytes() == again.tobytes() == array.tobytes()


@given(array=ARRAYS, other=ARRAYS, memory=st.sampled_from([0, 1 << 20]), data=st.data())
def test_holds_is_equality_of_bits(array: np.ndarray, other: np.ndarray, memory: int, data: st.DataObject) -> None:
    spool = Spool(memory)
    spool.add([array, other])
    assert spool.holds(0, [array.copy(), np.array(other, order="F")])
    assert not spool.holds(0, [array])
    assert not spool.holds(0, [array[None], other])
    same = (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes())
    assert spool.holds(0, [other, array]) == same
    if other.size:
        bits = np.frombuffer(other.tobytes(), np.uint8).copy()
        bits[data.draw(st.integers(0, bits.size - 1))] ^= 1
        assert not spool.holds(0, [array, bits.view(other.dtype).reshape(other.shape)])


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("at", [0, (1 << 18) - 1, 1 << 18, 900_000, 999_999])
def test_a_difference_anywhere_in_a_large_array_is_seen(memory: int, at: int) -> None:
    array = np.random.default_rng(1).integers(0, 256, 1_000_000, dtype=np.uint8)
    spool = Spool(memory)
    spool.add([array])
    assert spool.holds(0, [array])
    array[at] ^= 255
    assert not spool.holds(0, [array])


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_arrays_are_the_callers_on_both_sides(memory: int) -> None:
    spool = Spool(memory)
    given_in = np.arange(12, dtype=np.float32).reshape(3, 4).T
    spool.add([given_in])
    given_in[:] = -1
    first = spool[0][0]
    np.testing.assert_array_equal(first, np.arange(12, dtype=np.float32).reshape(3, 4).T)
    first[:] = -2
    assert spool[0][0].max() == 11


def test_many_threads_add_and_read() -> None:
    spool = Spool(5000)  # a part of it: both kinds of places are read

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            array = rng.normal(size=rng.integers(1, 60))
            index = spool.add([array, np.array(seed)])
            np.testing.assert_array_equal(spool[index][0], array)
            other = int(rng.integers(index + 1))
            values, owner = spool[other]
            assert values.size > 0
            assert 0 <= int(owner) < 8

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(spool) == 240
    assert spool.disk_bytes > 0
    assert sorted(int(owner) for _, owner in spool) == sorted(list(range(8)) * 30)


def test_a_full_disk_leaves_what_was_kept_before() -> None:
    spool = Spool(1000)
    items = [[np.full(200, i, np.float32), np.full(10, i)] for i in range(4)]
    for item in items[:2]:  # the first in memory, the second on disk
        spool.add(item)
    assert spool.disk_bytes == 880
    with file_size_limit(1500):
        with pytest.raises(DataError, match=r"temporary file: cannot keep a batch \(File too large\)\n.*TMPDIR"):
            spool.add(items[2])
        assert len(spool) == 2
        assert spool.disk_bytes == 880
        assert spool._file is not None
        assert os.fstat(spool._file.fileno()).st_size == 880  # the room is given back
        spool.add([np.arange(20.0)])  # a smaller one still has room
    spool.add(items[3])
    for kept, expected in zip(spool, [*items[:2], [np.arange(20.0)], items[3]], strict=True):
        for a, b in zip(kept, expected, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


def test_a_disk_that_is_full_from_the_start() -> None:
    spool = Spool(0)
    with file_size_limit(0), pytest.raises(DataError, match="cannot keep a batch"):
        spool.add([np.ones(3)])
    assert len(spool) == 0
    assert list(spool) == []


def test_without_a_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/nowhere/at/all"])
    with pytest.raises(DataError, match=r"No usable temporary directory .*\n.*in the temporary folder"):
        Spool(0).add([np.ones(3)])


def test_a_file_that_was_cut_is_noticed() -> None:
    spool = Spool(0)
    spool.add([np.ones(30)])
    assert spool._file is not None
    spool._file.truncate(100)
    with pytest.raises(DataError, match="is gone"):
        spool[0]
