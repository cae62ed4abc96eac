"""How sure the difference of two accuracies is, measured on the same images."""

from __future__ import annotations

import numpy as np

DRAWS = 10_000


def paired_difference(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Share of images `ours` has right less that of `theirs`, and the bounds of its 95 % interval.

    The paired bootstrap: images are drawn again with both answers, `DRAWS` times; the bounds are percentiles. Of a
    draw only the numbers of images that one alone has right matter, and those are multinomial.

    Parameters
    ----------
    ours, theirs : np.ndarray
        bool [images]: whether the image is classified right.
    """
    images = len(ours)
    alone = np.array([(ours & ~theirs).sum(), (theirs & ~ours).sum()]) / images
    shares = [*alone, max(0.0, 1 - alone.sum())]
    drawn = np.random.default_rng(seed).multinomial(images, shares, size=DRAWS)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / images, [0.025, 0.975])
    return float(alone[0] - alone[1]), float(low), float(high)


def points(difference: tuple[float, float, float]) -> str:
    """A difference in percentage points, with its interval: ``+0.15 (-0.20 to +0.50)``."""
    middle, low, high = (100 * part + 0.0 for part in difference)
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
