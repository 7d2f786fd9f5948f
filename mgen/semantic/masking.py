"""What is hidden from the encoder in training: spans of frames, and segments under other music."""

import jax
import jax.numpy as jnp
import numpy as np

from mgen.nn.spans import covered
from mgen.typing import Array, Bool, Float, Key

NOISE_STD = 0.1


def span_mask(keys: Key, frames: int, probability: float, length: int) -> Bool[Array, "B F"]:
    """True at hidden frames: spans of `length` that start anywhere and may overlap.

    Args:
      keys: one an example.
      probability: expected share of hidden frames. A span starts at each frame with probability 1 -
        (1 - probability)^(1 / length); fairseq's `mask_prob` p is one of p / length.
    """
    start = -np.expm1(np.log1p(-probability) / length)

    def one(key: Key) -> Array:
        # Spans may begin before the recording, so that all its frames are hidden equally often.
        begins = jax.random.bernoulli(key, start, (frames + length - 1,))
        return covered(begins, length)

    return jax.vmap(one)(keys)


def fill_noise(
    keys: Key, x: Float[Array, "B N W"], mask: Bool[Array, "B F"], steps: int
) -> Float[Array, "B N W"]:
    """`x` with N(0, 0.1) in place of the hidden frames, each of them `steps` of its N (Chiu et al.
    2022, "BEST-RQ", section 3.1)."""
    count = x.shape[1]
    hidden = jnp.repeat(mask, steps, axis=1)[:, :count]
    hidden = jnp.pad(hidden, ((0, 0), (0, count - hidden.shape[1])))
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    return jnp.where(hidden[..., None], NOISE_STD * noise, x)


def mix_noise(
    keys: Key,
    audio: Float[Array, "B T C"],
    probability: float,
    snr_db: tuple[float, float],
    most: float = 0.5,
) -> Float[Array, "B T C"]:
    """Each example, with `probability`, under a segment of its neighbour in the batch (Li et al.
    2023, "MERT", section 3.4; Chen et al. 2022, "WavLM", section III-B).

    Args:
      snr_db: range of the level of the example over the segment's, dB.
      most: longest segment, as a share of the example.
    """
    batch, samples = audio.shape[:2]
    if batch == 1:
        return audio

    def level(x: Array) -> Array:
        return jnp.sqrt(jnp.mean(jnp.square(x)) + 1e-10)

    def one(key: Key, x: Array, other: Array) -> Array:
        which, length_key, start_key, shift_key, snr_key = jax.random.split(key, 5)
        length = jax.random.randint(length_key, (), 1, max(2, round(most * samples) + 1))
        start = jax.random.randint(start_key, (), 0, samples - length + 1)
        other = jnp.roll(other, jax.random.randint(shift_key, (), 0, samples), axis=0)
        snr = jax.random.uniform(snr_key, (), minval=snr_db[0], maxval=snr_db[1])
        gain = level(x) / level(other) * 10.0 ** (-snr / 20.0)
        time = jnp.arange(samples)
        within = (time >= start) & (time < start + length)
        within = within & jax.random.bernoulli(which, probability)
        return x + jnp.where(within[:, None], gain * other, 0.0)

    return jax.vmap(one)(keys, audio, jnp.roll(audio, 1, axis=0))
