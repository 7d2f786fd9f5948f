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
    """Normalises each example over time and the channels of each of `groups` groups, then scales
    each channel (Wu & He 2018); EnCodec 48 kHz has one group, of all channels.

    The statistics span the whole input, so it is neither causal nor exact in chunks.
    """

    features: int
    groups: int = 1

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones, (self.features,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - self._mean(x32)
        y = centred / jnp.sqrt(self._mean(jnp.square(centred)) + GROUP_NORM_EPS)
        return (y * self.scale[None, None] + self.bias[None, None]).astype(x.dtype)

    def _mean(self, x: Array) -> Array:
        """Mean of each group, [B, 1, C]."""
        # Time first: up to four times as fast on the CPU as time and channels at once.
        mean = jnp.mean(x, axis=1).reshape(x.shape[0], self.groups, -1).mean(axis=2)
        return jnp.repeat(mean, self.features // self.groups, axis=1)[:, None]
