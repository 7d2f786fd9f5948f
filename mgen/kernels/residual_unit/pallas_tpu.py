"""The residual unit of a codec in one pass over the signal, for TPUs.

Time lies in the lanes, [B, C, T]: a narrow signal then fills vector registers and takes no padding
in memory, and a tap of a dilated convolution is a rotation of lanes. A tile of time is read with
the steps left and right of it that the convolution reaches (the halo), in blocks of `LANES`. Taps
are stacked into a matrix of K C rows, so that a convolution is one product. Backward, everything
between x and y is computed again in the tile; of a tile with its halo the edges hold rotations from
the other edge, which nothing that is kept looks at:

    h = b0 + W0 [a(s)], a = act0(x)                y = x + b1 + W1 act1(h)
    dh = act1'(h) W1' dy                           dx = dy + act0'(x) W0' [dh(-s)]
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mgen.kernels.residual_unit.reference import Weights
from mgen.nn.activations import SNAKE_EPS
from mgen.typing import Array, Float

LANES = 128
# Of the matrix of stacked taps, the largest thing in VMEM.
STACK_BYTES = 2**21


class Settings(NamedTuple):
    """Of a call; static. `block`: steps of a tile."""

    activation: str
    dilation: int
    padding: tuple[int, int]
    length: int
    block: int
    interpret: Any


class Columns(NamedTuple):
    """The weights as the kernels read them, of products [rows, K C] @ [K C, T]: taps [H, K C] and,
    of the way back, back [C, K H], mix [C, H], the rest [., 1]."""

    taps: Array
    back: Array
    mix: Array
    bias_0: Array
    bias_1: Array
    alpha_0: Any
    alpha_1: Any


def residual_unit(
    x: Float[Array, "B T C"],
    weights: Weights,
    *,
    activation: str,
    dilation: int,
    padding: tuple[int, int],
    block: int = 0,
    interpret: Any = False,
) -> Float[Array, "B T C"]:
    """As `mgen.kernels.residual_unit.residual_unit`.

    Args:
      block: steps of a tile, 0 for as many as fit in VMEM.
      interpret: see `pl.pallas_call`.
    """
    kernel, channels, hidden = weights.kernel_0.shape
    if not block:
        column = kernel * max(channels, hidden) * x.dtype.itemsize
        block = min(2048, STACK_BYTES // column // 512 * 512)
    unit = _whole(sum(padding)) or LANES
    block = min(max(1, block // unit), -(-x.shape[1] // unit)) * unit
    settings = Settings(activation, dilation, padding, x.shape[1], block, interpret)
    # Time is often in the lanes already, and then neither is work.
    return jnp.swapaxes(_unit(settings, jnp.swapaxes(x, 1, 2), weights), 1, 2)


def _whole(steps: int) -> int:
    return -(-steps // LANES) * LANES


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unit(settings: Settings, x: Float[Array, "B C T"], weights: Weights) -> Array:
    return _forward(settings, x, weights)


def _forward_rule(settings: Settings, x: Array, weights: Weights) -> tuple[Array, Any]:
    return _forward(settings, x, weights), (x, weights)


def _backward_rule(settings: Settings, saved: Any, cotangent: Array) -> tuple[Array, Weights]:
    return _backward(settings, *saved, cotangent)


_unit.defvjp(_forward_rule, _backward_rule)


def _columns(weights: Weights, dtype: Any) -> Columns:
    kernel, channels, hidden = weights.kernel_0.shape
    taps = weights.kernel_0.astype(dtype)

    def column(v: Array | None) -> Any:
        return None if v is None else v.astype(jnp.float32)[:, None]

    return Columns(
        taps.reshape(kernel * channels, hidden).T,
        taps.transpose(1, 0, 2).reshape(channels, kernel * hidden),
        weights.kernel_1.astype(dtype).T,
        *map(column, (weights.bias_0, weights.bias_1, weights.alpha_0, weights.alpha_1)),
    )


class _Tiles:
    """Blocks of a signal [B, C, T] for the step (example, tile) of the grid, and windows of them:
    a tile with `halo` (left, right) steps of its neighbours."""

    def __init__(self, settings: Settings, x: Array):
        self.settings, self.channels = settings, x.shape[1]
        self.grid = (x.shape[0], pl.cdiv(settings.length, settings.block))

    def tile(self) -> pl.BlockSpec:
        return pl.BlockSpec((1, self.channels, self.settings.block), lambda b, i: (b, 0, i))

    def window(self, halo: tuple[int, int]) -> list[Any]:
        """Specs of the tile's left neighbours, itself, its right ones; None for no halo. Beyond
        the ends some block of the signal: `read` knows the time."""
        block, channels = self.settings.block, self.channels

        def side(steps: int, at: Any) -> pl.BlockSpec | None:
            if not steps:
                return None
            last = pl.cdiv(self.settings.length, steps) - 1
            clipped = lambda b, i: (b, 0, jnp.clip(at(i), 0, last))  # noqa: E731
            return pl.BlockSpec((1, channels, steps), clipped)

        left, right = halo
        return [
            side(left, lambda i: i * (block // left) - 1),
            self.tile(),
            side(right, lambda i: (i + 1) * (block // right)),
        ]

    def read(self, refs: Any, halo: tuple[int, int]) -> Float[Array, "C n"]:
        """The window in float32, zero outside the signal and where a side (None) is not read."""
        sides = []
        for ref, steps in zip(refs, (halo[0], self.settings.block, halo[1])):
            if steps:
                zeros = (self.channels, steps)
                sides.append(jnp.zeros(zeros, jnp.float32) if ref is None else _float(ref[0]))
        whole = jnp.concatenate(sides, axis=1)
        return jnp.where(self.inside(whole.shape, halo[0]), whole, 0.0)

    def inside(self, shape: tuple[int, ...], left: int) -> Array:
        """Where in a window the signal is."""
        step = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        time = pl.program_id(1) * self.settings.block - left + step
        return (time >= 0) & (time < self.settings.length)


def _float(x: Array) -> Array:
    return x.astype(jnp.float32)


def _activated(kind: str, x: Array, alpha: Any) -> tuple[Array, Array, Any]:
    """act(x), its derivative by x, and that by alpha."""
    if kind == "elu":
        below = jnp.exp(jnp.minimum(x, 0.0))
        return jnp.where(x > 0, x, below - 1.0), below, None
    gain = 1.0 / (alpha + SNAKE_EPS)
    sine, cosine = jnp.sin(alpha * x), jnp.cos(alpha * x)
    double = 2.0 * gain * sine * cosine
    square = gain * sine * sine
    return x + square, 1.0 + alpha * double, x * double - gain * square


def _shifts(settings: Settings, kernel: int) -> list[int]:
    """Of each tap: how many steps ahead of the output it looks."""
    return [k * settings.dilation - settings.padding[0] for k in range(kernel)]


def _stacked(
    x: Float[Array, "C n"], ahead: list[int], dtype: Any, kept: slice = slice(None)
) -> Float[Array, "KC m"]:
    """x as many steps ahead as each tap looks, in turn; of it the steps `kept`."""
    length = x.shape[1]
    moved = [pltpu.roll(x, -s % length, 1) if s else x for s in ahead]
    return jnp.concatenate([m[:, kept].astype(dtype) for m in moved], axis=0)


def _dot(a: Array, b: Array, right: int = 0) -> Array:
    """a @ b (b' where `right` is 1) in float32, as exact as convolutions of the program are."""
    dims = (((1,), (right,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _call(settings: Settings, kernel: Any, tiles: _Tiles, order: str, **fields: Any) -> Any:
    semantics: Any = (order, order)
    return pl.pallas_call(
        kernel,
        grid=tiles.grid,
        interpret=settings.interpret,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        **fields,
    )


def _whole_array(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda b, i: (0,) * len(x.shape))


def _forward(settings: Settings, x: Array, weights: Weights) -> Array:
    tiles = _Tiles(settings, x)
    left, right = settings.padding
    halo = _whole(left), _whole(right)
    ahead = _shifts(settings, weights.kernel_0.shape[0])
    columns = _columns(weights, x.dtype)

    def kernel(window: Any, w: Columns, out: Any) -> None:
        own = slice(halo[0], halo[0] + settings.block)
        read = tiles.read(window, halo)
        alphas = [None if a is None else a[...] for a in (w.alpha_0, w.alpha_1)]
        active, *_ = _activated(settings.activation, read, alphas[0])
        h = _dot(w.taps[...], _stacked(active, ahead, x.dtype, own)) + w.bias_0[...]
        h, *_ = _activated(settings.activation, h, alphas[1])
        branch = _dot(w.mix[...], h.astype(x.dtype)) + w.bias_1[...]
        out[0] = (read[:, own] + branch).astype(out.dtype)

    specs = tiles.window(halo)
    window = [None if s is None else x for s in specs]
    return _call(
        settings,
        kernel,
        tiles,
        "parallel",
        in_specs=[specs, jax.tree.map(_whole_array, columns)],
        out_specs=tiles.tile(),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    )(window, columns)


def _backward(
    settings: Settings, x: Array, weights: Weights, cotangent: Array
) -> tuple[Array, Weights]:
    """Gradients of x and of the weights, which are summed over the grid in float32."""
    tiles = _Tiles(settings, x)
    size, channels, hidden = weights.kernel_0.shape
    left, right = settings.padding
    edge = _whole(left + right)
    own = slice(edge, edge + settings.block)
    ahead = _shifts(settings, size)
    columns = _columns(weights, x.dtype)
    # Of y's gradient a tile needs the steps whose convolutions reach into it.
    halos = (edge, edge), (edge if right else 0, edge if left else 0)

    def kernel(
        window: Any, cotangents: Any, w: Columns, out: Any, found: Columns
    ) -> None:
        first = (pl.program_id(0) == 0) & (pl.program_id(1) == 0)

        @pl.when(first)
        def _() -> None:
            for total in jax.tree.leaves(found):
                total[...] = jnp.zeros_like(total)

        read, dy = tiles.read(window, halos[0]), tiles.read(cotangents, halos[0])
        alphas = [None if a is None else a[...] for a in (w.alpha_0, w.alpha_1)]
        active, slope_0, by_alpha_0 = _activated(settings.activation, read, alphas[0])
        taps = _stacked(active, ahead, x.dtype)
        h = _dot(w.taps[...], taps) + w.bias_0[...]
        mixed, slope_1, by_alpha_1 = _activated(settings.activation, h, alphas[1])
        pulled = _dot(w.mix[...].T, dy.astype(x.dtype))
        pulled = jnp.where(tiles.inside(pulled.shape, edge), pulled, 0.0)
        dh = pulled * slope_1
        behind = [-s for s in ahead]
        back = _dot(w.back[...], _stacked(dh, behind, x.dtype, own))
        out[0] = (dy[:, own] + back * slope_0[:, own]).astype(out.dtype)

        found.taps[...] += _dot(dh[:, own].astype(x.dtype), taps[:, own], 1)
        found.mix[...] += _dot(dy[:, own].astype(x.dtype), mixed[:, own].astype(x.dtype), 1)
        found.bias_0[...] += _summed(dh[:, own])
        found.bias_1[...] += _summed(dy[:, own])
        if settings.activation == "snake":
            found.alpha_0[...] += _summed(back * by_alpha_0[:, own])
            found.alpha_1[...] += _summed((pulled * by_alpha_1)[:, own])

    def shape(v: Array) -> Any:
        return jax.ShapeDtypeStruct(v.shape, jnp.float32)

    sums = columns._replace(back=None)
    specs = [tiles.window(halo) for halo in halos]
    windows = [
        [None if s is None else signal for s in sides]
        for sides, signal in zip(specs, (x, cotangent))
    ]
    gradient, found = _call(
        settings,
        kernel,
        tiles,
        "arbitrary",
        in_specs=[*specs, jax.tree.map(_whole_array, columns)],
        out_specs=[tiles.tile(), jax.tree.map(_whole_array, sums)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), jax.tree.map(shape, sums)],
    )(*windows, columns)
    of_weights = Weights(
        found.taps.T.reshape(size, channels, hidden),
        found.bias_0[:, 0],
        found.mix.T,
        found.bias_1[:, 0],
        *(None if a is None else a[:, 0] for a in (found.alpha_0, found.alpha_1)),
    )
    cast = jax.tree.map(lambda g, v: g.astype(v.dtype), of_weights, weights)
    return gradient, cast


def _summed(x: Float[Array, "C n"]) -> Float[Array, "C 1"]:
    return jnp.sum(x, axis=1, keepdims=True)
