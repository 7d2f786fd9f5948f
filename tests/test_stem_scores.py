"""Scores of stems whose values are known."""

import numpy as np
import pytest

from mgen import stem_scores
from mgen.stem_scores import Options

RATE, NAMES = 4000, ("bass", "drums")


@pytest.fixture(scope="module")
def stems():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 2, 4 * RATE, 1)).astype("f") * np.asarray([0.2, 0.1])[:, None, None]


def test_the_mix_gains_nothing_and_noise_of_a_tenth_twenty_decibels(stems):
    mixes = np.broadcast_to(stems.sum(axis=1, keepdims=True), stems.shape)
    np.testing.assert_allclose(stem_scores.improvements(stems, mixes, NAMES, RATE), 0, atol=1e-6)
    # Independent stems of 0.2 and 0.1: the mix is at +6 dB and -6 dB.
    np.testing.assert_allclose(stem_scores.mix_levels(stems)[:, 0], 6.0, atol=0.3)
    noisy = stems + 0.1 * np.roll(stems, 1, axis=0)
    gains = stem_scores.improvements(stems, noisy, NAMES, RATE)
    np.testing.assert_allclose(gains + stem_scores.mix_levels(stems), 20.0, atol=0.5)


def test_silent_stems_have_no_value_and_do_not_count(stems):
    quiet = stems.copy()
    quiet[0, 1] = 0.0  # one stem alone is no mix
    values = stem_scores.improvements(quiet, 0.9 * quiet, NAMES, RATE)
    assert np.isnan(values[0]).all() and np.isfinite(values[1:]).all()
    found = stem_scores.intervals(values, NAMES)
    assert found.keys() == {"bass", "drums", "mean"}
    assert found["mean"].mean == pytest.approx(values[1:].mean())
    assert found["mean"].low <= found["mean"].mean <= found["mean"].high


def test_every_clip_is_separated_once_whatever_the_batch(stems):
    def separator(mix, *, seeds):
        return np.stack([mix * seeds[:, None, None], mix], axis=1)

    for batch in (1, 2, 5):
        options = Options(batch=batch, seed=3)
        made = stem_scores.separated(separator, stems, options, "x")
        expected = stems.sum(axis=1) * np.asarray([3, 4, 5])[:, None, None]
        np.testing.assert_array_equal(made[:, 0], expected)


def test_a_perfect_filling_is_nearer_than_a_missing_stem(stems):
    fillings = {name: stems[:, number] for number, name in enumerate(NAMES)}
    found = stem_scores.distances(stems, fillings, stems[::-1], NAMES, RATE)
    assert all(found[f"imputed/{name}"] < 1e-3 < found[f"missing/{name}"] for name in NAMES)
    assert found["generated"] < 1e-3  # the same clips in another order
