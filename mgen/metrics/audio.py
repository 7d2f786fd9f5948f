"""How close an estimate is to its reference: sample by sample, and mel band by mel band."""

from collections.abc import Sequence

import jax.numpy as jnp

from mgen.audio import mel
from mgen.typing import Array

SI_SDR_LIMIT = 80.0  # dB; float32 says nothing beyond

# DAC's mel loss (Kumar et al. 2023; `conf/final/44khz.yml` of its release).
MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
MEL_BANDS = (5, 10, 20, 40, 80, 160, 320)
MEL_FLOOR = 1e-5


def si_sdr(reference: Array, estimate: Array, *, zero_mean: bool = True) -> Array:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019, equations 4 and 5).

    Args:
      reference, estimate: float [..., T].
      zero_mean: remove the mean of each signal first.

    Returns:
      float32 [...], dB within +-80. A silent reference or a silent estimate gives -80.
    """
    if zero_mean:
        reference = reference - reference.mean(axis=-1, keepdims=True)
        estimate = estimate - estimate.mean(axis=-1, keepdims=True)
    energy = jnp.square(reference).sum(axis=-1, keepdims=True)
    scale = (reference * estimate).sum(axis=-1, keepdims=True) / jnp.where(energy > 0, energy, 1.0)
    target = scale * reference
    signal = jnp.square(target).sum(axis=-1)
    distortion = jnp.square(estimate - target).sum(axis=-1)
    # Both bounds are relative to the estimate, or the ratio would depend on its scale.
    least = 10.0 ** (-SI_SDR_LIMIT / 10.0) * jnp.square(estimate).sum(axis=-1)
    heard = least > 0
    ratio = jnp.maximum(signal, least) / jnp.where(heard, jnp.maximum(distortion, least), 1.0)
    db = 10.0 * jnp.log10(jnp.where(heard, ratio, 1.0))
    return jnp.where(heard, jnp.clip(db, -SI_SDR_LIMIT, SI_SDR_LIMIT), -SI_SDR_LIMIT)


def mel_distance(
    reference: Array,
    estimate: Array,
    sample_rate: int,
    *,
    windows: Sequence[int] = MEL_WINDOWS,
    bands: Sequence[int] = MEL_BANDS,
) -> Array:
    """Multi-scale log-mel L1 distance, configured as DAC's mel loss (Kumar et al. 2023).

    Sum over the windows w of mean |log10 max(M_w reference, 1e-5) - log10 max(M_w estimate, 1e-5)|
    with M_w the magnitude mel spectrogram (Slaney filters) of hop w / 4.

    Args:
      reference, estimate: float [..., T].
      sample_rate: Hz.
      windows, bands: samples of each window and its number of mel bands.

    Returns:
      float32 [...].
    """
    pair = jnp.stack([reference, estimate])
    distance = jnp.zeros(reference.shape[:-1], jnp.float32)
    for window, n_mels in zip(windows, bands, strict=True):
        spectra = mel.mel_spectrogram(
            pair, sample_rate=sample_rate, n_fft=window, hop=window // 4, n_mels=n_mels
        )
        logs = jnp.log10(jnp.maximum(spectra, MEL_FLOOR))
        distance += jnp.abs(logs[0] - logs[1]).mean(axis=(-2, -1))
    return distance
