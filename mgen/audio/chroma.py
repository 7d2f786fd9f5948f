"""Chroma: energy of the twelve pitch classes over time."""

import functools

import jax.numpy as jnp
import numpy as np

from mgen.audio import cqt as constant_q
from mgen.audio.stft import hann
from mgen.typing import Array

# Of `dominant`, as MusicGen has it: Hz, and samples.
SAMPLE_RATE, N_FFT, HOP = 32000, 2**14, 2**12
_BLOCK = 64  # frames at once


@functools.lru_cache(maxsize=8)
def _fold(n_bins: int, bins_per_octave: int) -> np.ndarray:
    """float32 [n_bins, 12]: adds the bins of a pitch class (each goes to its nearest semitone)."""
    semitone = np.rint(np.arange(n_bins) * 12 / bins_per_octave).astype(int) % 12
    return np.eye(12, dtype=np.float32)[semitone]


def chroma(
    x: Array,
    *,
    sample_rate: int,
    hop: int,
    octaves: int = 7,
    bins_per_octave: int = 36,
    fmin: float = constant_q.C1,
    normalise: bool = True,
) -> Array:
    """CQT chroma.

    Args:
      x: float [..., T].
      sample_rate: Hz.
      hop: samples between frames; frame f is centred on sample f * hop.
      octaves: from `fmin` (Hz, which must be a C) upwards.
      bins_per_octave: resolution of the constant-Q transform, a multiple of 12.
      normalise: divide each frame by its maximum (silence stays zero).

    Returns:
      float32 [..., 1 + T // hop, 12], pitch classes from C upwards.
    """
    n_bins = octaves * bins_per_octave
    spectrum = constant_q.cqt(
        x,
        sample_rate=sample_rate,
        hop=hop,
        n_bins=n_bins,
        bins_per_octave=bins_per_octave,
        fmin=fmin,
    )
    classes = spectrum @ _fold(n_bins, bins_per_octave)
    if not normalise:
        return classes
    top = classes.max(axis=-1, keepdims=True)
    return classes / jnp.where(top > 0, top, 1.0)


def dominant(x: np.ndarray) -> np.ndarray:
    """The loudest pitch class of every frame: what MusicGen's melody model reads (Copet et al.
    2023, section 2.3).

    The released model removes drums and bass from the audio first; here it is taken as it is.

    Args:
      x: float [T] at 32 kHz; shorter than 2^14 samples, silence is added on both sides.

    Returns:
      float32 [1 + T // 2^12, 12] of zeros and a one, pitch classes from C upwards (in silence C);
      frame f is centred on sample f * 2^12: 235 frames for 30 s.
    """
    short = max(0, N_FFT - len(x))
    x = np.pad(np.asarray(x, np.float32), (short // 2, short - short // 2))
    padded = np.pad(x, N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    bank, window = filter_bank(SAMPLE_RATE, N_FFT), hann(N_FFT, N_FFT)
    loudest = [
        (np.abs(np.fft.rfft(frames[at : at + _BLOCK] * window[None])) ** 2 @ bank).argmax(axis=1)
        for at in range(0, len(frames), _BLOCK)
    ]
    return np.eye(12, dtype=np.float32)[np.concatenate(loudest)]


@functools.lru_cache(maxsize=2)
def filter_bank(sample_rate: int, n_fft: int) -> np.ndarray:
    """float32 [1 + n_fft // 2, 12]: how much each bin of a power spectrum counts for each pitch
    class. Gaussians around the classes, of unit norm in each bin, times one over octaves: those of
    librosa's `filters.chroma`."""
    hz = np.arange(1, 2 + n_fft // 2) * sample_rate / n_fft
    semitone = 12 * np.log2(hz / 27.5)  # above A0
    # The lowest bin has no pitch: it is put 1.5 octaves below the next one.
    semitone = np.concatenate([semitone[:1] - 18, semitone])
    width = np.maximum(np.diff(semitone), 1.0)[:, None]
    semitone = semitone[:-1, None]
    # From A upwards to from C upwards.
    away = (semitone - (np.arange(12) + 3)[None] % 12 + 6) % 12 - 6
    bank = np.exp(-0.5 * (2 * away / width) ** 2)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    return (bank * np.exp(-0.5 * ((semitone / 12 - 5) / 2) ** 2)).astype(np.float32)
