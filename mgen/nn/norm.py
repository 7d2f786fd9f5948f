"""Norms of convolutional audio models: weight norm as a reparametrisation, group norm over time."""

import flax.linen as nn
import jax.numpy as jnp

from mgen.typing import Array, Float

GROUP_NORM_EPS = 1e-5


def weight_norm(direction: Array, scale: Array, axes: tuple[int, ...]) -> Array:
    """g v / |v| with the norm of v taken over `axes` (Salimans & Kingma 2016, eq. 2); `scale`
    broadcasts against the norm.
    """
    length = jnp.sqrt(jnp.sum(jnp.square(direction), axis=axes, keepdims=True))
    return direction * (scale.reshape(length.shape) / length)


class TimeGroupNorm(nn.Module):
    """Normalises each example over time and channels together, then scales each channel (EnCodec 48
    kHz).

    The statistics span the whole input, so it is neither causal nor exact in chunks.
    """

    features: int

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones, (self.features,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(x32, axis=(1, 2), keepdims=True)
        variance = jnp.mean(jnp.square(x32 - mean), axis=(1, 2), keepdims=True)
        y = (x32 - mean) / jnp.sqrt(variance + GROUP_NORM_EPS)
        return (y * self.scale[None, None] + self.bias[None, None]).astype(x.dtype)
