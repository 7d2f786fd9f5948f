"""Attention to a cache, spelled out: what XLA runs."""

import jax
import jax.numpy as jnp

from mgen.typing import Array, Bool, Float


def cached_attention(
    query: Float[Array, "B H L hd"],
    key: Float[Array, "B G C hd"],
    value: Float[Array, "B G C hd"],
    mask: Bool[Array, "#B #L C"] | None = None,
    bias: Float[Array, "#B H L C"] | None = None,
) -> Float[Array, "B H L hd"]:
    """Attention over keys and values held heads-first, as a cache keeps them so that no step copies
    it.

    Args:
      query: H heads, a multiple of the G key-value heads.
      mask: True where a query may look.
      bias: added to the scores.
    """
    shape = batch, heads, length, width = query.shape
    groups = key.shape[1]
    query = (query * width**-0.5).reshape(batch, groups, heads // groups * length, width)
    scores = jnp.einsum("bgld,bgcd->bglc", query, key)
    scores = scores.reshape(batch, heads, length, -1)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
    scores = scores.reshape(batch, groups, -1, key.shape[2])
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bglc,bgcd->bgld", weights, value).reshape(shape)
