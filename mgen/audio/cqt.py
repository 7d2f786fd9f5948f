"""Constant-Q transform (Brown 1991): a matrix product an octave; high ones have short windows."""

import functools

import jax
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
    sample_rate: int, n_bins: int, bins_per_octave: int, fmin: float, hop: int
) -> tuple[np.ndarray, ...]:
    """Of each octave, float32 [L / hop, hop, 2 bins]: windowed cosines and sines around sample
    L // 2."""
    lengths = window_lengths(sample_rate, n_bins, bins_per_octave, fmin)
    pitches = frequencies(n_bins, bins_per_octave, fmin)
    octaves = []
    for first in range(0, n_bins, bins_per_octave):
        own = slice(first, first + bins_per_octave)
        size = int(np.ceil((lengths[first] + 1) / hop)) * hop
        kernels = np.zeros((size, len(lengths[own])), np.complex128)
        for kernel, length, hz in zip(kernels.T, lengths[own], pitches[own], strict=True):
            time = np.arange(-length // 2, length // 2)
            window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(len(time)) / len(time))
            wave = window * np.exp(2j * np.pi * hz / sample_rate * time)
            begin = size // 2 + int(time[0])
            # L1-normalised, then times sqrt(length): white noise gives every bin the same energy.
            kernel[begin : begin + len(time)] = wave / np.abs(wave).sum() * np.sqrt(length)
        parts = np.concatenate([kernels.real, kernels.imag], axis=1).astype(np.float32)
        octaves.append(parts.reshape(-1, hop, parts.shape[1]))
    return tuple(octaves)


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
    count = 1 + x.shape[-1] // hop
    octaves = []
    for kernels in _kernels(sample_rate, n_bins, bins_per_octave, fmin, hop):
        blocks = kernels.shape[0]  # of one hop each
        left = blocks * hop // 2
        padding = [(0, 0)] * (x.ndim - 1) + [(left, (count + blocks) * hop - left - x.shape[-1])]
        signal = jnp.pad(x, padding).reshape(*x.shape[:-1], -1, hop)
        # Every block times every part of the kernels; a frame is the sum of its blocks' products.
        parts = jnp.einsum("...nt,itm->...nim", signal, kernels, precision="highest")
        frames = sum(parts[..., i : i + count, i, :] for i in range(blocks))
        octaves.append(jax.lax.complex(*jnp.split(frames, 2, axis=-1)))
    return fourier.magnitude(jnp.concatenate(octaves, axis=-1))
