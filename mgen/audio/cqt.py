"""Constant-Q transform by spectral kernels (Brown and Puckette 1992): an STFT, a matrix product."""

import functools

import jax.numpy as jnp
import numpy as np

from mgen.audio import stft as fourier
from mgen.typing import Array

C1 = 32.70319566257483  # Hz


def frequencies(n_bins: int, bins_per_octave: int = 12, fmin: float = C1) -> np.ndarray:
    """Centre frequencies in Hz, float64 [n_bins]."""
    return fmin * 2.0 ** (np.arange(n_bins) / bins_per_octave)


def window_lengths(sample_rate: int, n_bins: int, bins_per_octave: int, fmin: float) -> np.ndarray:
    """Samples (not rounded) of each bin's window: float64 [n_bins].

    The relative bandwidth of a bin is (r^2 - 1) / (r^2 + 1), r the ratio of neighbours, as librosa
    has it since 0.10.
    """
    ratio = 2.0 ** (2.0 / bins_per_octave)
    q = (ratio + 1) / (ratio - 1)
    return q * sample_rate / frequencies(n_bins, bins_per_octave, fmin)


@functools.lru_cache(maxsize=8)
def _kernels(
    sample_rate: int, n_bins: int, bins_per_octave: int, fmin: float
) -> tuple[int, np.ndarray]:
    """FFT size and complex64 [n_fft // 2 + 1, n_bins]: conjugate spectra of the windowed
    exponentials.
    """
    lengths = window_lengths(sample_rate, n_bins, bins_per_octave, fmin)
    n_fft = 2 ** int(np.ceil(np.log2(lengths[0])))
    kernels = np.zeros((n_bins, n_fft), np.complex128)
    for kernel, length, hz in zip(
        kernels, lengths, frequencies(n_bins, bins_per_octave, fmin), strict=True
    ):
        time = np.arange(-length // 2, length // 2)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(len(time)) / len(time))
        wave = window * np.exp(2j * np.pi * hz / sample_rate * time)
        begin = (n_fft - len(time)) // 2
        # L1-normalised, then times sqrt(length): white noise gives every bin the same energy.
        kernel[begin : begin + len(time)] = wave / np.abs(wave).sum() * np.sqrt(length)
    spectra = np.fft.fft(kernels)[:, : n_fft // 2 + 1] / n_fft
    return n_fft, spectra.conj().T.astype(np.complex64)


def cqt(
    x: Array,
    *,
    sample_rate: int,
    hop: int,
    n_bins: int = 84,
    bins_per_octave: int = 12,
    fmin: float = C1,
) -> Array:
    """Magnitude of the constant-Q transform, scaled as `librosa.cqt` scales it.

    Args:
      x: float [..., T].
      sample_rate: Hz.
      hop: samples; frame f is centred on sample f * hop, zeros lie beyond both ends.
      n_bins, bins_per_octave: M and its spacing.
      fmin: Hz of the lowest bin.

    Returns:
      float32 [..., 1 + T // hop, M].

    Raises:
      ValueError: the highest bin lies above half the sample rate.
    """
    top = frequencies(n_bins, bins_per_octave, fmin)[-1]
    if top >= sample_rate / 2:
        raise ValueError(f"highest bin {top:.0f} Hz, expected less than {sample_rate / 2:.0f} Hz")
    n_fft, kernels = _kernels(sample_rate, n_bins, bins_per_octave, fmin)
    padding = [(0, 0)] * (x.ndim - 1) + [(n_fft // 2, n_fft // 2)]
    frames = fourier.frame(jnp.pad(x, padding), n_fft, hop)
    # A rectangular window: each kernel brings its own.
    return fourier.magnitude(jnp.fft.rfft(frames, axis=-1) @ kernels)
