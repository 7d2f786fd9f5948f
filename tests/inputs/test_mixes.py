"""Whole pieces in blocks equal whole pieces at once."""

from typing import Any

import numpy as np
import pytest

from mgen.audio import io, resample
from mgen.inputs import attributes, mixes, render


@pytest.mark.parametrize("in_memory", [1 << 30, 0])
def test_score_in_blocks(make_score: Any, monkeypatch: Any, in_memory: int) -> None:
    monkeypatch.setattr(mixes, "BLOCK", 2.0)
    monkeypatch.setattr(mixes, "IN_MEMORY", in_memory)
    record = make_score(0)
    config = render.RenderConfig(sample_rate=8000, channels=2)
    mix, fields = mixes.whole_mix(record, config, seed=3)
    performance = render.perform(record, seed=3, config=config)
    whole = render.render_crop(performance, start=0.0, duration=performance.duration).mix
    # The tolerance of `render_crop`.
    np.testing.assert_allclose(mix, whole, atol=2e-6)
    assert isinstance(mix, np.memmap) == (in_memory == 0)
    expected = attributes.from_record(record, performance.tempo_scale)
    np.testing.assert_array_equal(fields, expected)
    stems, fields = mixes.whole_stems(record, config, seed=3)
    assert stems.shape[0] == len(record.stem_mask)
    np.testing.assert_array_equal(stems.sum(axis=0), mix)
    np.testing.assert_array_equal(fields, expected)
    short, _ = mixes.whole_mix(record, config, seed=3, max_seconds=3.3)
    np.testing.assert_allclose(short, mix[: len(short)], atol=2e-6)
    assert len(short) == 26400


def test_recording_in_blocks(make_recording: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(mixes, "BLOCK", 1.0)
    record = make_recording(0)
    short = make_recording(1, seconds=1.5)
    record.audio[1] = short.audio[1]  # a stem that ends before the others
    config = render.RenderConfig(sample_rate=16000, channels=1)
    mix, _ = mixes.whole_mix(record, config, seed=0)
    stems = [io.read(data, sample_rate=16000, channels=1) for data in record.audio if data]
    apart, _ = mixes.whole_stems(record, config, seed=0)
    np.testing.assert_array_equal(apart.sum(axis=0), mix)
    expected = sum(resample.fit_length(stem, 64000) for stem in stems)
    # A crop of a resampled file equals the slice of the whole to 1e-6 of its peak; the short stem's
    # end is cut by the filter on one side only.
    np.testing.assert_allclose(mix, expected, atol=5e-6)


@pytest.mark.parametrize("samples", [0, 5, 16000, 35001])
@pytest.mark.parametrize(("rate", "target"), [(16000, 24000), (24000, 16000), (16000, 22050)])
def test_conversion_in_blocks(samples: int, rate: int, target: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(mixes, "BLOCK", 0.25)
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (samples, 2)).astype(np.float32)
    found = mixes.converted(audio, rate, target, 1)
    expected = resample.resample(resample.mix_channels(audio, 1), rate, target)
    assert found.shape == expected.shape
    # soxr's own tolerance between one call and a stream, float32.
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert mixes.converted(audio, rate, rate, 2) is audio
