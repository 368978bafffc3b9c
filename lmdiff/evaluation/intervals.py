"""95% confidence intervals, so that no figure is reported without its uncertainty.

Success rates get Wilson's score interval (E. B. Wilson, 1927), which behaves at 0% and 100%;
means of anything else get the percentile bootstrap (B. Efron, 1979).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, bootstrap

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and its 95% confidence interval."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """`{"mean", "low", "high"}`, the form of every figure in JSON."""
        return self._asdict()

    def __str__(self) -> str:
        """As fractions: `0.972 (0.941-0.988)`."""
        return f"{self.mean:.3f} ({self.low:.3f}-{self.high:.3f})"


def wilson(successes: int, n: int) -> Interval:
    """The success rate of `n` episodes with Wilson's score interval.

    Raises:
        ValueError: `n` is not positive, or `successes` lies outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} episodes: no rate can be had from that.")
    limits = binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    return Interval(successes / n, float(limits.low), float(limits.high))


def bootstrap_mean(values: ArrayLike, seed: int = 0) -> Interval:
    """The mean of `values` [N] with its percentile bootstrap interval.

    One value, or equal ones, say nothing about their spread: the interval is then the mean itself.

    Raises:
        ValueError: no values, or some that are not finite.
    """
    sample = np.asarray(values, np.float64).reshape(-1)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError("A mean with an interval needs at least one value, and finite ones.")
    mean = float(sample.mean())
    if np.ptp(sample) == 0:
        return Interval(mean, mean, mean)
    limits = bootstrap(
        (sample,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=4000,
        method="percentile",
        batch=max(1, 2_000_000 // sample.size),  # at most 16 MB at once
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(limits.low), float(limits.high))
