"""Audio files: exact crops, lossless round trips, one clear line for each kind of bad file."""

import io as bytes_io
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.audio import io, resample
from mgen.errors import UserError

RATES = (8000, 16000, 22050, 24000, 44100, 48000)


def noise(samples: int, channels: int = 1, bits: int = 16, seed: int = 0) -> np.ndarray:
    """Samples on the grid of `bits`, over the full range."""
    rng = np.random.default_rng(seed)
    half = 1 << (bits - 1)
    return (rng.integers(-half, half, (samples, channels)) / half).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize(("bits", "channels"), [(16, 1), (16, 2), (24, 1), (24, 2)])
def test_pcm_survives_a_round_trip_bit_for_bit(tmp_path, suffix, bits, channels):
    audio = noise(1000, channels, bits)
    path = tmp_path / f"a{suffix}"
    io.write(path, audio, 16000, subtype=f"PCM_{bits}")
    np.testing.assert_array_equal(io.read(path), audio)
    np.testing.assert_array_equal(io.read(path.read_bytes()), audio)
    assert io.info(path) == io.AudioInfo(16000, 1000, channels, f"PCM_{bits}")
    assert io.info(path).bits == bits
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_float_wav_keeps_values_beyond_one(tmp_path):
    audio = np.array([0.0, 1.5, -3.0], np.float32)
    io.write(tmp_path / "a.wav", audio, 8000, subtype="FLOAT")
    np.testing.assert_array_equal(io.read(tmp_path / "a.wav")[:, 0], audio)


def test_encoding_is_deterministic():
    assert io.encode_flac(noise(5000), 16000) == io.encode_flac(noise(5000), 16000)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_crop_equals_slice_of_whole_file(data):
    samples = data.draw(st.integers(50, 4000))
    audio = noise(samples, channels=2)
    flac = io.encode_flac(audio, 8000)
    start = data.draw(st.floats(0, (samples - 1) / 8000))
    duration = data.draw(st.floats(1 / 8000, 0.6))
    first = round(start * 8000)
    if first >= samples:
        return
    count = round(duration * 8000)
    crop = io.read(flac, start=start, duration=duration)
    expected = audio[first : first + count]
    assert crop.shape == (count, 2)
    np.testing.assert_array_equal(crop[: len(expected)], expected)
    assert not crop[len(expected) :].any()


@settings(deadline=None, max_examples=30)
@given(
    source=st.sampled_from(RATES),
    target=st.sampled_from(RATES),
    start=st.floats(0, 0.99),
    duration=st.floats(0.01, 0.3),
)
def test_resampled_crop_equals_slice_of_whole_file(source, target, start, duration):
    flac = io.encode_flac(noise(source) * 0.5, source)
    whole = resample.resample(io.read(flac), source, target)
    first, count = round(start * target), round(duration * target)
    expected = resample.fit_length(whole[first : first + count], count)
    crop = io.read(flac, start=start, duration=duration, sample_rate=target)
    # float32 rounding of soxr; the filter's tails outside the margin are below it.
    np.testing.assert_allclose(crop, expected, atol=1e-6)


def test_a_crop_decodes_no_more_than_it_needs():
    """A FLAC damaged after the crop still gives the crop: nothing behind it was decoded."""
    audio = noise(200_000)
    flac = io.encode_flac(audio, 8000)
    crop = io.read(flac[: len(flac) // 2], start=1.0, duration=2.0)
    np.testing.assert_array_equal(crop, audio[8000:24000])


@settings(deadline=None, max_examples=30)
@given(samples=st.integers(1, 5000), source=st.sampled_from(RATES), target=st.sampled_from(RATES))
def test_resampled_length_law(samples, source, target):
    audio = np.ones((samples, 1), np.float32)
    assert len(resample.resample(audio, source, target)) == round(samples * target / source)


def test_resampling_keeps_a_tone():
    time = np.arange(44100) / 44100
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    # Without the ends, where the filter sees the edges. soxr HQ has a stop band of -100 dB and
    # more.
    difference = resample.resample(tone, 44100, 16000) - expected
    assert np.abs(difference[200:-200]).max() < 1e-4


def test_channels():
    stereo = np.stack([np.full(10, 0.5), np.full(10, -0.25)], 1).astype(np.float32)
    mono = resample.mix_channels(stereo, 1)
    np.testing.assert_array_equal(mono, np.full((10, 1), 0.125, np.float32))
    np.testing.assert_array_equal(resample.mix_channels(mono, 2), np.full((10, 2), 0.125))
    flac = io.encode_flac(stereo, 8000)
    np.testing.assert_array_equal(io.read(flac, channels=1), mono)
    assert io.read(flac, channels=2).shape == (10, 2)
    with pytest.raises(UserError, match="of 2 channels to 3"):
        io.read(flac, channels=3)


@pytest.mark.parametrize("container", ["MP3", "OGG"])
def test_lossy_files_are_read(container):
    time = np.arange(16000) / 16000
    tone = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    buffer = bytes_io.BytesIO()
    soundfile.write(buffer, tone, 16000, format=container)
    audio = io.read(buffer.getvalue())
    assert audio.shape == (16000, 1)
    # Both coders reach about 30 dB on a tone; what is tested is that it is this tone, in place.
    assert np.abs(audio[2000:-2000, 0] - tone[2000:-2000]).max() < 0.03
    crop = io.read(buffer.getvalue(), start=0.25, duration=0.5)
    np.testing.assert_allclose(crop, audio[4000:12000], atol=1e-4)


def wav_bytes(audio: np.ndarray, subtype: str = "PCM_16") -> bytes:
    buffer = bytes_io.BytesIO()
    soundfile.write(buffer, audio, 16000, format="WAV", subtype=subtype)
    return buffer.getvalue()


BAD_FILES = {
    "truncated.wav": (wav_bytes(noise(8000))[:8000], "truncated"),
    "truncated.flac": (io.encode_flac(noise(80000), 16000)[:60000], "truncated"),
    "text.wav": (b"RIFFling through papers\n" * 9, "not an audio file"),
    "zero.wav": (b"", "not an audio file"),
    "empty.wav": (wav_bytes(np.zeros((0, 1))), "empty"),
    "nan.wav": (wav_bytes(np.array([0.0, np.nan]), "FLOAT"), "NaN"),
    "surround.wav": (wav_bytes(np.zeros((100, 6))), "6 channels, expected mono or stereo"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_line_that_names_them(tmp_path, name):
    data, reason = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=reason) as error:
        io.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_wav_written_to_a_pipe_is_whole():
    """Its header claims nearly 4 GiB, since the writer could not go back to correct it."""
    data = bytearray(wav_bytes(noise(100)))
    at = data.index(b"data") + 4
    data[at : at + 4] = (0xFFFFFFFF).to_bytes(4, "little")
    np.testing.assert_array_equal(io.read(bytes(data)), noise(100))


def test_bad_requests_give_one_line(tmp_path):
    flac = io.encode_flac(noise(8000), 8000)
    for arguments, reason in (
        ({"start": 1.0}, "start is 1 s, expected 0 <= start < 1 s"),
        ({"start": -0.1}, "start is -0.1 s"),
        ({"duration": 0.0}, "duration is 0.0 s"),
        ({"expect_sample_rate": 16000}, "sample rate is 8000 Hz, expected 16000 Hz"),
    ):
        with pytest.raises(UserError, match=reason):
            io.read(flac, **arguments)
    with pytest.raises(UserError, match="no such file"):
        io.read(tmp_path / "none.wav")
    with pytest.raises(UserError, match="is a directory"):
        io.info(tmp_path)


def test_failed_writes_leave_nothing(tmp_path):
    good = noise(10)
    for path, audio, arguments, reason in (
        (tmp_path / "a.wav", np.array([np.nan]), {}, "NaN"),
        (tmp_path / "a.wav", np.zeros((0, 1)), {}, r"shape \[0, 1\]"),
        (tmp_path / "a.wav", np.zeros((5, 3)), {}, r"shape \[5, 3\]"),
        (tmp_path / "a.xyz", good, {}, "expected .wav, .flac or .ogg"),
        (tmp_path / "a.flac", good, {"subtype": "FLOAT"}, "FLAC cannot hold FLOAT"),
    ):
        with pytest.raises(UserError, match=reason):
            io.write(path, audio, 8000, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_clipping_is_said_and_saturates(tmp_path):
    with pytest.warns(UserWarning, match="peaks at 2 and is clipped"):
        io.write(tmp_path / "a.wav", np.array([2.0, -2.0]), 8000)
    np.testing.assert_array_equal(io.read(tmp_path / "a.wav")[:, 0], [32767 / 32768, -1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        io.write(tmp_path / "b.wav", np.array([1.0, -1.0]), 8000)


def test_ogg_and_folders_are_made(tmp_path: Path):
    path = tmp_path / "new" / "a.ogg"
    io.write(path, noise(4000), 16000, subtype="VORBIS")
    assert io.info(path).samples == 4000


def test_blocks_make_a_file(tmp_path):
    audio = 2 * noise(1000, 2, 24)
    with io.writer(tmp_path / "a.wav", 8000, 2) as write_block:
        for block in np.split(audio, [1, 1, 700]):
            write_block(block)
        assert not (tmp_path / "a.wav").exists()
    np.testing.assert_array_equal(io.read(tmp_path / "a.wav"), audio)
    assert io.info(tmp_path / "a.wav").subtype == "FLOAT"
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_blocks_that_fail_leave_nothing(tmp_path, monkeypatch):
    def attempt(path, *blocks):
        with pytest.raises(UserError) as error, io.writer(path, 8000, 1) as write_block:
            for block in blocks:
                write_block(block)
        assert not list(tmp_path.iterdir())
        return str(error.value)

    fine = np.zeros((5, 1), np.float32)
    assert "NaN" in attempt(tmp_path / "a.wav", fine, np.full((1, 1), np.nan))
    assert "expected .wav" in attempt(tmp_path / "a.flac", fine)
    monkeypatch.setattr(io, "_WAV_BYTES", 39)
    assert "4 GiB" in attempt(tmp_path / "a.wav", fine, fine)


@settings(deadline=None, max_examples=30)
@given(
    source=st.sampled_from(RATES),
    target=st.sampled_from(RATES),
    lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=5),
)
def test_resampled_blocks_equal_the_whole_resampled(source, target, lengths):
    audio = noise(sum(lengths), 2) * 0.5
    blocks = np.split(audio, np.cumsum(lengths)[:-1])
    found = np.concatenate(list(resample.resample_blocks(blocks, source, target)))
    expected = resample.resample(audio, source, target)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
