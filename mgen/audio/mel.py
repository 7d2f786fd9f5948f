"""Mel filterbanks and (log-)mel spectrograms."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from mgen.audio import stft as fourier
from mgen.typing import Array

# Slaney's scale (Auditory Toolbox, 1998): linear to 1 kHz, then 27 steps of log(6.4) / 27 an octave
# and a half.
_LINEAR_STEP = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_STEP
_LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: np.ndarray | float, htk: bool = False) -> np.ndarray:
    """Mel of frequencies in Hz, on Slaney's scale or HTK's (2595 log10(1 + f / 700))."""
    hz = np.asarray(hz, np.float64)
    if htk:
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    above = _BREAK_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hz < _BREAK_HZ, hz / _LINEAR_STEP, above)


def mel_to_hz(mel: np.ndarray | float, htk: bool = False) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    if htk:
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    above = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_STEP, above)


@functools.lru_cache(maxsize=64)
def filterbank(
    sample_rate: int,
    n_fft: int,
    n_mels: int,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: str | None = "slaney",
) -> np.ndarray:
    """Triangular mel filters, equal to `librosa.filters.mel(...).T`.

    Args:
      sample_rate: Hz.
      n_fft: samples of the STFT.
      n_mels: filters M.
      fmin, fmax: Hz; None is sample_rate / 2.
      htk: HTK's mel scale instead of Slaney's.
      norm: "slaney" gives each filter unit area over Hz, None a peak of 1.

    Returns:
      float32 [n_fft // 2 + 1, M], read-only.
    """
    if norm not in ("slaney", None):
        raise ValueError(f"norm is {norm!r}, expected 'slaney' or None")
    fmax = sample_rate / 2 if fmax is None else fmax
    edges = mel_to_hz(np.linspace(hz_to_mel(fmin, htk), hz_to_mel(fmax, htk), n_mels + 2), htk)
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0, np.minimum(rising, falling))
    if norm == "slaney":
        weights *= 2.0 / (edges[2:] - edges[:-2])
    filters = weights.astype(np.float32)
    filters.flags.writeable = False
    return filters


def mel_spectrogram(
    x: Array,
    *,
    sample_rate: int,
    n_fft: int,
    hop: int,
    n_mels: int,
    win_length: int | None = None,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: str | None = "slaney",
    power: float = 1.0,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
) -> Array:
    """Mel spectrogram of x [..., T]: |STFT| ** power through `filterbank`, float32 [..., F, M].

    Arguments as in `stft` and `filterbank`; errors as there.
    """
    spectrum = fourier.stft(
        x,
        n_fft=n_fft,
        hop=hop,
        win_length=win_length,
        center=center,
        pad_mode=pad_mode,
        normalized=normalized,
    )
    filters = filterbank(sample_rate, n_fft, n_mels, fmin, fmax, htk, norm)
    return fourier.magnitude(spectrum, power) @ filters


def log_mel(x: Array, *, floor: float = 1e-5, **options: Any) -> Array:
    """Natural log of `mel_spectrogram(x, **options)` clamped at `floor` from below: [..., F, M]."""
    return jnp.log(jnp.maximum(mel_spectrogram(x, **options), floor))


def power_to_db(power: Array, floor: float = 1e-10, top_db: float | None = None) -> Array:
    """10 log10 of a power spectrogram [..., F, M] clamped at `floor`.

    Args:
      top_db: raise all to within this many dB of each example's maximum; None keeps the range.
    """
    db = 10.0 * jnp.log10(jnp.maximum(power, floor))
    if top_db is None:
        return db
    return jnp.maximum(db, db.max(axis=(-2, -1), keepdims=True) - top_db)
