"""Bootstrap intervals against scipy's, and how often they hold the truth."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.metrics.bootstrap import mean_interval, paired_interval


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_equals_scipy_within_the_noise_of_resampling(level):
    values = np.random.default_rng(0).exponential(size=25)
    found = mean_interval(values, level=level, resamples=20000, seed=1)
    expected = scipy.stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=20000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    # A quantile of 20000 means is known to 0.02 of their deviation.
    noise = 0.1 * values.std() / 5
    assert found.low == pytest.approx(expected.low, abs=noise)
    assert found.high == pytest.approx(expected.high, abs=noise)
    assert found.mean == values.mean()


@pytest.mark.parametrize(
    ("draw", "truth", "share"), [("normal", 0, 0.94), ("exponential", 1, 0.91)]
)
def test_coverage_is_the_documented_one(draw, truth, share):
    """Of 30 clips, in 1000 simulations: standard error 0.009."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(1000):
        found = mean_interval(getattr(rng, draw)(size=30), resamples=500, seed=seed)
        held += found.low <= truth <= found.high
    # 500 resamples widen the noise of each interval, but hardly move the share.
    assert held / 1000 == pytest.approx(share, abs=0.03)


def test_pairs_cancel_what_is_common():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 10, 40)
    first, second = difficulty + 1 + 0.1 * rng.normal(size=40), difficulty
    found = paired_interval(first, second)
    assert found == mean_interval(first - second)
    assert 0.9 < found.low < found.mean < found.high < 1.1
    assert mean_interval(first).high - mean_interval(first).low > 3


@settings(deadline=None, max_examples=30)
@given(
    st.permutations(range(12)), st.floats(-5, 5), st.sampled_from([0.1, 3.0]), st.integers(0, 99)
)
def test_order_and_units(order, shift, scale, seed):
    values = np.random.default_rng(seed).normal(size=12)
    found = mean_interval(values, resamples=200, seed=seed)
    assert mean_interval(values[list(order)], resamples=200).mean == pytest.approx(found.mean)
    moved = mean_interval(scale * values + shift, resamples=200, seed=seed)
    assert moved.low == pytest.approx(scale * found.low + shift)
    assert moved.high == pytest.approx(scale * found.high + shift)
    assert found == mean_interval(values, resamples=200, seed=seed)
    assert found != mean_interval(values, resamples=200, seed=seed + 1)


def test_bad_values_are_refused():
    with pytest.raises(UserError, match="two clips at least"):
        mean_interval(np.ones(1))
    with pytest.raises(UserError, match="1 of them finite"):
        mean_interval(np.asarray([1.0, np.nan]))
    with pytest.raises(UserError, match="expected as many"):
        paired_interval(np.ones(3), np.ones(4))
