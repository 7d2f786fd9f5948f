"""Nearest neighbours and the sums of what was assigned to each: what vector quantisers and k-means
have in common. Distances are float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mgen.nn.extrema import argmin
from mgen.typing import Array, Float, Int


def nearest(
    x: Float[Array, "N D"], codebook: Float[Array, "V D"], chunk: int = 0
) -> tuple[Array, Array]:
    """Index [N] of the nearest codebook row and the squared distance [N] less |x|^2.

    |x - e|^2 = |x|^2 + (|e|^2 - 2 x.e), so all distances are one matrix product. With `chunk` it is
    done for that many rows at a time and never holds more than [chunk, V] distances.
    """
    if chunk and len(x) > chunk:
        rows = jnp.pad(x, ((0, -len(x) % chunk), (0, 0))).reshape(-1, chunk, x.shape[1])
        codes, distances = jax.lax.map(lambda part: nearest(part, codebook), rows)
        return codes.reshape(-1)[: len(x)], distances.reshape(-1)[: len(x)]
    return jax.lax.platform_dependent(x, codebook, cpu=_nearest_cpu, default=_nearest)


def _nearest(x: Array, codebook: Array) -> tuple[Array, Array]:
    products = jnp.matmul(x, codebook.T, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.sum(jnp.square(codebook), axis=-1)[None] - 2.0 * products
    return argmin(distances)


def _nearest_cpu(x: Array, codebook: Array) -> tuple[Array, Array]:
    """The same three times as fast on a CPU, where an argmin is not vectorised but a min is.

    |e|^2 is one more column of the product: what comes out of it are the distances themselves, so
    that both minima see the same bits.
    """
    rows = jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)
    squares = jnp.sum(jnp.square(codebook), axis=-1, keepdims=True)
    columns = jnp.concatenate([-2.0 * codebook, squares], axis=1)
    distances = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    smallest = jnp.min(distances, axis=-1)
    # Float indices: minima of integers are not vectorised either; exact up to 2^24 codes.
    index = jax.lax.broadcasted_iota(jnp.float32, distances.shape, 1)
    first = jnp.where(distances <= smallest[:, None], index, codebook.shape[0] - 1.0)
    return jnp.min(first, axis=-1).astype(jnp.int32), smallest


def assignment_sums(
    x: Float[Array, "N D"], codes: Int[Array, "N"], weights: Float[Array, "N"], size: int
) -> tuple[Array, Array]:
    """Weighted number [size] and sum [size, D] of the rows assigned to each code: a matrix product
    with one-hot rows on accelerators, additions one after the other on a CPU (100 times as fast
    there)."""
    return jax.lax.platform_dependent(
        x, codes, weights, cpu=_sums_by_addition(size), default=_sums_by_product(size)
    )


def _sums_by_addition(size: int) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
    def sums(x: Array, codes: Array, weights: Array) -> tuple[Array, Array]:
        total = jax.ops.segment_sum(x * weights[:, None], codes, size)
        return jax.ops.segment_sum(weights, codes, size), total

    return sums


def _sums_by_product(size: int) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
    def sums(x: Array, codes: Array, weights: Array) -> tuple[Array, Array]:
        one_hot = jax.nn.one_hot(codes, size, dtype=jnp.float32) * weights[:, None]
        total = jnp.matmul(one_hot.T, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(one_hot, axis=0), total

    return sums


def residual_codes(x: Float[Array, "N D"], codebooks: Float[Array, "K V D"]) -> tuple[Array, Array]:
    """Codes int32 [N, K] of residual quantisation and what is left of `x` [N, D] after it."""

    def level(residual: Array, codebook: Array) -> tuple[Array, Array]:
        codes, _ = nearest(residual, codebook)
        return residual - codebook[codes], codes

    residual, codes = jax.lax.scan(level, x, codebooks)
    return codes.T, residual
