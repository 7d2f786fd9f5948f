"""Where the largest and the smallest values are, by comparisons in float32 on every platform."""

import jax
import jax.numpy as jnp

from mgen.typing import Array, Float


def argmax(x: Float[Array, "*B V"]) -> Array:
    """Index int32 [*B] of the first of the largest values; 0 where all are -inf."""
    return argmin(-x)[0]


def argmin(x: Float[Array, "*B V"]) -> tuple[Array, Array]:
    """Index int32 [*B] of the first of the smallest values, and that value, without a gradient;
    index 0 where all are inf.

    The compiler of TPUs (libtpu 0.0.42) holds the value beside the index in bfloat16 where nobody
    reads it, as after `jnp.argmin`: here the index does.
    """
    x = jax.lax.stop_gradient(x)
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    start = (jnp.asarray(jnp.inf, x.dtype), jnp.int32(0))
    smallest, first = jax.lax.reduce((x, index), start, _smaller, (x.ndim - 1,))
    return jnp.where(smallest < jnp.inf, first, 0), smallest


def _smaller(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, i), (y, j) = one, other
    keep = (x < y) | ((x == y) & (i < j))
    return jnp.where(keep, x, y), jnp.where(keep, i, j)
