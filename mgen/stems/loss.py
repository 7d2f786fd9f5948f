"""Losses over stems [B, S, T, C]: pure functions.

  (1) denoising   mean of w(sigma) |D(x + sigma eps, sigma) - x|^2,
                  w(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, log sigma normal
  (2) separation  mean |x - y| + a mean over windows of mean |STFT x - STFT y|
  (3) D x = v / (v + sigma^2) x in each bin of a spectrum, the best that a filter can do which knows
      nothing but the mean power v of the bin; it leaves (sigma^2 / (v + sigma^2))^2 m +
      (v / (v + sigma^2))^2 sigma^2 of power m and noise sigma^2

(1) EDM (Karras et al. 2022, table 1) with one sigma for all stems is how MSDM trains (Mariani et
al. 2024); with one for each stem, 0 at those that are given, one model learns all conditional
distributions (Bao et al. 2023, "UniDiffuser"). (2) BS-RoFormer (Lu et al. 2024), with hops of a
quarter window. (3) Wiener's filter.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.audio import stft
from mgen.diffusion.loss import Times, denoising_loss, draw_times
from mgen.diffusion.process import Denoiser
from mgen.diffusion.trajectory import draw_noise
from mgen.typing import Array, Bool, Float, Key, ndarray

# Samples of a block whose spectrum (3) filters.
BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Part:
    """The training times between two of their quantiles, 0 and 1 for all of them."""

    times: Times
    low: float | Array
    high: float | Array

    def quantile(self, u: Array) -> Array:
        # The end of the last part may round to 1, where a quantile may be infinite.
        return self.times.quantile(jnp.minimum(self.low + (self.high - self.low) * u, 1 - 2.0**-24))


def noise_levels(
    keys: Key,
    counted: Bool[Array, "B S"],
    *,
    times: Times,
    per_track: bool,
    given: float,
    one_level: bool = False,
) -> Float[Array, "B #S 1 1"]:
    """sigma of each example or, with `per_track`, of each of its stems.

    Args:
      keys: [B], one an example.
      counted: stems that the loss counts.
      given: chance with which a stem has the level 0; where all those counted have, one of them has
        not.
      one_level: with `per_track`, whether the others have the same one.
    """
    if not per_track:
        return draw_times(times, keys, (1, 1, 1))
    stems = counted.shape[1]

    def clean(key: Key, counted: Bool[Array, " S"]) -> Bool[Array, " S"]:
        chance, order = jax.random.uniform(key, (2, stems))
        chosen = chance < given
        # Or the example would count for nothing.
        first = jnp.arange(stems) == jnp.argmax(jnp.where(counted, order, -1.0))
        return chosen & ~(first & jnp.all(chosen | ~counted))

    keys = jax.vmap(jax.random.split)(keys)
    levels = draw_times(times, keys[:, 0], (1 if one_level else stems, 1, 1))
    return jnp.where(jax.vmap(clean)(keys[:, 1], counted)[..., None, None], 0.0, levels)


def denoising(
    denoise: Denoiser,
    stems: Float[Array, "B S T C"],
    keys: Key,
    counted: Bool[Array, "B S"],
    *,
    times: Times,
    weight: Callable[[Array], Array],
    per_track: bool = False,
    given: float = 0.0,
    one_level: bool = False,
) -> Float[Array, " B"]:
    """(1) over the stems `counted` that are not given, or with another `weight`, finite at 0; other
    arguments as in `noise_levels`."""
    keys = jax.vmap(jax.random.split)(keys)
    kinds: dict[str, Any] = dict(per_track=per_track, given=given, one_level=one_level)
    sigma = noise_levels(keys[:, 0], counted, times=times, **kinds)
    return denoising_loss(
        denoise,
        stems,
        draw_noise(keys[:, 1], stems.shape[1:]),
        sigma,
        weight=weight,
        mask=counted[..., None, None] & (sigma > 0),
    )


def separation(
    target: Float[Array, "B S T C"],
    estimate: Float[Array, "B S T C"],
    *,
    spectral: float,
    windows: Sequence[int],
) -> Float[Array, " B"]:
    """(2) of each example; `spectral` is a."""
    error = jnp.moveaxis(target - estimate, -1, 2)  # [B, S, C, T]
    axes = (1, 2, 3)
    total = jnp.mean(jnp.abs(error), axis=axes)
    for window in windows:
        spectrum = stft.stft(error, n_fft=window, hop=window // 4, normalized=True)
        distance = jnp.mean(stft.magnitude(spectrum), axis=(*axes, 4))
        total += spectral / len(windows) * distance
    return total


def power_spectrum(
    stems: Float[ndarray, "B S T C"], counted: Bool[ndarray, "B S"]
) -> Float[ndarray, "S M"]:
    """Sum over examples of the mean power of each counted stem in the M bins of blocks of `BLOCK`
    samples side by side; white noise of variance v has v in each bin."""
    size = min(BLOCK, stems.shape[2])
    blocks = stems[:, :, : stems.shape[2] // size * size].astype(np.float64)
    blocks = blocks.reshape(*blocks.shape[:2], -1, size, blocks.shape[3])
    power = np.square(np.abs(np.fft.fft(blocks, axis=3, norm="ortho"))).mean(axis=(2, 4))
    return (power * counted[..., None]).sum(axis=0)


def wiener_loss(
    known: Float[ndarray, "S M"],
    power: Float[ndarray, "S M"],
    sigma: Float[ndarray, " N"],
    sigma_data: float,
) -> Float[ndarray, "N S"]:
    """(1) of the filter (3) at each noise level; `known` are v, `power` m."""
    noise = np.square(sigma)[:, None, None]
    total = np.maximum(known + noise, np.finfo(np.float64).tiny)
    error = np.square(noise / total) * power + np.square(known / total) * noise
    weight = (np.square(sigma) + sigma_data**2) / np.square(sigma * sigma_data)
    return weight[:, None] * error.mean(axis=2)
