"""Token and position embeddings."""

import math

import flax.linen as nn
import jax.numpy as jnp

from mgen.typing import Array, Float, Int


def sinusoidal(positions: Int[Array, "*L"], dim: int) -> Float[Array, "*L D"]:
    """Fixed position embedding in MusicGen's order: all cosines, then all sines; a zero pads an odd
    `dim`.

    Frequencies are 10000^(-i / (dim/2 - 1)), i = 0 .. dim/2 - 1 (tensor2tensor's convention;
    Vaswani et al. 2017, section 3.5, interleaves and divides by dim/2). `dim` must be at least 4.
    """
    half = dim // 2
    frequency = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10000.0) / (half - 1)))
    angle = jnp.multiply.outer(positions.astype(jnp.float32), frequency)
    table = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return jnp.pad(table, [(0, 0)] * positions.ndim + [(0, dim % 2)])


def rope(
    x: Float[Array, "... hd"], positions: Int[Array, "..."], base: float = 10000.0
) -> Float[Array, "... hd"]:
    """Rotary position embedding (Su et al. 2021) on halves: (x1, x2) -> (x1 cos - x2 sin, x2 cos +
    x1 sin).

    Args:
      x: queries or keys; the head width hd is even.
      positions: broadcast against x without its last axis: [L] for [B, H, L, hd], [L, 1] for [B, L,
        H, hd].
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.multiply.outer(positions.astype(jnp.float32), frequency)
    angle = angle.reshape((1,) * (x.ndim - angle.ndim) + angle.shape)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    x1, x2 = x[..., :half], x[..., half:]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


class SumEmbed(nn.Module):
    """Sum of the embeddings of several integer fields, each with a table of its own.

    Attributes:
      sizes: rows of each field's table.
      dim: D.
    """

    sizes: tuple[int, ...]
    dim: int

    @nn.compact
    def __call__(self, fields: Int[Array, "*B A"]) -> Float[Array, "*B D"]:
        # One table with offsets: one gather forward, one scatter-add backward.
        table = self.param(
            "embedding", nn.initializers.normal(0.02), (sum(self.sizes), self.dim), jnp.float32
        )
        return sum_rows(table, fields, self.sizes)


def sum_rows(
    table: Float[Array, "R D"], fields: Int[Array, "*B A"], sizes: tuple[int, ...]
) -> Float[Array, "*B D"]:
    """What `SumEmbed` gives with its joint `table`, in which the rows of a field follow those of
    the fields before it."""
    starts = jnp.asarray([sum(sizes[:i]) for i in range(len(sizes))], jnp.int32)
    return table[fields + jnp.broadcast_to(starts, fields.shape)].sum(axis=-2)
