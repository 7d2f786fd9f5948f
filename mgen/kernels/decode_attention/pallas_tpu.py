"""Attention of one query a sequence to the filled part of a cache, for TPUs.

Where heads do not fill the lanes, positions do, [B, G, hd, C]: heads of 64 then take no padding in
memory, and XLA keeps the cache so. A grid step reads a block of positions of all heads of a
sequence; blocks behind the filled part have the number of its last one, which is there already, and
are passed over. Between blocks go the largest score, the sum of the exponentials and the weighted
values so far (Milakov and Gimelshein 2018).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mgen.typing import Array, Bool, Float, Int

LANES = 128
# Of keys and as many of values, in two buffers each.
BLOCK_BYTES = 2**20
HIDDEN = -1e30  # of a score; finite, or nothing seen so far would make NaN


def decode_attention(
    query: Float[Array, "B H hd"],
    key: Float[Array, "B G C hd"],
    value: Float[Array, "B G C hd"],
    filled: Int[Array, ""],
    mask: Bool[Array, "#B C"] | None = None,
    bias: Float[Array, "#B H C"] | None = None,
    *,
    interpret: Any = False,
) -> Float[Array, "B H hd"]:
    """See `mgen.kernels.decode_attention.decode_attention`."""
    batch, groups, capacity, width = key.shape
    shared = query.shape[1] // groups
    size = capacity * groups * width * key.dtype.itemsize
    block = min(max(1, BLOCK_BYTES * capacity // size // LANES) * LANES, capacity)
    wide = width % LANES == 0
    added = jnp.zeros((1, 1, capacity)) if bias is None else bias
    if mask is not None:
        added = jnp.where(mask[:, None], added, HIDDEN)
    heads = (groups, shared) if added.shape[1] > 1 else (1, 1)
    added = added.reshape(added.shape[0], *heads, capacity)
    query = (query * width**-0.5).reshape(batch, groups, shared, width)

    def at(c: Array, filled: Array) -> Array:
        return jnp.minimum(c, (filled[0] - 1) // block)

    def cached(b: Array, c: Array, filled: Array) -> tuple[Any, ...]:
        return (b, 0, at(c, filled), 0) if wide else (b, 0, 0, at(c, filled))

    def added_at(b: Array, c: Array, filled: Array) -> tuple[Any, ...]:
        return (b if added.shape[0] > 1 else 0), 0, 0, at(c, filled)

    def own(b: Array, c: Array, filled: Array) -> tuple[Any, ...]:
        return b, 0, 0, 0

    cache = pl.BlockSpec((1, groups, *((block, width) if wide else (width, block))), cached)
    one = pl.BlockSpec((1, groups, shared, width), own)
    out = pl.pallas_call(
        functools.partial(_kernel, block=block, axis=2 if wide else 3),
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, pl.cdiv(capacity, block)),
            in_specs=[one, cache, cache, pl.BlockSpec((1, *heads, block), added_at)],
            out_specs=one,
            scratch_shapes=[
                pltpu.VMEM((groups, shared, 1), jnp.float32),
                pltpu.VMEM((groups, shared, 1), jnp.float32),
                pltpu.VMEM((groups, shared, width), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(
        jnp.reshape(filled, (1,)).astype(jnp.int32),
        query,
        key if wide else key.swapaxes(2, 3),
        value if wide else value.swapaxes(2, 3),
        added,
    )
    return out.reshape(batch, -1, width)


def _kernel(
    filled: Any,
    query: Any,
    key: Any,
    value: Any,
    added: Any,
    out: Any,
    *carried: Any,
    block: int,
    axis: int,
) -> None:
    """`axis`: that of the positions in the cache."""
    largest, total, weighted = carried
    begin = pl.program_id(1) * block
    letters = "gcd" if axis == 2 else "gdc"

    def inside(shape: tuple[int, ...], axis: int) -> Array:
        return begin + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < filled[0]

    @pl.when(begin == 0)
    def _() -> None:
        largest[...] = jnp.full_like(largest, HIDDEN)
        total[...] = jnp.zeros_like(total)
        weighted[...] = jnp.zeros_like(weighted)

    @pl.when(begin < filled[0])
    def _() -> None:
        keys, values = key[0].astype(jnp.float32), value[0].astype(jnp.float32)
        scores = _product(f"grd,{letters}->grc", query[0].astype(jnp.float32), keys) + added[0]
        scores = jnp.where(inside(scores.shape, 2), scores, HIDDEN)
        # What is behind the filled part may be anything, and 0 times anything is not always 0.
        values = jnp.where(inside(values.shape, axis - 1), values, 0.0)
        above = jnp.maximum(largest[...], scores.max(axis=2, keepdims=True))
        faded, weights = jnp.exp(largest[...] - above), jnp.exp(scores - above)
        largest[...] = above
        total[...] = total[...] * faded + weights.sum(axis=2, keepdims=True)
        weighted[...] = weighted[...] * faded + _product(f"grc,{letters}->grd", weights, values)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _() -> None:
        out[0] = (weighted[...] / total[...]).astype(out.dtype)


def _product(spec: str, a: Array, b: Array) -> Array:
    """Of each head; float32."""
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum(spec, a, b, precision=exact, preferred_element_type=jnp.float32)
