"""STFT, mel, CQT, chroma and onsets against librosa; gradients; inverses."""

from functools import partial

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from mgen.audio import chroma, cqt, mel, onsets, stft

RATE = 22050


def music(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Decaying tones at several pitches and a little noise: float32 [T]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    tones = [
        np.sin(2 * np.pi * hz * time) * np.exp(-3 * ((2 * time + i / 3) % 1))
        for i, hz in enumerate([65.4, 130.8, 220.0, 329.6, 523.25, 1760.0])
    ]
    return (0.2 * np.sum(tones, 0) + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.mark.parametrize(
    ("n_fft", "hop", "win_length", "center", "pad_mode"),
    [
        (1024, 256, None, True, "reflect"),
        (512, 160, 400, True, "constant"),
        (400, 123, None, True, "reflect"),  # gcd 1: the gather
        (512, 128, 320, False, "reflect"),
    ],
)
def test_stft_equals_librosa(n_fft, hop, win_length, center, pad_mode):
    x = np.stack([music(0.5), music(0.5, seed=1)])
    transform = partial(
        stft.stft, n_fft=n_fft, hop=hop, win_length=win_length, center=center, pad_mode=pad_mode
    )
    ours = jax.jit(transform)(x)
    theirs = librosa.stft(
        x, n_fft=n_fft, hop_length=hop, win_length=win_length, center=center, pad_mode=pad_mode
    )
    assert ours.shape[-2] == stft.num_frames(x.shape[-1], n_fft, hop, center)
    # float32 FFT of values up to 150.
    np.testing.assert_allclose(ours, theirs.swapaxes(-1, -2), atol=3e-5)


def test_normalized_divides_by_the_window_norm():
    x = music(0.2)
    plain = stft.stft(x, n_fft=512, hop=128, win_length=400)
    normalized = stft.stft(x, n_fft=512, hop=128, win_length=400, normalized=True)
    norm = np.sqrt(np.sum(librosa.filters.get_window("hann", 400) ** 2))
    np.testing.assert_allclose(normalized, plain / norm, atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "hop", "normalized"), [(1500, 64, False), (1111, 100, True), (600, 128, True)]
)
def test_istft_inverts_stft(samples, hop, normalized):
    options = {"n_fft": 512, "hop": hop, "win_length": 400, "normalized": normalized}
    x = np.random.default_rng(samples).standard_normal((2, samples)).astype(np.float32)
    spectrum = jax.jit(partial(stft.stft, **options))(x)
    y = jax.jit(partial(stft.istft, length=samples, **options))(spectrum)
    # The last frame is centred up to a hop before the end; what no window reaches cannot come back.
    covered = (spectrum.shape[-2] - 1) * hop + 400 // 2 - 60
    np.testing.assert_allclose(y[:, :covered], x[:, :covered], atol=1e-4)


def test_istft_without_centering():
    x = music(0.1)
    y = stft.istft(
        stft.stft(x, n_fft=256, hop=64, center=False), n_fft=256, hop=64, length=2205, center=False
    )
    np.testing.assert_allclose(y[64:1900], x[64:1900], atol=1e-5)


def test_frame_and_overlap_add_are_transposes():
    """<frame(x), y> = <x, overlap_add(y)>, on both ways of building frames."""
    rng = np.random.default_rng(0)
    for length, hop in ((64, 16), (50, 7)):
        x = rng.standard_normal(500).astype(np.float32)
        frames = stft.frame(jnp.asarray(x), length, hop)
        y = rng.standard_normal(frames.shape).astype(np.float32)
        expected = np.stack([x[i : i + length] for i in range(0, 500 - length + 1, hop)])
        np.testing.assert_array_equal(frames, expected)
        added = stft.overlap_add(jnp.asarray(y), hop, 500)
        assert float(np.vdot(frames, y)) == pytest.approx(float(np.vdot(x, added)), rel=1e-4)


def test_stft_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="at least n_fft"):
        stft.stft(np.zeros(100), n_fft=512, hop=128, center=False)
    with pytest.raises(ValueError, match="win_length"):
        stft.stft(np.zeros(1000), n_fft=512, hop=128, win_length=600)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_magnitude_has_a_finite_gradient_at_silence(power):
    def loss(x):
        return stft.magnitude(stft.stft(x, n_fft=64, hop=16), power).sum()

    x = jnp.concatenate([jnp.zeros(500), jnp.asarray(music(0.02)), jnp.full(100, 1e-25)])
    gradient = jax.jit(jax.grad(loss))(x)
    assert jnp.isfinite(gradient).all()
    assert jnp.abs(gradient).max() > 0
    np.testing.assert_allclose(
        stft.magnitude(jnp.array([3 + 4j, 0j]), power), [5.0**power, 0.0], rtol=1e-6
    )


@pytest.mark.parametrize("htk", [False, True])
@pytest.mark.parametrize("norm", ["slaney", None])
@pytest.mark.parametrize(
    ("rate", "n_fft", "n_mels", "fmin", "fmax"),
    [(22050, 2048, 128, 0.0, None), (16000, 400, 80, 20.0, 7600.0), (44100, 32, 5, 0.0, None)],
)
def test_filterbank_equals_librosa(htk, norm, rate, n_fft, n_mels, fmin, fmax):
    ours = mel.filterbank(rate, n_fft, n_mels, fmin, fmax, htk, norm)
    theirs = librosa.filters.mel(
        sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax, htk=htk, norm=norm
    )
    np.testing.assert_allclose(ours, theirs.T, atol=1e-6)


def test_mel_scales_invert():
    hz = np.array([0.0, 300.0, 999.0, 1000.0, 1001.0, 8000.0])
    for htk in (False, True):
        np.testing.assert_allclose(mel.mel_to_hz(mel.hz_to_mel(hz, htk), htk), hz, atol=1e-9)
        np.testing.assert_allclose(mel.hz_to_mel(hz, htk), librosa.hz_to_mel(hz, htk=htk))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_mel_spectrogram_equals_librosa(power):
    x = music(1.0)
    ours = mel.mel_spectrogram(
        x, sample_rate=RATE, n_fft=1024, hop=256, n_mels=80, power=power, pad_mode="constant"
    )
    theirs = librosa.feature.melspectrogram(
        y=x, sr=RATE, n_fft=1024, hop_length=256, n_mels=80, power=power
    )
    np.testing.assert_allclose(ours, theirs.T, rtol=1e-4, atol=1e-5)


def test_log_mel_and_decibels():
    x = np.concatenate([music(0.5), np.zeros(4000, np.float32)])
    options = {"sample_rate": RATE, "n_fft": 1024, "hop": 256, "n_mels": 64}
    power = mel.mel_spectrogram(x, power=2.0, **options)
    np.testing.assert_allclose(
        mel.power_to_db(power, top_db=80.0),
        librosa.power_to_db(np.asarray(power), top_db=80.0),
        atol=1e-4,
    )
    logs = mel.log_mel(x, floor=1e-3, **options)
    expected = np.log(np.maximum(mel.mel_spectrogram(x, **options), 1e-3))
    np.testing.assert_allclose(logs, expected, atol=1e-6)
    assert float(logs.min()) == pytest.approx(np.log(1e-3))


def test_top_db_is_of_each_example():
    power = jnp.stack([jnp.full((2, 3), 1.0), jnp.full((2, 3), 1e-9)])
    np.testing.assert_allclose(mel.power_to_db(power, top_db=20.0)[1], -90.0, atol=1e-4)


def test_cqt_equals_librosa():
    x = music(2.0)
    ours = np.asarray(jax.jit(partial(cqt.cqt, sample_rate=RATE, hop=512))(x))
    theirs = np.abs(librosa.cqt(x, sr=RATE, hop_length=512, tuning=0.0)).T
    assert ours.shape == theirs.shape
    # librosa downsamples for the lower octaves and drops the 1% smallest kernel weights: 2% of the
    # maximum.
    np.testing.assert_allclose(ours, theirs, atol=0.02 * theirs.max())
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


def test_cqt_peaks_at_the_note():
    time = np.arange(RATE) / RATE
    for semitone in (24, 45, 70):
        hz = cqt.C1 * 2 ** (semitone / 12)
        x = np.sin(2 * np.pi * hz * time).astype(np.float32)
        assert int(cqt.cqt(x, sample_rate=RATE, hop=512)[20].argmax()) == semitone
    with pytest.raises(ValueError, match="highest bin"):
        cqt.cqt(np.zeros(8000), sample_rate=4000, hop=512)


def test_musicgens_chroma_has_librosas_filters():
    theirs = librosa.filters.chroma(sr=chroma.SAMPLE_RATE, n_fft=chroma.N_FFT, tuning=0)
    np.testing.assert_allclose(
        chroma.filter_bank(chroma.SAMPLE_RATE, chroma.N_FFT), theirs.T, atol=1e-6
    )


def test_the_dominant_pitch_class_is_that_of_a_tone_in_every_octave():
    time = np.arange(chroma.SAMPLE_RATE) / chroma.SAMPLE_RATE
    for hz, name in ((110.0, 9), (440.0, 9), (880.0, 9), (261.63, 0), (523.25, 0), (369.99, 6)):
        found = chroma.dominant(np.sin(2 * np.pi * hz * time))
        assert found.dtype == np.float32 and found.shape == (1 + len(time) // chroma.HOP, 12)
        np.testing.assert_array_equal(found, np.eye(12)[[name] * len(found)])


def test_a_tune_becomes_its_pitch_classes_and_silence_c():
    seconds = np.arange(30 * chroma.SAMPLE_RATE) / chroma.SAMPLE_RATE
    tune = np.where(
        seconds < 10, np.sin(2 * np.pi * 440 * seconds), np.sin(2 * np.pi * 330 * seconds)
    )
    tune[seconds >= 20] = 0
    found = chroma.dominant(tune)
    # A frame is half a second long: those across a change may go either way.
    own = chroma.HOP / chroma.SAMPLE_RATE * np.arange(len(found))
    assert len(found) == 235 and np.all(found.sum(axis=1) == 1)
    for begin, end, name in ((0, 10, 9), (10, 20, 4), (20, 30, 0)):
        inside = (own > begin + 0.3) & (own < end - 0.3)
        assert np.all(found[inside].argmax(axis=1) == name)
    # Less than a frame is filled up on both sides.
    assert chroma.dominant(tune[:1000]).shape == (5, 12) and chroma.dominant(tune[:0]).shape == (
        5,
        12,
    )


def test_chroma_follows_librosa():
    x = music(2.0)
    ours = np.asarray(jax.jit(partial(chroma.chroma, sample_rate=RATE, hop=512))(x))
    theirs = librosa.feature.chroma_cqt(
        y=x, sr=RATE, hop_length=512, tuning=0.0, bins_per_octave=36
    ).T
    # As for the CQT; chroma is divided by its maximum, so 0.03 is of 1.
    np.testing.assert_allclose(ours, theirs, atol=0.03)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999
    assert not chroma.chroma(np.zeros(4000, np.float32), sample_rate=RATE, hop=512).any()


def test_onset_envelope_equals_librosa():
    x = music(2.0)
    ours = onsets.onset_envelope(x, sample_rate=RATE)
    np.testing.assert_allclose(ours, librosa.onset.onset_strength(y=x, sr=RATE), atol=1e-4)


@pytest.mark.parametrize(
    "feature",
    [
        lambda x: mel.log_mel(x, sample_rate=RATE, n_fft=512, hop=128, n_mels=20),
        lambda x: chroma.chroma(
            x, sample_rate=RATE, hop=512, bins_per_octave=12, octaves=3, fmin=4 * cqt.C1
        ),
        lambda x: onsets.onset_envelope(x, sample_rate=RATE, n_mels=20),
    ],
    ids=["log_mel", "chroma", "onset_envelope"],
)
def test_jit_batch_and_gradient(feature):
    batch = np.stack([music(0.3), np.zeros(6615, np.float32)])
    together, single = jax.jit(feature)(batch), jax.jit(feature)
    for index, example in enumerate(batch):
        np.testing.assert_allclose(together[index], single(example), rtol=1e-4, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: feature(x).sum()))(batch)
    assert jnp.isfinite(gradient).all()
    assert jnp.abs(gradient[0]).max() > 0
