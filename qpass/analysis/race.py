"""Racing: run all layers on a few samples, stop those whose places are settled, run the others on more.

The idea is O. Maron and A. Moore, Hoeffding Races (NIPS 1994): a candidate is dropped as soon as an interval around
what it has shown so far leaves no doubt, and the doubt is divided among all comparisons and all looks (Bonferroni).
Here a layer is settled when its mean loss is told apart from that of every layer still running, above or below;
groups that cannot be told apart run to the end.

The bounds are not Hoeffding's, nor the empirical Bernstein bounds of V. Mnih, C. Szepesvari and J. Audibert (ICML
2008): they hold for whatever is bounded, and with a range of 2 (probabilities lost or won) need some ``6 ln(3 / d) /
e`` samples, ten thousand and more, for the differences e of 1e-3 and less that layers have. Used is Student's
interval of the paired differences, with Bonferroni's division of ``1 - confidence`` by pairs times looks. What is to
be foreseen is the ranking over all samples at hand, of which the ones seen are drawn without replacement, so ::

    half width = t s sqrt(1/n - 1/N)      (W. Cochran, Sampling Techniques, 3rd edition 1977, theorem 2.2)

with n of N samples seen and s the standard deviation of the differences; where it is known how hard samples are, they
are drawn in strata (`strata.py`), and the same holds for each stratum. Student's t wants means that are nearly normal:
there must be 31 degrees of freedom (the first look is after 32 samples), and so many samples must differ that a sign
test could tell (`confidence.py`). The tests measure how often a settled place is wrong, also for losses that are far
from normal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from qpass.analysis.confidence import CONFIDENCE, differing_needed
from qpass.analysis.result import RaceResult
from qpass.analysis.strata import Strata
from qpass.errors import EvalError, UsageError

FIRST_LOOK, GROWTH = 32, 1.5
"""Samples before the first look, and how much more there are at each further one.

Of 1.25, 1.5 and 2 the middle saved nearly as much as the finest in simulated races, with half of its stages; 2 saved a
tenth to a half less.
"""


class Race:
    """Says which layers need not run further.

    Feed it the samples in `order`, in pieces of any size; it looks whenever a number in `stages` is reached. What it
    says depends on its arguments and on what it was fed, and on nothing else.

    Parameters
    ----------
    names : sequence of str
        The layers, in program order.
    total : int
        Number of samples of a full evaluation.
    metric : str
        Name of what is fed, for the report.
    confidence : float
        With which all settled places together are those of a full evaluation, 0 to 1.
    seed : int
        Of `order`.
    hardness : np.ndarray, optional
        float64 of shape [total]: larger for samples of which more is to be expected; see `Strata`.

    Raises
    ------
    UsageError
        If names are not unique, or `total` or `confidence` is out of range.
    """

    def __init__(
        self,
        names: Sequence[str],
        total: int,
        *,
        metric: str,
        confidence: float = CONFIDENCE,
        seed: int = 0,
        hardness: np.ndarray | None = None,
    ) -> None:
        if len(set(names)) != len(names):
            raise UsageError("names of layers are not unique", where="race")
        if total < 1:
            raise UsageError(f"the number of samples is {total}, expected 1 or more", where="race")
        check_confidence(confidence)
        if hardness is not None and hardness.shape != (total,):
            raise UsageError(f"hardness of shape {list(hardness.shape)}, expected one of {total} samples", where="race")
        self._names = tuple(names)
        self._total = total
        self._metric = metric
        self._confidence = confidence
        self._strata = Strata.draw(total, self.stages, seed, hardness)
        self._fed: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self._places: dict[str, int] = {}
        self._running = self._names
        self._seen = 0
        self._looked = 0

    @property
    def order(self) -> np.ndarray:
        """Samples in the order to run them: int64 of shape [total], a permutation drawn from the seed.

        Data are often sorted by class; what is seen first must speak for the rest.
        """
        return self._strata.order

    def weights(self, samples: int) -> np.ndarray:
        """What the first samples count in a mean over them: float64 of shape [samples], 1 in the mean."""
        return self._strata.weights(samples)

    @property
    def stages(self) -> tuple[int, ...]:
        """Numbers of samples at which it looks, and at last the total."""
        looks: list[int] = []
        while (look := int(FIRST_LOOK * GROWTH ** len(looks))) < self._total:
            looks.append(look)
        return (*looks, self._total)

    @property
    def running(self) -> tuple[str, ...]:
        """Layers to run on the next samples, in program order; none when the race is over."""
        return self._running

    @property
    def seen(self) -> int:
        """Number of samples that were fed."""
        return self._seen

    def feed(self, losses: Mapping[str, np.ndarray]) -> tuple[str, ...]:
        """Take in the next samples; give the layers that are settled now.

        Parameters
        ----------
        losses : Mapping[str, np.ndarray]
            For every running layer, float64 of shape [samples], larger is more sensitive (`sensitivities` makes them);
            entry j is of the same sample for all.

        Raises
        ------
        EvalError
            If layers are missing or too many, their samples differ in number or exceed the total, or a loss is not
            finite.
        """
        if set(losses) != set(self._running):
            odd = sorted(set(losses) ^ set(self._running))
            raise EvalError(f"losses of other layers than those that run: {', '.join(odd)}", where="race")
        pieces = {name: np.array(losses[name], np.float64) for name in self._running}
        shapes = sorted({piece.shape for piece in pieces.values()})
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            raise EvalError(f"losses of shapes {shapes}, expected one number for each sample of all", where="race")
        count = shapes[0][0] if shapes else 0
        if self._seen + count > self._total:
            raise EvalError(f"{self._seen + count} samples, there are {self._total}", where="race")
        for name, piece in pieces.items():
            if not np.isfinite(piece).all():
                raise EvalError("there are losses that are NaN or infinite", where=f"race, layer {name!r}")
        for name, piece in pieces.items():
            self._fed[name].append(piece)
        self._seen += count
        return self._look()

    def losses(self) -> dict[str, np.ndarray]:
        """Everything that was fed, by layer in program order: float64 of shape [samples run]."""
        return {name: np.concatenate([np.empty(0), *pieces]) for name, pieces in self._fed.items()}

    def result(self) -> RaceResult:
        """What was settled and saved so far."""
        samples = {name: sum(map(len, pieces)) for name, pieces in self._fed.items()}
        whole = len(self._names) * self._total
        return RaceResult(
            metric=self._metric,
            confidence=self._confidence,
            total=self._total,
            places={name: self._places[name] for name in self._names if name in self._places},
            samples=samples,
            saved=1 - sum(samples.values()) / whole if whole else 0.0,
        )

    def _look(self) -> tuple[str, ...]:
        if self._seen == self._total:
            self._running = ()
            return ()
        passed = sum(stage <= self._seen for stage in self.stages)
        if passed == self._looked:
            return ()
        self._looked = passed
        table = np.stack([np.concatenate(self._fed[name]) for name in self._running])
        settled = self._settled(table)
        taken = set(self._places.values())
        free = [place for place in range(len(self._names)) if place not in taken]
        means = (table * self.weights(self._seen)).mean(axis=1)
        by_loss = sorted(range(len(self._running)), key=lambda i: -means[i])
        self._places.update({self._running[i]: free[k] for k, i in enumerate(by_loss) if settled[i]})
        now = tuple(name for name in self._running if name in self._places)
        self._running = tuple(name for name in self._running if name not in self._places)
        return now

    def _settled(self, table: np.ndarray) -> np.ndarray:
        """Whether each row is told apart from every other: bool of shape [rows]."""
        pairs = len(self._names) * (len(self._names) - 1) // 2
        doubt = (1 - self._confidence) / max(pairs * (len(self.stages) - 1), 1)
        differing = differing_needed(1 - doubt)
        apart = np.eye(len(table), dtype=bool)
        strata = self._strata.seen(self._seen)
        if any(len(positions) < min(2, size) for positions, size in strata):
            return np.asarray(apart.all(axis=1))
        for i in range(len(table)):
            difference = table[i] - table
            mean, variance, freedom = _estimated([(difference[:, at], size) for at, size in strata], self._total)
            wide = student_quantile(1 - doubt / 2, freedom) * np.sqrt(variance)
            certain = (np.abs(mean) > wide) & (freedom > FIRST_LOOK - 2)
            apart[i] |= certain & (np.count_nonzero(difference, axis=1) >= differing)
        return np.asarray(apart.all(axis=1))


def check_confidence(confidence: float | None) -> None:
    """Refuse what is no confidence; None is for no race.

    Raises
    ------
    UsageError
        If it is not between 0 and 1.
    """
    if confidence is not None and not 0 < confidence < 1:
        raise UsageError(
            f"the confidence is {confidence}, expected a number between 0 and 1, such as {CONFIDENCE}",
            where="settle",
        )


def _estimated(strata: Sequence[tuple[np.ndarray, int]], total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of rows, its variance and the degrees of freedom: see `strata.py`.

    Parameters
    ----------
    strata : sequence of (np.ndarray, int)
        For each stratum: what was seen of it, float64 of shape [rows, n], and its size.
    total : int
    """
    rows = len(strata[0][0])
    mean, variance, doubtful = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    for seen, size in strata:
        n = seen.shape[1]
        mean += size / total * seen.mean(axis=1)
        if n < size:
            part = (size / total * seen.std(axis=1, ddof=1)) ** 2 * (1 / n - 1 / size)
            variance += part
            doubtful += part**2 / (n - 1)
    freedom = np.divide(variance**2, doubtful, out=np.full(rows, np.inf), where=doubtful > 0)
    return mean, variance, freedom


def student_quantile(p: float, freedom: float | np.ndarray) -> np.ndarray:
    """The values that Student's t with so many degrees of freedom exceeds with probability ``1 - p``.

    The expansion in powers of ``1 / freedom`` of M. Abramowitz, I. Stegun, Handbook of Mathematical Functions (1964),
    26.7.5; from 31 degrees on within 0.01 % for ``1 - p`` down to 1e-8.
    """
    z = NormalDist().inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    one = 1 / np.asarray(freedom, np.float64)
    return np.asarray(sum(term * one**k for k, term in enumerate(terms)))
