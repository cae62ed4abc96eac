"""Every kind of data a user may hand over becomes the same checked batches; what does not fit is told."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from qpass.errors import DataError
from qpass.ir.dtype import DType
from qpass.ir.model import Port
from qpass.runtime.data import Batches
from qpass.runtime.feed import ShapeWarning

IMAGE = Port("image", DType.FLOAT32, (-1, 3, 4, 4))
IDS = Port("ids", DType.INT64, (-1, 2))
X = np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
I = np.arange(12).reshape(6, 2)  # noqa: E741
Y = np.arange(6)


def same(batches: Batches, sizes: list[int], *, ids: bool = False) -> None:
    """Two passes give X (and I) in cuts of these sizes."""
    for _ in range(2):
        start = 0
        found = list(batches)
        assert [len(b["image"]) for b in found] == sizes
        for batch, size in zip(found, sizes, strict=True):
            np.testing.assert_array_equal(batch["image"], X[start : start + size])
            assert list(batch) == (["image", "ids"] if ids else ["image"])
            if ids:
                np.testing.assert_array_equal(batch["ids"], I[start : start + size])
                assert batch["ids"].dtype == np.int64
            start += size


@pytest.mark.parametrize(
    "data",
    [
        [X[:4], X[4:]],
        ([X[:4]], [X[4:]]),
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        [[X[:4], Y[:4], "a note"], [X[4:], Y[4:], "another"]],
        [{"image": X[:4]}, {"image": X[4:], "label": Y[4:]}],
        [{"x": X[:4]}, {"x": X[4:]}],
        [[{"image": X[:4]}], [{"image": X[4:]}]],
        X,
        {"image": X},
        {"image": X, "label": Y},
        {"x": X},
        lambda: iter([X[:4], X[4:]]),
        lambda: [X[:4], X[4:]],
        lambda: X,
        [X[:4].astype(np.float64), [X[4:].tolist()]],
        [np.asfortranarray(X[:4]), X[:, :, ::-1][4:, :, ::-1]],
    ],
)
def test_one_input(data: Any) -> None:
    same(Batches([IMAGE], data, batch_size=4), [4, 2])


@pytest.mark.parametrize(
    "data",
    [
        [(X[:4], I[:4]), (X[4:], I[4:])],
        [(X[:4], I[:4].astype(np.int32), Y[:4]), (X[4:], I[4:], Y[4:])],
        [{"ids": I[:4], "image": X[:4]}, {"ids": I[4:], "image": X[4:]}],
        {"ids": I, "image": X},
    ],
)
def test_two_inputs(data: Any) -> None:
    same(Batches([IMAGE, IDS], data, batch_size=4), [4, 2], ids=True)


def test_generators_are_kept_as_far_as_they_were_read() -> None:
    pulled = []

    def source() -> Iterator[np.ndarray]:
        for i in range(3):
            pulled.append(i)
            yield X[2 * i : 2 * i + 2]

    batches = Batches([IMAGE], source())
    first = next(iter(batches))
    np.testing.assert_array_equal(first["image"], X[:2])
    assert pulled == [0]
    same(batches, [2, 2, 2])
    assert pulled == [0, 1, 2]


def test_a_generator_too_large_to_be_kept() -> None:
    batches = Batches([IMAGE], iter([X[:4], X[4:]]), cache_bytes=X.nbytes - 1)
    assert len(list(batches)) == 2
    with pytest.raises(DataError, match="too large to be kept") as caught:
        list(batches)
    assert "function that returns a new generator" in str(caught.value)


def test_a_generator_that_was_read_before() -> None:
    data = iter([X])
    list(data)
    with pytest.raises(DataError, match="had been read before"):
        list(Batches([IMAGE], data))


def test_functions_are_called_again_only_for_generators() -> None:
    calls = []

    def generator() -> Iterator[np.ndarray]:
        calls.append("generator")
        return iter([X])

    def array() -> np.ndarray:
        calls.append("array")
        return X

    for function in (generator, array):
        batches = Batches([IMAGE], function)
        list(batches)
        list(batches)
    assert calls == ["generator", "generator", "array"]


def test_limit() -> None:
    same_start = Batches([IMAGE], X, batch_size=2, limit=2)
    assert [len(b["image"]) for b in same_start] == [2, 2]
    with pytest.raises(DataError, match="number of batches is 0"):
        Batches([IMAGE], X, limit=0)


def test_digest_is_of_names_shapes_and_bytes() -> None:
    expected = hashlib.sha256()
    for part in (X[:4], X[4:]):
        expected.update(f"image\0<f4{part.shape}".encode() + part.tobytes())
    assert Batches([IMAGE], [X[:4], X[4:]]).digest() == expected.hexdigest()
    assert Batches([IMAGE], X, batch_size=4).digest() == expected.hexdigest()
    changed = X.copy()
    changed[5, 2, 3, 3] = np.nextafter(changed[5, 2, 3, 3], np.float32(9))
    others = [Batches([IMAGE], changed, batch_size=4), Batches([IMAGE], X, batch_size=3), Batches([IMAGE], X, limit=1)]
    assert len({expected.hexdigest(), *(b.digest() for b in others)}) == 4


def test_digest_of_a_whole_pass_costs_no_second_one() -> None:
    passes = []

    def source() -> Iterator[np.ndarray]:
        passes.append(1)
        return iter([X])

    batches = Batches([IMAGE], source)
    next(iter(batches))
    list(batches)
    batches.digest()
    assert len(passes) == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "there is no batch"),
        (
            [{"img": X}],
            r"inputs \['image'\] are missing; it has \['img'\]\n.*expects \['image: float32\[-1, 3, 4, 4\]'",
        ),
        ([()], "0 arrays for 1 inputs"),
        ([X[0]], r"batch 1, input 'image': shape \[3, 4, 4\] has rank 3.*\n.*add the batch dimension"),
        ([X.transpose(0, 2, 3, 1)], r"has 4 at dimension 1.*\n.*transpose to NCHW"),
        ([X, X[:, :2]], r"batch 2, input 'image': shape \[6, 2, 4, 4\] has 2 at dimension 1"),
        ([X[:0]], r"the array is empty: shape \[0, 3, 4, 4\]"),
        ([X.astype(np.uint8)], r"dtype is uint8, the model expects float32\n.*scaled and normalized"),
        ([X.astype(np.float16)], r"dtype is float16.*\n.*astype\('float32'\)"),
        ([X.astype(np.int64)], "dtype is int64"),
        ([X.astype(np.complex64)], "of dtype complex64 is no array of numbers"),
        ([["a", "b"]], "no array of numbers"),
        ([[[[1, 2], [3]]]], "is no array"),
        ([None], "no array of numbers"),
        ([np.full_like(X, 1e300, np.float64)], "does not fit in float32"),
        ({"image": X, "label": Y[:3]}, r"lengths along axis 0 are \{'image': 6, 'label': 3\}"),
        (np.float32(3), "expected an iterable"),
        (np.zeros(()), "cannot be cut"),
        (3, "data are int, expected an iterable"),
        ("calibration.npz", r"data are str.*\n.*load_data"),
        (lambda: None, "returned NoneType"),
        (lambda: 1 / 0, "the data source raised ZeroDivisionError"),
    ],
)
def test_what_does_not_fit(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(Batches([IMAGE], data))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_name_batch_and_input(bad: float) -> None:
    broken = X.copy()
    broken[5, 0, 0, :2] = bad
    with pytest.raises(DataError, match="batch 2, input 'image': 2 of 96 numbers are NaN or infinite"):
        list(Batches([IMAGE], broken, batch_size=4))
    with pytest.raises(DataError, match="batch 1, input 'image': 2 of 288"):
        list(Batches([IMAGE], broken.astype(np.float64), batch_size=8))


def test_two_inputs_that_do_not_fit_each_other() -> None:
    with pytest.raises(DataError, match=r"different batch sizes: \{'image': 4, 'ids': 3\}"):
        list(Batches([IMAGE, IDS], [(X[:4], I[:3])]))
    with pytest.raises(DataError, match="1 arrays for 2 inputs"):
        list(Batches([IMAGE, IDS], [X]))
    with pytest.raises(DataError, match="input 'image'"):
        list(Batches([IMAGE, IDS], [(I, X)]))


def test_other_heights_and_widths_are_a_warning_once() -> None:
    wide = np.zeros((2, 3, 8, 16), np.float32)
    with pytest.warns(ShapeWarning, match=r"shape \[2, 3, 8, 16\], the program declares \[-1, 3, 4, 4\]") as caught:
        assert len(list(Batches([IMAGE], [wide, wide]))) == 2
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(Batches([Port("image", DType.FLOAT32, (-1, 3, -1, -1))], [wide]))
        list(Batches([IMAGE], X))


def test_a_source_that_fails_midway_says_where() -> None:
    def source() -> Iterator[np.ndarray]:
        yield X
        raise OSError("disk gone")

    with pytest.raises(DataError, match="after batch 1: the data source raised OSError: disk gone"):
        list(Batches([IMAGE], source))


def test_an_exception_of_the_reader_is_its_own() -> None:
    def read() -> None:
        for _ in Batches([IMAGE], X):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        read()


def loader(**options: Any) -> Any:
    import paddle

    class Pictures(paddle.io.Dataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return X[index], Y[index]

        def __len__(self) -> int:
            return len(X)

    return paddle.io.DataLoader(Pictures(), batch_size=4, **options)


def test_data_loader_in_dynamic_mode() -> None:
    same(Batches([IMAGE], loader()), [4, 2])


@pytest.mark.parametrize("return_list", [True, False])
def test_data_loader_in_static_mode(return_list: bool) -> None:
    import paddle

    paddle.enable_static()
    try:
        with legacy_program():
            feeds = [paddle.static.data("image", [-1, 3, 4, 4]), paddle.static.data("label", [-1], "int64")]
            source = loader(feed_list=feeds, return_list=return_list, places=paddle.CPUPlace())
            same(Batches([IMAGE], source), [4, 2])
    finally:
        paddle.disable_static()


def legacy_program() -> Any:
    from qpass.runtime.paddle_env import legacy_static

    return legacy_static()


def test_a_dataset_is_no_data_loader() -> None:
    import paddle

    class One(paddle.io.Dataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> np.ndarray:
            return X[index]

    with pytest.raises(DataError, match=r"wrap a dataset in paddle\.io\.DataLoader"):
        Batches([IMAGE], One())


def test_model_data_are_taken_as_they_are() -> None:
    from support.build import Builder

    model = Builder().feed("image", [-1, 3, 4, 4]).relu().model()
    batches = Batches.of(model, X)
    assert Batches.of(model, batches) is batches
    assert Batches.of(model, batches, limit=1) is not batches
    make: Callable[[], Batches] = lambda: Batches.of(model, batches, limit=1)  # noqa: E731
    assert len(list(make())) == 1
