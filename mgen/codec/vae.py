"""The Gaussian bottleneck of latent diffusion codecs (Stable Audio's Oobleck)."""

import jax
import jax.numpy as jnp

from mgen.typing import Array, Float, Key

STD_FLOOR = 1e-4


def moments(encoded: Float[Array, "B F E"]) -> tuple[Array, Array]:
    """Mean and standard deviation [B, F, D] from the encoder's 2 D channels: std = softplus(scale)
    + 1e-4.
    """
    mean, scale = jnp.split(encoded, 2, axis=-1)
    return mean, jax.nn.softplus(scale) + STD_FLOOR


def kl_divergence(mean: Array, std: Array) -> Array:
    """mean^2 + std^2 - log std^2 - 1, summed over D, averaged over batch and frames: twice the KL
    to N(0, 1), nats.
    """
    variance = jnp.square(std)
    kl = jnp.square(mean) + variance - jnp.log(variance) - 1.0
    return jnp.mean(jnp.sum(kl, axis=-1))


def sample(key: Key, mean: Array, std: Array) -> Array:
    """One draw, with noise of its own for each example."""
    return mean + std * jax.random.normal(key, mean.shape, mean.dtype)
