"""Attention with relative positions as it is written: all scores at once."""

import jax
import jax.numpy as jnp

from mgen.nn.masks import visible
from mgen.typing import Array, Float


def relative_attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B G S D"],
    value: Float[Array, "B G S D"],
    bias: Float[Array, "H R"] | None = None,
    embedding: Float[Array, "H R D"] | None = None,
    *,
    causal: bool = False,
    window: int = 0,
    sink: int = 0,
    scale: float = 1.0,
) -> Float[Array, "B H T D"]:
    """As `mgen.kernels.relative_attention.relative_attention`."""
    batch, heads, length, _ = query.shape
    groups, source = key.shape[1:3]
    key, value = (jnp.repeat(x, heads // groups, axis=1) for x in (key, value))
    rows, columns = jnp.arange(length)[:, None], jnp.arange(source)[None]
    at = columns - rows + length - 1
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=jnp.float32)
    if embedding is not None:
        along = jnp.einsum("bhtd,hrd->bhtr", query, embedding, preferred_element_type=jnp.float32)
        index = jnp.broadcast_to(at[None, None], (batch, heads, *at.shape))
        scores = scores + jnp.take_along_axis(along, index, axis=3)
    scores = scores * scale
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)[:, at][None]
    if causal:
        scores = jnp.where(visible(rows, columns, window, sink)[None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights, value)
