"""Augmentations: each does what it says, keeps the sum, and leaves its input alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.audio import loudness
from mgen.inputs import transforms


def stems(seed: int = 0, scale: float = 0.1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((3, 8000, 2))
    return (scale * noise).astype(np.float32)


def test_level_of_silence_is_finite() -> None:
    assert transforms.level_db(np.zeros((4, 1), np.float32)) == transforms.SILENCE_DB
    assert transforms.level_db(np.full((4, 1), 0.1, np.float32)) == pytest.approx(-20, abs=1e-4)


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(0.01, 10), low=st.floats(-30, 0), width=st.floats(0, 40))
def test_gain_is_common_to_all_stems_and_limited(scale: float, low: float, width: float) -> None:
    before = stems(scale=scale)
    after = transforms.random_gain(before, (low, low + width), np.random.default_rng(1))
    ratio = after / before
    assert np.allclose(ratio, ratio.flat[0], rtol=1e-5)
    assert max(np.abs(after).max(), np.abs(after.sum(0)).max()) <= 1 + 1e-6
    gain = 20 * np.log10(ratio.flat[0])
    assert gain <= low + width + 1e-4
    if np.abs(after.sum(0)).max() < 0.999:
        assert gain >= low - 1e-4
    assert np.array_equal(before, stems(scale=scale))


def test_loudness_reaches_the_target_unless_it_would_clip() -> None:
    after = transforms.normalise_loudness(stems(), 8000, -23.0)
    assert loudness.integrated_loudness(after.sum(0), 8000) == pytest.approx(-23, abs=0.01)
    clipped = transforms.normalise_loudness(stems(), 8000, 10.0)
    assert np.abs(clipped.sum(0)).max() == pytest.approx(1, abs=1e-6)
    silence = np.zeros((3, 8000, 2), np.float32)
    assert not transforms.normalise_loudness(silence, 8000, -23.0).any()


def test_swap_channels() -> None:
    before = stems()
    swapped = 0
    for seed in range(100):
        after = transforms.swap_channels(before, np.random.default_rng(seed))
        assert np.array_equal(after, before) or np.array_equal(after, before[..., ::-1])
        swapped += not np.array_equal(after, before)
    assert 30 < swapped < 70
    mono = before[..., :1]
    assert transforms.swap_channels(mono, np.random.default_rng(0)) is mono


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), probability=st.floats(0, 1))
def test_dropped_stems_are_silent_and_one_stays(seed: int, probability: float) -> None:
    mask = np.array([True, False, True])
    rng = np.random.default_rng(seed)
    after, kept = transforms.drop_stems(stems(), mask, probability, rng)
    assert kept.any() and not (kept & ~mask).any()
    assert not after[~kept].any()
    assert np.array_equal(after[kept], stems()[kept])
    if probability == 0:
        assert np.array_equal(kept, mask)


def test_loudest_crop_stops_at_the_first_that_is_loud_enough() -> None:
    def run(levels: list[float], attempts: int) -> tuple[float, int]:
        drawn = iter(levels)
        left = len(levels)

        def draw() -> np.ndarray:
            nonlocal left
            left -= 1
            return np.full((2, 10, 1), next(drawn), np.float32)

        crop = transforms.loudest_crop(draw, -40.0, attempts)
        return float(crop[0, 0, 0]), len(levels) - left

    assert run([0.0, 0.1, 0.2], 3) == (pytest.approx(0.1), 2)
    assert run([0.0, 1e-4, 1e-5], 3) == (pytest.approx(1e-4), 3)
    assert run([0.0, 0.1], 1) == (0.0, 1)


def test_loudest_crop_looks_for_sounding_stems() -> None:
    def run(draws: list[list[float]], wanted: list[int], least: int, attempts: int = 3) -> int:
        """Which of the draws is taken; each is the amplitudes of its stems."""
        left = iter(np.asarray(draws, np.float32)[:, :, None, None] * np.ones((10, 1), np.float32))
        crop = transforms.loudest_crop(lambda: next(left), -40.0, attempts, wanted, least)
        return draws.index([round(float(level), 6) for level in crop[:, 0, 0]])

    one, two, soft = [0.5, 0.0, 0.0], [0.1, 0.0, 0.1], [0.2, 1e-4, 0.0]
    assert run([one, two, soft], [0, 1, 2], 2) == 1  # the first with two
    assert run([one, two, soft], [0, 1, 2], 1) == 0
    assert run([one, two, soft], [2], 1) == 1  # only what is wanted counts
    assert run([soft, one, two], [0, 1], 2) == 1  # none: the loudest
    assert run([soft, [0.0] * 3, two], [1, 2], 2) == 2  # none: the most of them, though softer
    assert run([one, two], [0, 1, 2], 2, attempts=1) == 0
