"""Attention with relative positions in linear memory, for TPUs.

Blocks of queries and keys meet in VMEM, softmax is taken as they come (Dao et al. 2022). What a
block adds for relative positions depends on key - query alone: one window of distances for each
block diagonal, n = bq + bk of them. A row of the block reads the window one place further left than
the row before it, which is one strided rotation of the window repeated in every row (a bias), or of
the queries' products with the embeddings of the window (Shaw et al. 2018; Huang et al. 2019 skew
the whole matrix in memory for this). The backward pass rotates the other way.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mgen.nn.masks import Nearby, in_context, visible
from mgen.typing import Array, Float

LANES, SUBLANES = 128, 8
NOTHING = -1e30


class Settings(NamedTuple):
    """Of a call; static. length and source are those before they were filled up to blocks, context
    and front of `Nearby`."""

    length: int
    source: int
    block: int
    causal: bool
    window: int
    sink: int
    scale: float
    context: int
    front: int
    interpret: Any


class Windows(NamedTuple):
    """Of each block diagonal, from the one in the lower left on: bias [H, N, 1, n], embedding
    [H, N, n, D]; None where there is none."""

    bias: Any
    embedding: Any


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
    block: int = 512,
    interpret: Any = False,
) -> Float[Array, "B H T D"]:
    """As `mgen.kernels.relative_attention.relative_attention`.

    Args:
      block: queries and keys of a block, a multiple of 128.
      interpret: see `pl.pallas_call`.
    """
    length, source = query.shape[2], key.shape[2]
    block = min(block, -(-max(length, source) // LANES) * LANES)
    everything, context, front = None, 0, 0
    if nearby is not None:
        everything = nearby.everything.astype(jnp.int32)
        context, front = nearby.context, nearby.front
    settings = Settings(
        length, source, block, causal, window, sink, scale, context, front, interpret
    )
    query, key, value = (_filled(x, block) for x in (query, key, value))
    # Distances of the windows: the last query of a block and its first key are furthest left.
    diagonals = np.arange(1 - query.shape[2] // block, key.shape[2] // block)
    at = diagonals[:, None] * block + np.arange(2 * block)[None] - (block - 1) + length - 1
    at = np.clip(at, 0, length + source - 2)
    windows = Windows(
        None if bias is None else bias.astype(jnp.float32)[:, at][:, :, None],
        None if embedding is None else embedding[:, at],
    )
    return _attention(settings, query, key, value, windows, everything)[:, :, :length]


def _filled(x: Array, block: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    settings: Settings, query: Array, key: Array, value: Array, windows: Windows, everything: Any
) -> Array:
    return _forward(settings, query, key, value, windows, everything)[0]


def _forward_rule(settings: Settings, *inputs: Any) -> tuple[Array, Any]:
    out, logsum = _forward(settings, *inputs)
    return out, (*inputs, out, logsum)


def _backward_rule(settings: Settings, saved: Any, cotangent: Array) -> tuple[Any, ...]:
    query, key, value, windows, everything, out, logsum = saved
    product = jnp.sum(cotangent.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    delta = jnp.broadcast_to(product[:, :, None], logsum.shape)
    inputs = query, key, value, windows, everything, cotangent, logsum, delta
    return (
        _query_gradient(settings, *inputs),
        *_key_gradients(settings, *inputs),
        _window_gradients(settings, *inputs),
        None,
    )


_attention.defvjp(_forward_rule, _backward_rule)


class _Grid:
    """Which block of each array a step of the grid (batch, head, i, j) reads; i counts blocks of
    queries and j of keys, or, with `keys_outside`, the other way round."""

    def __init__(self, settings: Settings, query: Array, key: Array, keys_outside: bool = False):
        self.settings = settings
        self.batch, self.heads, length, self.width = query.shape
        self.rows, self.columns = length // settings.block, key.shape[2] // settings.block
        self.group = self.heads // key.shape[1]
        self.keys_outside = keys_outside
        inner = (self.columns, self.rows) if keys_outside else (self.rows, self.columns)
        self.shape = (self.batch, self.heads, *inner)

    def order(self, i: Any, j: Any) -> tuple[Any, Any]:
        """Block of queries, block of keys."""
        return (j, i) if self.keys_outside else (i, j)

    def queries(self) -> pl.BlockSpec:
        size = (1, 1, self.settings.block, self.width)
        return pl.BlockSpec(size, lambda b, h, i, j: (b, h, self.order(i, j)[0], 0))

    def keys(self, group: bool = True) -> pl.BlockSpec:
        size, share = (1, 1, self.settings.block, self.width), self.group if group else 1
        # lax.div: the sign that `//` looks at needs a TPU to be known.
        at = lambda h: jax.lax.div(h, jnp.int32(share)) if share > 1 else h  # noqa: E731
        return pl.BlockSpec(size, lambda b, h, i, j: (b, at(h), self.order(i, j)[1], 0))

    def sums(self) -> pl.BlockSpec:
        size = (1, 1, SUBLANES, self.settings.block)
        return pl.BlockSpec(size, lambda b, h, i, j: (b, h, 0, self.order(i, j)[0]))

    def windows(self, windows: Windows) -> Windows:
        def diagonal(b: Any, h: Any, i: Any, j: Any) -> tuple[Any, ...]:
            row, column = self.order(i, j)
            return h, column - row + self.rows - 1, 0, 0

        return Windows(
            *(None if x is None else pl.BlockSpec((1, 1, *x.shape[2:]), diagonal) for x in windows)
        )


def _dot(a: Array, b: Array, left: int, right: int) -> Array:
    """Product of matrices over an axis of each, in float32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a,
        b,
        (((left,), (right,)), ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
    )


def _scores(
    settings: Settings,
    query: Array,
    key: Array,
    windows: Windows,
    whole: Any,
    row: Any,
    column: Any,
) -> Array:
    """[bq, bk] of a block, `NOTHING` where a query may not look; `whole` is whether the example has
    no restricted context, None where none has."""
    block = settings.block
    scores = _dot(query, key, 1, 1)
    if windows.embedding is not None:
        scores = scores + _skewed(_dot(query, windows.embedding[0, 0], 1, 1))
    scores = scores * settings.scale
    if windows.bias is not None:
        scores = scores + _skewed(jnp.broadcast_to(windows.bias[0, 0], (block, 2 * block)))
    rows = row * block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    columns = column * block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    seen = columns < settings.source
    if settings.causal:
        seen &= visible(rows, columns, settings.window, settings.sink)
    if whole is not None:
        seen &= whole | in_context(rows, columns, settings.context, settings.front)
    return jnp.where(seen, scores, NOTHING)


def _skewed(along: Float[Array, "bq n"]) -> Float[Array, "bq bk"]:
    """[r, c] is along[r, c - r + bq - 1]."""
    block = along.shape[0]
    return pltpu.roll(along, block + 1, 1, stride=1, stride_axis=0)[:, :block]


def _unskewed(scores: Float[Array, "bq bk"]) -> Float[Array, "bq n"]:
    """The transpose of `_skewed`, but for the order of its rows, which is turned round: strides of
    rotations are positive."""
    block = scores.shape[0]
    turned = _turned(scores)
    wide = jnp.concatenate([turned, jnp.zeros_like(turned)], axis=1)
    return pltpu.roll(wide, 0, 1, stride=1, stride_axis=0)[:, : 2 * block]


def _turned(rows: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """The rows in opposite order, by a product with a permutation."""
    size = rows.shape[0]
    i = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    j = jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    return _dot((i + j == size - 1).astype(rows.dtype), rows, 1, 0)


def _needed(settings: Settings, whole: Any, row: Any, column: Any) -> Any:
    """Whether any query of a block may see any of its keys."""
    block = settings.block
    begin, end = row * block, (row + 1) * block - 1
    first, last = column * block, (column + 1) * block - 1
    needed = row >= 0
    if settings.causal:
        needed &= first <= end
    if settings.window:
        needed &= (begin - last < settings.window) | (first < settings.sink)
    if whole is not None:
        near = (first - end <= settings.context) & (begin - last <= settings.context)
        near = (first < settings.front) | ((end >= settings.front) & near)
        needed &= whole | near
    return needed


def _whole(everything: Any, example: int) -> Any:
    """Of the example that is counted by that axis of the grid; see `_scores`."""
    return None if everything is None else everything[pl.program_id(example)] != 0


def _column(row: Float[Array, "8 n"]) -> Float[Array, "n 1"]:
    wide = jnp.broadcast_to(row[:1], (LANES, row.shape[1]))
    return jnp.transpose(wide)[:, :1]


def _call(settings: Settings, kernel: Any, grid: Any, parallel: int, **fields: Any) -> Any:
    semantics: Any = ("parallel",) * parallel + ("arbitrary",) * (len(grid) - parallel)
    return pl.pallas_call(
        kernel,
        grid=grid,
        interpret=settings.interpret,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        **fields,
    )


def _forward(
    settings: Settings, query: Array, key: Array, value: Array, windows: Windows, everything: Any
) -> tuple[Array, Array]:
    """The output, and the logarithm of the sum of each row's exponentials [B, H, 8, T]."""
    grid = _Grid(settings, query, key)
    block = settings.block

    def kernel(q: Any, k: Any, v: Any, tables: Windows, flags: Any, *rest: Any) -> None:
        out, logsum, most, total, sums = rest
        row, column, whole = pl.program_id(2), pl.program_id(3), _whole(flags, 0)

        @pl.when(column == 0)
        def _() -> None:
            most[...] = jnp.full_like(most, NOTHING)
            total[...] = jnp.zeros_like(total)
            sums[...] = jnp.zeros_like(sums)

        @pl.when(_needed(settings, whole, row, column))
        def _() -> None:
            scores = _scores(settings, q[0, 0], k[0, 0], tables, whole, row, column)
            before = most[:, :1]
            now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
            weights = jnp.where(scores > NOTHING / 2, jnp.exp(scores - now), 0.0)
            faded = jnp.exp(before - now)
            most[...] = jnp.broadcast_to(now, most.shape)
            total[...] = faded * total[...] + jnp.sum(weights, axis=1, keepdims=True)
            sums[...] = faded * sums[...] + _dot(weights.astype(v.dtype), v[0, 0], 1, 0)

        @pl.when(column == grid.columns - 1)
        def _() -> None:
            whole = jnp.maximum(total[...], 1e-30)
            out[0, 0] = (sums[...] / whole[:, :1]).astype(out.dtype)
            logsum[0, 0] = jnp.transpose(most[...] + jnp.log(whole))[:SUBLANES]

    shape = (*query.shape[:2], SUBLANES, query.shape[2])
    return _call(
        settings,
        kernel,
        grid.shape,
        3,
        in_specs=_read(grid, windows, everything)[:5],
        out_specs=[grid.queries(), grid.sums()],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((block, LANES), jnp.float32),
            pltpu.VMEM((block, LANES), jnp.float32),
            pltpu.VMEM((block, query.shape[3]), jnp.float32),
        ],
    )(query, key, value, windows, everything)


def _score_gradient(
    settings: Settings,
    refs: list[Any],
    whole: Any,
    row: Any,
    column: Any,
) -> tuple[Array, Array]:
    """The weights of a block, and the gradient of its scores before they were scaled by
    `settings.scale` (of a bias, which is added after that: as it is)."""
    q, k, v, windows, _, cotangent, logsum, delta = refs
    scores = _scores(settings, q[0, 0], k[0, 0], windows, whole, row, column)
    weights = jnp.exp(scores - _column(logsum[0, 0]))
    weights = jnp.where(scores > NOTHING / 2, weights, 0.0)
    pulled = _dot(cotangent[0, 0], v[0, 0], 1, 1)
    return weights, weights * (pulled - _column(delta[0, 0]))


def _query_gradient(settings: Settings, *inputs: Any) -> Array:
    query, key, _, windows, everything, *_ = inputs
    grid = _Grid(settings, query, key)

    def kernel(*refs: Any) -> None:
        *read, out, sums = refs
        row, column, whole = pl.program_id(2), pl.program_id(3), _whole(read[4], 0)

        @pl.when(column == 0)
        def _() -> None:
            sums[...] = jnp.zeros_like(sums)

        @pl.when(_needed(settings, whole, row, column))
        def _() -> None:
            _, gradient = _score_gradient(settings, read, whole, row, column)
            k, tables = read[1], read[3]
            gradient = gradient * settings.scale
            found = _dot(gradient.astype(k.dtype), k[0, 0], 1, 0)
            if tables.embedding is not None:
                along = _unskewed(gradient).astype(k.dtype)
                found += _turned(_dot(along, tables.embedding[0, 0], 1, 0))
            sums[...] += found

        @pl.when(column == grid.columns - 1)
        def _() -> None:
            out[0, 0] = sums[...].astype(out.dtype)

    return _call(
        settings,
        kernel,
        grid.shape,
        3,
        in_specs=_read(grid, windows, everything),
        out_specs=grid.queries(),
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        scratch_shapes=[pltpu.VMEM((settings.block, query.shape[3]), jnp.float32)],
    )(*inputs)


def _read(grid: _Grid, windows: Windows, everything: Any) -> list[Any]:
    """What the kernels read: queries, keys, values, windows, which examples see everything; and the
    backward ones the cotangent and two sums."""
    specs = [grid.queries(), grid.keys(), grid.keys(), grid.windows(windows)]
    flags = None if everything is None else pl.BlockSpec(memory_space=pltpu.SMEM)
    return [*specs, flags, grid.queries(), grid.sums(), grid.sums()]


def _key_gradients(settings: Settings, *inputs: Any) -> tuple[Array, Array]:
    query, key, value, windows, everything, *_ = inputs
    grid = _Grid(settings, query, key, keys_outside=True)

    def kernel(*refs: Any) -> None:
        *read, key_out, value_out, key_sums, value_sums = refs
        column, row, whole = pl.program_id(2), pl.program_id(3), _whole(read[4], 0)

        @pl.when(row == 0)
        def _() -> None:
            key_sums[...] = jnp.zeros_like(key_sums)
            value_sums[...] = jnp.zeros_like(value_sums)

        @pl.when(_needed(settings, whole, row, column))
        def _() -> None:
            weights, gradient = _score_gradient(settings, read, whole, row, column)
            q, cotangent = read[0], read[5]
            value_sums[...] += _dot(weights.astype(q.dtype), cotangent[0, 0], 0, 0)
            gradient = (gradient * settings.scale).astype(q.dtype)
            key_sums[...] += _dot(gradient, q[0, 0], 0, 0)

        @pl.when(row == grid.rows - 1)
        def _() -> None:
            key_out[0, 0] = key_sums[...].astype(key_out.dtype)
            value_out[0, 0] = value_sums[...].astype(value_out.dtype)

    batch, groups, source, width = key.shape
    # Of each head of the queries; heads that share keys are summed outside, in float32.
    dtype = key.dtype if grid.group == 1 else jnp.float32
    shape = jax.ShapeDtypeStruct((batch, grid.heads, source, width), dtype)
    found = _call(
        settings,
        kernel,
        grid.shape,
        3,
        in_specs=_read(grid, windows, everything),
        out_specs=[grid.keys(group=False)] * 2,
        out_shape=[shape, shape],
        scratch_shapes=[pltpu.VMEM((settings.block, width), jnp.float32)] * 2,
    )(*inputs)
    shared = (x.reshape(batch, groups, grid.group, source, width).sum(axis=2) for x in found)
    key_gradient, value_gradient = shared
    return key_gradient.astype(key.dtype), value_gradient.astype(value.dtype)


def _window_gradients(settings: Settings, *inputs: Any) -> Windows:
    """Along each block diagonal, over the batch: a grid of heads, diagonals, examples and blocks of
    queries."""
    query, key, _, windows, everything, *_ = inputs
    if windows.bias is None and windows.embedding is None:
        return windows
    grid = _Grid(settings, query, key)
    count = grid.rows + grid.columns - 1

    def column_of(diagonal: Any, row: Any) -> Any:
        return row + diagonal - (grid.rows - 1)

    def moved(spec: pl.BlockSpec) -> pl.BlockSpec:
        """The same blocks, in the order of this grid; off the matrix the nearest one."""

        def index(h: Any, d: Any, b: Any, i: Any) -> tuple[Any, ...]:
            column = jnp.clip(column_of(d, i), 0, grid.columns - 1)
            return spec.index_map(b, h, i, column)

        return pl.BlockSpec(spec.block_shape, index)

    def along(spec: pl.BlockSpec | None) -> pl.BlockSpec | None:
        if spec is None:
            return None
        return pl.BlockSpec(spec.block_shape, lambda h, d, b, i: (h, d, 0, 0))

    def kernel(*refs: Any) -> None:
        *read, bias, embedding = refs
        found = Windows(bias, embedding)
        diagonal, example, row = pl.program_id(1), pl.program_id(2), pl.program_id(3)
        column, whole = column_of(diagonal, row), _whole(read[4], 2)

        @pl.when((example == 0) & (row == 0))
        def _() -> None:
            for out in found:
                if out is not None:
                    out[...] = jnp.zeros_like(out)

        inside = (column >= 0) & (column < grid.columns)

        @pl.when(inside & _needed(settings, whole, row, column))
        def _() -> None:
            _, gradient = _score_gradient(settings, read, whole, row, column)
            q, tables = read[0], read[3]
            turned = _unskewed(gradient)
            if tables.bias is not None:
                found.bias[0, 0] += jnp.sum(turned, axis=0, keepdims=True)
            if tables.embedding is not None:
                queries = _turned(q[0, 0]).astype(q.dtype)
                scaled = (turned * settings.scale).astype(q.dtype)
                found.embedding[0, 0] += _dot(scaled, queries, 0, 0)

    *signals, tables, flags, cotangent, logsum, delta = _read(grid, windows, everything)
    specs: list[Any] = [*map(moved, signals), Windows(*map(along, tables)), flags]
    specs += map(moved, (cotangent, logsum, delta))
    shapes = Windows(
        *(None if x is None else jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in windows)
    )
    found = _call(
        settings,
        kernel,
        (grid.heads, count, grid.batch, grid.rows),
        2,
        in_specs=specs,
        out_specs=Windows(*map(along, tables)),
        out_shape=shapes,
    )(*inputs)
    return Windows(
        *(None if x is None else g.astype(x.dtype) for x, g in zip(windows, found, strict=True))
    )
