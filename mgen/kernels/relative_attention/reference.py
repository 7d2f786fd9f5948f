"""Attention with relative positions as it is written: all scores at once."""

import jax
import jax.numpy as jnp

from mgen.nn.masks import Nearby, visible
from mgen.typing import Array, Float


def relative_attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B G S D"],
    value: Float[Array, "B G S D"],
    bias: Float[Array, "H R"] | None = None,
    embedding: Float[Array, "H R D"] | None = None,
    nearby: Nearby | None = None,
    *,
    causal: bool = False,
    window: int = 0,
    sink: int = 0,
    scale: float = 1.0,
) -> Float[Array, "B H T D"]:
    """As `mgen.kernels.relative_attention.relative_attention`."""
    heads, length = query.shape[1:3]
    groups, source = key.shape[1:3]
    key, value = (jnp.repeat(x, heads // groups, axis=1) for x in (key, value))
    rows, columns = jnp.arange(length)[:, None], jnp.arange(source)[None]
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=jnp.float32)
    if embedding is not None:
        along = jnp.einsum("bhtd,hrd->bhtr", query, embedding, preferred_element_type=jnp.float32)
        scores = scores + by_position(along)
    scores = scores * scale
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)[:, columns - rows + length - 1][None]
    if causal:
        scores = jnp.where(visible(rows, columns, window, sink)[None, None], scores, -1e30)
    if nearby is not None:
        scores = jnp.where(nearby.mask(length)[:, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights, value)


def by_position(scores: Float[Array, "B H T R"]) -> Float[Array, "B H T S"]:
    """Scores [.., query, key] from scores by distance, R = T + S - 1 of them, key minus query
    rising from 1 - T: a row of zeros shifts each query's row by one (Dai et al. 2019, appendix
    B)."""
    *shape, length, distances = scores.shape
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0))).reshape(*shape, -1)
    return flat[..., length:].reshape(scores.shape)[..., : distances - length + 1]
