"""Samples put together to batches, for data that come one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

from qpass.errors import DataError, UsageError

Samples: TypeAlias = Iterable[object] | Callable[[], object]
"""Samples, or a function that gives them: arrays without batch axis, one (models with one input), a tuple or list by
feed order, or a dict by feed name."""


def batched(samples: Samples, batch_size: int) -> Callable[[], Iterator[object]]:
    """A function that goes over the batches of `samples`.

    The last batch is dropped where it is not full, as Paddle does with sample generators, unless it is the only one.

    Parameters
    ----------
    samples : Samples
        A function is called for every pass over the data; what can be read only once, only for one pass.
    batch_size : int
        At least 1.

    Raises
    ------
    UsageError
        If `batch_size` is no number >= 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"batch_size is {batch_size!r}, expected a whole number >= 1")

    def batches() -> Iterator[object]:
        made = samples() if callable(samples) else samples
        if not isinstance(made, Iterable):
            raise DataError(f"the sample generator gave {type(made).__name__}, expected samples", where="data")
        kept: list[object] = []
        full = 0
        for sample in made:
            kept.append(sample)
            if len(kept) == batch_size:
                full += 1
                yield _stacked(kept, full)
                kept = []
        if kept and not full:
            yield _stacked(kept, 1)

    return batches


def _stacked(samples: list[object], number: int) -> object:
    first = samples[0]
    try:
        if isinstance(first, Mapping):
            return {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in first}  # type: ignore[index]
        if isinstance(first, (list, tuple)):
            return [np.stack([np.asarray(value) for value in values]) for values in zip(*samples, strict=True)]
        return np.stack([np.asarray(sample) for sample in samples])
    except (ValueError, TypeError, KeyError, IndexError) as e:
        raise DataError(
            f"its {len(samples)} samples do not make a batch ({type(e).__name__}: {e})",
            where=f"batch {number}",
            hint="every sample needs the same arrays in the same shapes; a shape that changes needs batch_size=1",
        ) from e
