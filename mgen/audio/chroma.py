"""Chroma: energy of the twelve pitch classes over time."""

import functools

import jax.numpy as jnp
import numpy as np

from mgen.audio import cqt as constant_q
from mgen.typing import Array


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
