"""Separation metrics against museval, mir_eval and plain loops."""

import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.metrics.separation import (
    EPSILON,
    bss_eval_sdr,
    scores,
    si_sdri,
    windowed_si_sdri,
)

STEMS = ("bass", "drums", "guitar")
RATE = 50


@pytest.fixture(scope="module")
def museval():
    """museval's __init__ imports a reader of data sets that raises where ffmpeg is not installed;
    its metrics do not use it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "musdb", types.ModuleType("musdb"))
        import museval.metrics

        return museval.metrics


def track(samples=400, channels=1, stems=STEMS, seed=0, error=0.1):
    """References, their mix, and estimates with some of the mix and of noise in them."""
    rng = np.random.default_rng(seed)
    references = rng.normal(0, 0.1, (len(stems), samples, channels)).astype(np.float32)
    mixture = references.sum(axis=0)
    noise = rng.normal(0, 0.1, references.shape)
    estimates = references + error * (mixture + noise)
    return references, mixture, estimates.astype(np.float32)


def numpy_si_sdr(reference, estimate, epsilon=0.0):
    """Float64; with epsilon where MSDM's release has it."""
    s, e = (x.astype(np.float64).ravel() for x in (reference, estimate))
    target = (s @ e + epsilon) / (s @ s + epsilon) * s
    return 10 * np.log10((target @ target + epsilon) / ((e - target) @ (e - target) + epsilon))


@pytest.mark.parametrize("channels", [1, 2])
def test_improvement_equals_the_formula_in_float64(channels):
    references, mixture, estimates = track(channels=channels)
    found = si_sdri(references, mixture, estimates, STEMS)
    expected = [
        numpy_si_sdr(s, e) - numpy_si_sdr(s, mixture) for s, e in zip(references, estimates)
    ]
    # float32 sums of 800 products.
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_mix_itself_gains_nothing_and_an_absent_stem_has_no_value():
    references, mixture, _ = track()
    references[1] = 0
    found = si_sdri(references, mixture, np.stack([mixture] * 3), STEMS)
    np.testing.assert_array_equal(found, [0, np.nan, 0])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3), st.integers(0, 1000))
def test_improvement_does_not_depend_on_the_scale_of_estimates(gains, seed):
    references, mixture, estimates = track(seed=seed)
    scaled = estimates * np.asarray(gains, np.float32)[:, None, None]
    found = si_sdri(references, mixture, scaled, STEMS)
    np.testing.assert_allclose(found, si_sdri(references, mixture, estimates, STEMS), atol=1e-3)


def loop(references, mixture, estimates):
    """The windows of MSDM's evaluation one by one: their places, values, active stems."""
    rows, begin, length = [], 0, references.shape[1]
    while begin == 0 or begin + 2 * RATE < length:
        end = min(begin + 4 * RATE, length)
        active, values = [], []
        for reference, estimate in zip(references, estimates):
            s, m, e = (x[begin:end] for x in (reference, mixture, estimate))
            total = sum(float(sample) ** 2 for sample in s.ravel())
            active.append(total**0.5 / (end - begin) >= 1.5e-5)
            values.append(numpy_si_sdr(s, e, EPSILON) - numpy_si_sdr(s, m, EPSILON))
        if sum(active) > 1:
            rows.append((values, active))
        begin += 2 * RATE
    return rows


# Less than an overlap, less than a window, one window, a last window of 3 s and one of 2.02 s.
@pytest.mark.parametrize("samples", [90, 150, 200, 350, 601])
@pytest.mark.parametrize("seed", range(4))
def test_windows_equal_a_plain_loop(samples, seed):
    references, _, estimates = track(samples, seed=seed)
    silences = np.random.default_rng(seed)
    # Stems come and go second by second; below the threshold they are noise, or zeros.
    for stem in references:
        for begin in range(0, samples, RATE):
            stem[begin : begin + RATE] *= silences.choice([1.0, 1e-4, 0.0], p=[0.4, 0.3, 0.3])
    references[seed % 3, : samples // 2] = 0
    mixture = references.sum(axis=0)
    found, active = windowed_si_sdri(references, mixture, estimates, STEMS, RATE)
    rows = loop(references, mixture, estimates)
    assert found.shape == active.shape == (len(rows), 3)
    for value, loud, (expected, expected_loud) in zip(found, active, rows):
        assert loud.tolist() == expected_loud
        # float64 sums in another order.
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)


def test_a_window_with_one_stem_is_skipped_and_a_silent_stem_has_the_published_value():
    references, _, estimates = track(6 * RATE)
    references[1:, : 4 * RATE] = 0
    references[2] = 0
    estimates[2] = 0
    mixture = references.sum(axis=0)
    found, active = windowed_si_sdri(references, mixture, estimates, STEMS, RATE)
    np.testing.assert_array_equal(active, [[True, True, False]])
    energy = np.square(mixture[2 * RATE :], dtype=np.float64).sum()
    assert found[0, 2] == pytest.approx(10 * np.log10((energy + EPSILON) / EPSILON))
    strict = scores(np.where(active, found, np.nan), STEMS)
    assert strict.dropped == {"bass": 0, "drums": 0, "guitar": 1}
    assert strict.mean == pytest.approx(found[0, :2].mean())


def test_silence_is_a_norm_by_samples():
    """At its threshold: a constant of a over n samples has |x| / n = a / sqrt(n)."""
    references = np.zeros((3, 4 * RATE, 1), np.float32)
    for factor, active in ((0.99, [False, True, True]), (1.01, [True, True, True])):
        references[0] = factor * 1.5e-5 * (4 * RATE) ** 0.5
        references[1:] = track(4 * RATE)[0][1:]
        mixture = references.sum(axis=0)
        found = windowed_si_sdri(references, mixture, references + 0.1, STEMS, RATE)[1]
        np.testing.assert_array_equal(found, [active])


@pytest.mark.parametrize("channels", [1, 2])
def test_bss_eval_equals_museval(museval, channels):
    """Frames of 1000 samples, 4.5 of them; the second has a silent reference, the fourth a silent
    estimate."""
    references, _, estimates = track(4500, channels, stems=STEMS[:2])
    references[0, 1000:2000] = 0
    estimates[1, 3000:4000] = 0
    expected = museval.bss_eval(references, estimates, window=1000, hop=1000)[0].T
    found = bss_eval_sdr(references, estimates, STEMS[:2], 1000)
    assert found.shape == (4, 2)
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, True, False, True])
    # museval adds its three parts of the error in float64 after a convolution by FFT.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    perfect = bss_eval_sdr(references[:1], references[:1], STEMS[:1], 1000)
    np.testing.assert_array_equal(perfect[:, 0], [np.inf, np.nan, np.inf, np.inf])


@pytest.mark.filterwarnings("ignore:mir_eval:FutureWarning")
def test_bss_eval_of_one_frame_equals_mir_eval():
    from mir_eval.separation import bss_eval_images

    references, _, estimates = track(1500, stems=STEMS[:2])
    expected = bss_eval_images(references, estimates, compute_permutation=False)[0]
    found = bss_eval_sdr(references, estimates, STEMS[:2], 2000)
    np.testing.assert_allclose(found, [expected], atol=1e-5)


def test_a_stem_absent_throughout_leaves_the_others_their_frames():
    references, _, estimates = track(4 * RATE)
    references[1] = 0
    found = bss_eval_sdr(references, estimates, STEMS, RATE)
    others = bss_eval_sdr(references[::2], estimates[::2], STEMS[::2], RATE)
    np.testing.assert_array_equal(found[:, ::2], others)
    assert np.isnan(found[:, 1]).all() and np.isfinite(others).all()
    assert np.isnan(bss_eval_sdr(0 * references, estimates, STEMS, RATE)).all()


def test_scores_drop_and_count():
    values = np.asarray([[1.0, np.nan, 4.0], [2.0, np.nan, 5.0], [6.0, np.nan, np.nan]])
    found = scores(values, STEMS)
    assert found.stems == pytest.approx({"bass": 3, "drums": np.nan, "guitar": 4.5}, nan_ok=True)
    assert found.mean == 3.75 and found.dropped == {"bass": 0, "drums": 3, "guitar": 1}
    assert scores(values, STEMS, np.median).stems["bass"] == 2
    nothing = scores(np.zeros((0, 3)), STEMS)
    assert np.isnan(nothing.mean) and np.isnan(list(nothing.stems.values())).all()


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(6)), st.integers(0, 1000))
def test_order_of_clips_does_not_matter(order, seed):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((6, 3)) < 0.3, np.nan, rng.normal(size=(6, 3)))
    found, expected = scores(values[list(order)], STEMS), scores(values, STEMS)
    assert found.stems == pytest.approx(expected.stems, nan_ok=True)
    assert found.mean == pytest.approx(expected.mean, nan_ok=True)
    assert found.dropped == expected.dropped


def test_bad_input_is_named():
    references, mixture, estimates = track()
    broken = estimates.copy()
    broken[1, 7] = np.nan
    for metric in (si_sdri, windowed_si_sdri):
        rest = (RATE,) if metric is windowed_si_sdri else ()
        with pytest.raises(UserError, match="estimate of stem 'drums' is not finite at sample 7"):
            metric(references, mixture, broken, STEMS, *rest)
    with pytest.raises(UserError, match="reference of stem 'drums'"):
        bss_eval_sdr(broken, estimates, STEMS, RATE)
    with pytest.raises(UserError, match="mix is not finite"):
        si_sdri(references, np.full_like(mixture, np.inf), estimates, STEMS)
    with pytest.raises(UserError, match="mix of shape"):
        si_sdri(references, mixture[:-1], estimates, STEMS)
    with pytest.raises(UserError, match="estimates of shape"):
        si_sdri(references, mixture, estimates[:, :-1], STEMS)
    with pytest.raises(UserError, match=r"expected \(2, T, C\)"):
        bss_eval_sdr(references, estimates, STEMS[:2], RATE)
