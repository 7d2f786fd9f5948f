"""Short-time Fourier transform, its inverse, and a magnitude with a finite gradient."""

import functools
from math import gcd

import jax
import jax.numpy as jnp
import numpy as np

from mgen.typing import Array

# Up to this many shifted slices, frames are built by concatenation (whose gradient is slices and
# sums); beyond, by a gather.
_MAX_SLICES = 32


@functools.lru_cache(maxsize=64)
def hann(win_length: int, n_fft: int) -> np.ndarray:
    """Periodic Hann window of `win_length`, centred in `n_fft` with zeros: float32 [n_fft]."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    before = (n_fft - win_length) // 2
    padded = np.pad(window, (before, n_fft - win_length - before)).astype(np.float32)
    padded.flags.writeable = False
    return padded


def num_frames(samples: int, n_fft: int, hop: int, center: bool = True) -> int:
    """Frames that `stft` gives for `samples`."""
    return 1 + (samples + 2 * (n_fft // 2) * center - n_fft) // hop


def frame(x: Array, length: int, hop: int) -> Array:
    """Overlapping frames: x [..., T] to [..., F, length] with F = 1 + (T - length) // hop."""
    samples = x.shape[-1]
    count = 1 + (samples - length) // hop
    chunk = gcd(length, hop)
    if length // chunk > _MAX_SLICES:
        index = np.arange(count)[:, None] * hop + np.arange(length)
        return x[..., index]
    step, parts = hop // chunk, length // chunk
    chunks = x[..., : samples // chunk * chunk].reshape(*x.shape[:-1], -1, chunk)
    last = (count - 1) * step + 1
    return jnp.concatenate([chunks[..., i : i + last : step, :] for i in range(parts)], axis=-1)


def overlap_add(frames: Array, hop: int, samples: int) -> Array:
    """Sum of frames [..., F, length] laid `hop` apart: [..., samples], the transpose of `frame`."""
    shape = jax.ShapeDtypeStruct((*frames.shape[:-2], samples), frames.dtype)
    transpose = jax.linear_transpose(lambda x: frame(x, frames.shape[-1], hop), shape)
    return transpose(frames)[0]


def stft(
    x: Array,
    *,
    n_fft: int,
    hop: int,
    win_length: int | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
) -> Array:
    """Short-time Fourier transform with a periodic Hann window.

    Args:
      x: float [..., T].
      n_fft, hop, win_length: samples; a window shorter than `n_fft` is centred in it. None is
        `n_fft`.
      center: pad n_fft // 2 on both sides, so that frame f is centred on sample f * hop; else
        frame f starts there.
      pad_mode: `jnp.pad` mode of that padding ("reflect", "constant").
      normalized: divide by the L2 norm of the window (torchaudio's `normalized=True`).

    Returns:
      complex64 [..., F, n_fft // 2 + 1], F as `num_frames` says.

    Raises:
      ValueError: x shorter than one frame, or a window longer than `n_fft`.
    """
    win_length = _checked_window(n_fft, win_length)
    if center:
        padding = [(0, 0)] * (x.ndim - 1) + [(n_fft // 2, n_fft // 2)]
        x = jnp.pad(x, padding, mode=pad_mode)
    if x.shape[-1] < n_fft:
        raise ValueError(f"stft of {x.shape[-1]} samples, expected at least n_fft = {n_fft}")
    window = hann(win_length, n_fft)
    if normalized:
        window = window / np.linalg.norm(window)
    frames = frame(x, n_fft, hop)
    return jnp.fft.rfft(frames * _last_axis(window, frames.ndim), axis=-1)


def istft(
    spectrum: Array,
    *,
    n_fft: int,
    hop: int,
    length: int,
    win_length: int | None = None,
    center: bool = True,
    normalized: bool = False,
) -> Array:
    """Least-squares inverse of `stft` (Griffin and Lim 1984, equation 6).

    Args:
      spectrum: complex [..., F, n_fft // 2 + 1].
      length: samples T of the result; samples under no window come out as zeros.
      n_fft, hop, win_length, center, normalized: as given to `stft`.

    Returns:
      float32 [..., T].
    """
    win_length = _checked_window(n_fft, win_length)
    window = hann(win_length, n_fft)
    scale = float(np.linalg.norm(window)) if normalized else 1.0
    frames = jnp.fft.irfft(spectrum, n=n_fft, axis=-1)
    frames = frames * _last_axis(window * scale, frames.ndim)
    count = spectrum.shape[-2]
    padded = max(n_fft + hop * (count - 1), length + (n_fft // 2 if center else 0))
    # Frames past a longer signal's last one are zeros, so that the overlap-add covers `padded`
    # samples.
    extra = 1 + (padded - n_fft) // hop - count
    frames = jnp.pad(frames, [(0, 0)] * (frames.ndim - 2) + [(0, extra), (0, 0)])
    energy = np.zeros(padded, np.float32)
    for i in range(count):
        energy[i * hop : i * hop + n_fft] += window**2
    inverse = np.where(energy > 1e-8, 1 / np.maximum(energy, 1e-8), 0)
    signal = overlap_add(frames, hop, padded) * _last_axis(inverse, frames.ndim - 1)
    begin = n_fft // 2 if center else 0
    return signal[..., begin : begin + length]


def _last_axis(vector: np.ndarray, ndim: int) -> np.ndarray:
    """[n] to [1, ..., 1, n]: nothing here relies on rank promotion."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def _checked_window(n_fft: int, win_length: int | None) -> int:
    win_length = n_fft if win_length is None else win_length
    if not 0 < win_length <= n_fft:
        raise ValueError(f"win_length is {win_length}, expected 1 to n_fft = {n_fft}")
    return win_length


def magnitude(spectrum: Array, power: float = 1.0) -> Array:
    """|z| ** power of a complex array; the gradient at z = 0 is zero, not NaN (power > 0)."""
    square = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    if power == 2.0:
        return square
    positive = square > 0
    root = jnp.sqrt(jnp.where(positive, square, 1.0))
    root = root if power == 1.0 else root**power
    return jnp.where(positive, root, 0.0)
