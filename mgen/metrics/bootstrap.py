"""How far a mean over clips can be trusted: percentile bootstrap (Efron and Tibshirani 1993,
section 13.3).

The clips are drawn again, with replacement, `RESAMPLES` times; the interval lies between the
quantiles of the means. For few clips it is too narrow: of 4000 simulated intervals of a nominal
95%, these shares held the true mean (standard error 0.006 at most):

  clips                10    30   100
  normal values       .91   .94   .94
  exponential values  .85   .91   .93

Whatever belongs together must come as one value: windows of one clip are averaged first, as they
are not independent.
"""

import dataclasses

import numpy as np

from mgen.errors import UserError
from mgen.typing import Float, ndarray

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(
    values: Float[ndarray, " N"],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of one value a clip; `level` is the nominal coverage.

    Raises:
      UserError: fewer than two values, or one that is not finite.
    """
    values = np.asarray(values)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise UserError(
            f"bootstrap: values of shape {values.shape}, {np.isfinite(values).sum()} of them "
            "finite; expected finite values of two clips at least"
        )
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    tail = (1 - level) / 2
    low, high = np.quantile(values[rows].mean(axis=1), [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def paired_interval(
    first: Float[ndarray, " N"],
    second: Float[ndarray, " N"],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of first - second on the same clips, which are drawn together: what two systems
    find hard alike cancels. Otherwise as `mean_interval`."""
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        raise UserError(
            f"bootstrap: pairs of {first.shape} and {second.shape} values, expected as many"
        )
    return mean_interval(first - second, level=level, resamples=resamples, seed=seed)
