"""Loudness against the calibration of BS.1770, and its edges."""

import numpy as np
import pytest

from mgen.audio import loudness


def sine(amplitude: float, seconds: float, sample_rate: int = 48000, hz: float = 997.0):
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (amplitude * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def test_calibration_tone():
    """BS.1770-4, end of annex 1: a 997 Hz sine of 0 dBFS in one channel measures -3.01 LKFS."""
    assert loudness.integrated_loudness(sine(1.0, 2.0), 48000) == pytest.approx(-3.01, abs=0.05)


def test_two_channels_are_three_db_louder():
    mono = sine(0.1, 1.0)
    stereo = np.stack([mono, mono], 1)
    difference = loudness.integrated_loudness(stereo, 48000) - loudness.integrated_loudness(
        mono, 48000
    )
    assert difference == pytest.approx(3.01, abs=0.02)


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.399, 0.4, 0.401])
@pytest.mark.parametrize("sample_rate", [16000, 44100])
def test_short_clips_have_the_loudness_of_long_ones(seconds, sample_rate):
    short = loudness.integrated_loudness(sine(0.3, seconds, sample_rate, 1000.0), sample_rate)
    long = loudness.integrated_loudness(sine(0.3, 2.0, sample_rate, 1000.0), sample_rate)
    # The K-weighting filter starts from rest, which a single block still hears.
    assert short == pytest.approx(long, abs=0.3)


def test_silence():
    assert loudness.integrated_loudness(np.zeros((48000, 2), np.float32), 48000) == -np.inf
    assert loudness.integrated_loudness(np.zeros((0, 1), np.float32), 48000) == -np.inf
    assert loudness.integrated_loudness(sine(1e-7, 1.0), 48000) == -np.inf
    np.testing.assert_array_equal(loudness.normalise(np.zeros((100, 1)), 48000, -20.0), 0)


def test_normalise():
    loud = loudness.normalise(sine(0.01, 1.0), 48000, -16.0)
    assert loudness.integrated_loudness(loud, 48000) == pytest.approx(-16.0, abs=0.01)
    assert loud.dtype == np.float32
    limited = loudness.normalise(sine(0.01, 1.0), 48000, 0.0, max_peak=0.9)
    assert loudness.peak(limited) == pytest.approx(0.9, rel=1e-5)


def test_levels():
    assert loudness.rms(sine(1.0, 1.0)) == pytest.approx(np.sqrt(0.5), rel=1e-3)
    assert loudness.db_to_gain(-6.0206) == pytest.approx(0.5, rel=1e-4)
    assert loudness.gain_to_db(0.5) == pytest.approx(-6.0206, abs=1e-3)
    assert loudness.gain_to_db(0.0) == -np.inf
