"""Token and position embeddings."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

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

    def setup(self) -> None:
        # One table with offsets: one gather forward, one scatter-add backward.
        self.embedding = self.param(
            "embedding", nn.initializers.normal(0.02), (sum(self.sizes), self.dim), jnp.float32
        )

    def __call__(
        self, fields: Int[Array, "*B A"], slots: Int[Array, "*B A"] | None = None
    ) -> Float[Array, "*B D"]:
        """The sum; `slots` says which field each value is, None that they stand in order."""
        return self.rows(fields, slots).sum(axis=-2)

    def rows(
        self, fields: Int[Array, "*B A"], slots: Int[Array, "*B A"] | None = None
    ) -> Float[Array, "*B A D"]:
        """The embeddings before the sum."""
        return take_rows(self.embedding, fields, self.sizes, slots)


def sum_rows(
    table: Float[Array, "R D"], fields: Int[Array, "*B A"], sizes: tuple[int, ...]
) -> Float[Array, "*B D"]:
    """What `SumEmbed` gives with its joint `table`."""
    return take_rows(table, fields, sizes).sum(axis=-2)


def take_rows(
    table: Float[Array, "R D"],
    fields: Int[Array, "*B A"],
    sizes: tuple[int, ...],
    slots: Int[Array, "*B A"] | None = None,
) -> Float[Array, "*B A D"]:
    """Embeddings from a joint `table`, in which the rows of a field follow those of the fields
    before it.

    Args:
      slots: the field of each value; None where they stand in order.
    """
    starts = jnp.asarray([sum(sizes[:i]) for i in range(len(sizes))], jnp.int32)
    own = starts if slots is None else starts[slots]
    return table[fields + jnp.broadcast_to(own, fields.shape)]


class RelativeBias(nn.Module):
    """T5's learned bias on attention scores (Raffel et al. 2020, section 2.1): one value a head and
    bucket of distances.

    Half of the buckets hold one distance each, the others grow logarithmically up to
    `max_distance`; bidirectional attention has one set for either side.

    Attributes:
      buckets, max_distance: of the table.
      heads: H.
      bidirectional: False gives all buckets to the past, for causal attention.
    """

    buckets: int
    max_distance: int
    heads: int
    bidirectional: bool = True

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "H R"]:
        """Of the R = 2 length - 1 distances, key minus query, from 1 - length on."""
        init = nn.initializers.normal(0.02)
        table = self.param("embedding", init, (self.buckets, self.heads), jnp.float32)
        return table[self.bucket(np.arange(1 - length, length))].T

    def bucket(self, distance: np.ndarray) -> np.ndarray:
        """Row of the table for each distance (key minus query)."""
        buckets, side = self.buckets, np.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            side = (distance > 0) * buckets
            distance = np.abs(distance)
        else:
            distance = np.maximum(-distance, 0)
        exact = buckets // 2
        ratio = np.log(np.maximum(distance, 1) / exact) / np.log(self.max_distance / exact)
        coarse = exact + (ratio * (buckets - exact)).astype(np.int64)
        return side + np.where(distance < exact, distance, np.minimum(coarse, buckets - 1))
