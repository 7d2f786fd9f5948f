"""Onset strength: how much the spectrum grows from frame to frame."""

import jax.numpy as jnp

from mgen.audio import mel
from mgen.typing import Array


def onset_envelope(
    x: Array, *, sample_rate: int, hop: int = 512, n_fft: int = 2048, n_mels: int = 128
) -> Array:
    """Spectral flux of the mel spectrogram in dB (Boeck and Widmer 2013, no maximum filter).

    Equals `librosa.onset.onset_strength` with its defaults.

    Args:
      x: float [..., T].
      sample_rate: Hz.
      hop, n_fft: samples.
      n_mels: mel bands over which the flux is averaged.

    Returns:
      float32 [..., 1 + T // hop], non-negative; frame f belongs to sample f * hop.
    """
    power = mel.mel_spectrogram(
        x,
        sample_rate=sample_rate,
        n_fft=n_fft,
        hop=hop,
        n_mels=n_mels,
        power=2.0,
        pad_mode="constant",
    )
    db = mel.power_to_db(power, top_db=80.0)
    flux = jnp.maximum(db[..., 1:, :] - db[..., :-1, :], 0.0).mean(axis=-1)
    # A frame reaches n_fft / 2 samples ahead of its centre and so sees an onset that much early.
    delay = 1 + n_fft // (2 * hop)
    padded = jnp.pad(flux, [(0, 0)] * (flux.ndim - 1) + [(delay, 0)])
    return padded[..., : power.shape[-2]]
