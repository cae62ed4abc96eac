"""Batches of recorded samples in another order than they were fed in: gathered row by row from the calls."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qpass.analysis.outputs import Outputs
from qpass.runtime.replay import Recording


@dataclass(frozen=True)
class Gathered:
    """Samples that are run as one batch.

    Parameters
    ----------
    units : tuple of int
        What they are among `Units`: one for each sample, or one for all.
    places : tuple of (int, int)
        Call and row of each sample.
    whole : bool
        They are all samples of one call.
    """

    units: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    whole: bool

    def feed(self, recording: Recording) -> Mapping[str, np.ndarray]:
        """The batch."""
        if self.whole:
            return recording.feed(self.places[0][0])
        feeds = [recording.rows(call, rows) for call, rows in self._runs()]
        return {name: np.concatenate([feed[name] for feed in feeds]) for name in recording.feed_names}

    def split(self, outputs: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """The outputs, as one piece."""
        yield list(outputs)

    def of(self, source: Outputs) -> list[np.ndarray]:
        """The same samples of arrays that are kept by call."""
        if self.whole:
            return source(self.places[0][0])
        parts = [source.rows(call, rows) for call, rows in self._runs()]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _runs(self) -> list[tuple[int, list[int]]]:
        """Neighbours in one call together."""
        runs: list[tuple[int, list[int]]] = []
        for call, row in self.places:
            if not runs or runs[-1][0] != call:
                runs.append((call, []))
            runs[-1][1].append(row)
        return runs


@dataclass(frozen=True)
class Units:
    """What of a recording can be run on its own: a sample, or a call where samples of a batch depend on each other.

    Parameters
    ----------
    recording : Recording
    single : bool
        Samples can be run on their own.
    """

    recording: Recording
    single: bool

    @property
    def total(self) -> int:
        """Their number."""
        return self.samples if self.single else self.recording.calls

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.offsets[-1])

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Where the samples of each call begin in recorded order, and at last where they end: int64 [calls + 1]."""
        return np.cumsum([0, *map(self.recording.samples, range(self.recording.calls))])

    def batches(self, chosen: Sequence[int], limit: int) -> list[Gathered]:
        """Batches of some units, in which samples have equal shapes.

        Parameters
        ----------
        chosen : sequence of int
        limit : int
            Most samples of a batch, where there is a choice.
        """
        if not self.single:
            counts = map(self.recording.samples, chosen)
            return [
                Gathered((call,), tuple((call, row) for row in range(count)), whole=True)
                for call, count in zip(chosen, counts, strict=True)
            ]
        alike: dict[object, list[int]] = {}
        for unit in chosen:
            shapes = self.recording.shapes(self._place(unit)[0])
            alike.setdefault(tuple(shape[1:] for shape in shapes), []).append(unit)
        runs = [units[at : at + limit] for units in alike.values() for at in range(0, len(units), limit)]
        return [Gathered(tuple(units), tuple(map(self._place, units)), whole=False) for units in runs]

    def figures(self, samples: np.ndarray) -> np.ndarray:
        """Figures of units, whose mean is the mean over samples, from those of all samples in recorded order."""
        if self.single:
            return samples
        sums = [part.sum() for part in np.split(samples, self.offsets[1:-1])]
        return np.array(sums) * (self.total / self.samples)

    def _place(self, unit: int) -> tuple[int, int]:
        call = int(np.searchsorted(self.offsets, unit, side="right")) - 1
        return call, unit - int(self.offsets[call])
