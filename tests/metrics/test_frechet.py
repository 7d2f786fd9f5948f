"""Fréchet distances against scipy, closed forms and plain loops."""

import functools
import itertools

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.metrics.frechet import (
    Moments,
    fad_logmel,
    frechet,
    frechet_of_moments,
    logmel,
    sub_fad,
)

RATE = 8000
STEMS = ("bass", "drums", "guitar", "piano")


def rows(count, dim, seed=0):
    """Correlated, off centre."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)


def by_scipy(x, y):
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    apart = x.mean(axis=0) - y.mean(axis=0)
    return apart @ apart + np.trace(first + second - 2 * root)


def gaussian(mean, covariance):
    return Moments(2, np.asarray(mean, np.float64), np.asarray(covariance, np.float64))


def test_equals_scipy():
    x, y = rows(50, 6, 0), rows(40, 6, 1)
    assert frechet(x, y) == pytest.approx(by_scipy(x, y), rel=1e-9)


def test_closed_forms():
    """Commuting covariances: differences of deviations. Two dimensions: tr of the root of M is
    sqrt(tr M + 2 sqrt(det M))."""
    deviations = np.asarray([[1.0, 2.0, 0.0], [3.0, 0.5, 0.0]])
    first, second = (gaussian([i, 0, 0], np.diag(d**2)) for i, d in enumerate(deviations))
    expected = 1 + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_of_moments(first, second) == pytest.approx(expected, rel=1e-12)
    a, b = np.asarray([[2.0, 1.0], [1.0, 3.0]]), np.asarray([[5.0, -2.0], [-2.0, 1.0]])
    product = a @ b
    trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    found = frechet_of_moments(gaussian([0, 0], a), gaussian([0, 0], b))
    assert found == pytest.approx(np.trace(a + b) - 2 * trace, rel=1e-12)


def test_samples_of_known_gaussians_come_near_the_closed_form():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20000, 2)) * np.asarray([1.0, 2.0])
    y = rng.normal(size=(20000, 2)) * np.asarray([3.0, 1.0]) + np.asarray([0.0, 4.0])
    # The errors of means and deviations are near 0.02, their derivatives up to 8.
    assert frechet(x, y) == pytest.approx(16 + 4 + 1, abs=0.5)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 8), st.integers(0, 1000))
def test_symmetric_and_zero_on_equal_sets(n, m, dim, seed):
    """Also with fewer rows than dimensions, where covariances are singular."""
    x, y = rows(n, dim, seed), rows(m, dim, seed + 1)
    scale = np.trace(np.cov(x, rowvar=False).reshape(dim, dim)) + np.square(x).sum()
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-9, abs=1e-12 * scale)
    assert frechet(x, x[::-1]) <= 1e-12 * scale


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 5), min_size=3, max_size=3),
    st.sampled_from([0.0, 1e6]),
    st.integers(0, 1000),
)
def test_merging_is_associative_and_equals_concatenation(counts, offset, seed):
    """The covariance keeps its digits far from the origin, where sums of squares would lose 12."""
    x = rows(sum(counts), 4, seed) + offset
    a, b, c = (Moments.of(part) for part in np.split(x, np.cumsum(counts)[:-1]))
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), Moments.of(x)):
        assert merged.count == len(x)
        np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(merged.std, x.std(axis=0), rtol=1e-9, atol=1e-8)
        # Inputs near 1e6 are themselves rounded to 1e-10.
        np.testing.assert_allclose(
            merged.covariance(), np.cov(x, rowvar=False), rtol=1e-9, atol=1e-8 if offset else 1e-12
        )


def test_bad_rows_are_refused():
    good = rows(5, 3)
    with pytest.raises(UserError, match="1 row"):
        frechet(good, good[:1])
    with pytest.raises(UserError, match="shape"):
        frechet(good, np.zeros((0, 3)))
    with pytest.raises(UserError, match="row 2 is not finite"):
        frechet(good, np.where(np.arange(5)[:, None] == 2, np.inf, good))
    with pytest.raises(UserError, match="2 dimensions, expected the reference's 3"):
        frechet(good, good[:, :2])
    with pytest.raises(UserError, match="3 and 2 dimensions"):
        Moments.of(good).merge(Moments.of(good[:, :2]))


def test_logmel_embedding_of_a_gain():
    """A factor of 10 moves the means of 64 bands by log 10 and leaves their deviations."""
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 2 * RATE, 1)).astype(np.float32)
    found, louder = logmel(noise, RATE), logmel(10 * noise, RATE)
    assert found.shape == (8, 128)  # two rows a clip
    np.testing.assert_allclose(louder[:, :64] - found[:, :64], np.log(10), atol=1e-4)
    np.testing.assert_allclose(louder[:, 64:], found[:, 64:], atol=1e-4)
    expected = 64 * np.log(10) ** 2
    assert fad_logmel(noise, 10 * noise, RATE) == pytest.approx(expected, rel=1e-4)
    assert fad_logmel(noise, noise, RATE) == pytest.approx(0, abs=1e-9)
    both = np.concatenate([2 * noise, 0 * noise], axis=-1)
    np.testing.assert_allclose(logmel(both, RATE), found, atol=1e-4)  # the mean of the channels
    assert logmel(noise[:1, : RATE // 2], RATE).shape == (1, 128)


def clips(count=5):
    rng = np.random.default_rng(1)
    loudness = np.arange(1, 5)[None, :, None, None]
    return rng.normal(size=(count, len(STEMS), 6, 1)) * loudness


def embed(audio):
    """Two rows a clip, of three samples."""
    return audio.reshape(-1, 3)


def halved(given_stems, given, seeds):
    """Noise by the clip's number, and what was given at half its level: to be ignored."""
    noise = [np.random.default_rng(seed).normal(size=given_stems.shape[1:]) for seed in seeds]
    return np.where(given[:, None, None], given_stems / 2, np.stack(noise))


def test_sub_fad_equals_a_plain_loop():
    batch = clips()
    found = sub_fad([batch], STEMS, halved, embed)
    assert len(found) == 2**4 - 2
    noise = [np.random.default_rng(seed).normal(size=batch.shape[1:]) for seed in range(5)]
    for size in (1, 2, 3):
        for chosen in itertools.combinations(range(4), size):
            mixes = sum(batch[:, i] if i in chosen else np.stack(noise)[:, i] for i in range(4))
            expected = by_scipy(embed(batch.sum(axis=1)), embed(mixes))
            name = tuple(STEMS[i] for i in chosen)
            assert found[name] == pytest.approx(expected, rel=1e-6)


def test_sub_fad_does_not_depend_on_batches_and_is_zero_for_the_truth():
    batch = clips()
    whole = sub_fad([batch], STEMS, halved, embed)
    assert sub_fad([batch[:2], batch[2:]], STEMS, halved, embed) == pytest.approx(whole)

    def truth(given_stems, given, seeds):
        np.testing.assert_array_equal(given_stems, batch * given[:, None, None])  # no peeking
        return batch

    found = sub_fad([batch], STEMS, truth, embed)
    assert found == pytest.approx(dict.fromkeys(whole, 0.0), abs=1e-9)


def test_sub_fad_takes_the_builtin_embedding_and_names_faults():
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 2, 2 * RATE, 1)).astype(np.float32)
    embedding = functools.partial(logmel, sample_rate=RATE)
    found = sub_fad([noise], STEMS[:2], lambda stems, given, seeds: noise, embedding)
    assert found == pytest.approx({("bass",): 0, ("drums",): 0}, abs=1e-9)
    with pytest.raises(UserError, match="no clips"):
        sub_fad([], STEMS, halved, embed)
    with pytest.raises(UserError, match="generated stems of shape"):
        sub_fad([clips()], STEMS, lambda stems, given, seeds: stems[:1], embed)
