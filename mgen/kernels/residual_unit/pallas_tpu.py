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
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mgen.kernels.residual_unit.reference import Weights
from mgen.nn.activations import SNAKE_EPS
from mgen.typing import Array, Float

LANES = 128
# Channels are stacked in rows of registers: 16 of bfloat16 to one.
ROWS = 16
# Of the matrix of stacked taps, the largest thing in VMEM.
STACK_BYTES = 3 * 2**20
# The widest that compiled for v5e, v5p and v6e in both types at seven taps.
CHANNELS = 384
VMEM_BYTES = 48 * 2**20
PI_HIGH = 3.140625
# sin(r) / r and cos(r) in powers of r^2, for |r| <= pi / 2 (interpolated at Chebyshev's nodes).
SINE = (1.0, -0.16666658222675323, 0.008333050645887852, -0.00019809033256024122, 2.605136842e-6)
COSINE = (1.0, -0.5, 0.04166663438081741, -0.0013888360699638724, 2.47601183e-5, -2.60507818e-7)


class Settings(NamedTuple):
    """Of a call; static. block: steps of a tile; edge: of a side of its halo, a divisor of block;
    length: of the signal."""

    activation: str
    dilation: int
    padding: tuple[int, int]
    length: int
    block: int
    edge: int
    interpret: Any


class Columns(NamedTuple):
    """The weights as the kernels read them, of products [rows, K C] @ [K C, T]: taps [H, K C] and,
    of the way back, back [C, K H], mix [C, H], the rest [., 1]."""

    taps: Array
    back: Any
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
        block = min(2048, max(512, STACK_BYTES // column // 512 * 512))
    edge = -(-sum(padding) // LANES) * LANES
    unit = edge or LANES
    block = min(max(1, block // unit), -(-x.shape[1] // unit)) * unit
    settings = Settings(activation, dilation, padding, x.shape[1], block, edge, interpret)
    # The compiler mostly has time in the lanes already: then this moves nothing.
    return jnp.swapaxes(_unit(settings, jnp.swapaxes(x, 1, 2), weights), 1, 2)


def fits(weights: Weights) -> bool:
    """Whether channels fill whole registers, and are few enough for VMEM."""
    _, channels, hidden = weights.kernel_0.shape
    return not (channels % ROWS or hidden % ROWS) and max(channels, hidden) <= CHANNELS


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unit(settings: Settings, x: Float[Array, "B C T"], weights: Weights) -> Array:
    return _forward(settings, x, weights)


def _forward_rule(settings: Settings, x: Array, weights: Weights) -> tuple[Array, Any]:
    return _forward(settings, x, weights), (x, weights)


def _backward_rule(settings: Settings, saved: Any, cotangent: Array) -> tuple[Array, Weights]:
    x, weights = saved
    return _backward(settings, x, weights, cotangent)


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
    a tile, and of its neighbours `edge` steps on the sides (left, right) that are asked for."""

    def __init__(self, settings: Settings, x: Array):
        self.settings, self.channels = settings, x.shape[1]
        self.grid = (x.shape[0], pl.cdiv(settings.length, settings.block))

    def tile(self) -> pl.BlockSpec:
        return pl.BlockSpec((1, self.channels, self.settings.block), lambda b, i: (b, 0, i))

    def window(self, sides: tuple[bool, bool]) -> list[Any]:
        """Specs of the left side, the tile and the right side; None where not asked for. Beyond an
        end of the signal any block will do: `read` looks at the time."""
        edge = self.settings.edge
        if not edge:
            return [None, self.tile(), None]
        last = pl.cdiv(self.settings.length, edge) - 1
        tiles = self.settings.block // edge
        size = (1, self.channels, edge)
        left = pl.BlockSpec(size, lambda b, i: (b, 0, jnp.maximum(i * tiles - 1, 0)))
        right = pl.BlockSpec(size, lambda b, i: (b, 0, jnp.minimum((i + 1) * tiles, last)))
        return [left if sides[0] else None, self.tile(), right if sides[1] else None]

    def read(self, refs: Any) -> Float[Array, "C n"]:
        """Edges and tile in float32; zero outside the signal and where nothing was read."""
        zeros = jnp.zeros((self.channels, self.settings.edge), jnp.float32)
        parts = [zeros if ref is None else _float(ref[0]) for ref in refs]
        whole = jnp.concatenate(parts, axis=1) if self.settings.edge else parts[1]
        step = jax.lax.broadcasted_iota(jnp.int32, whole.shape, 1)
        time = pl.program_id(1) * self.settings.block - self.settings.edge + step
        return jnp.where((time >= 0) & (time < self.settings.length), whole, 0.0)

    def own(self) -> slice:
        """The tile in its window."""
        return slice(self.settings.edge, self.settings.edge + self.settings.block)

    def cost(self, steps: int, products: int, columns: Columns) -> pl.CostEstimate:
        """Of `steps` of a signal moved and `products` multiplied for each tile."""
        tiles = self.grid[0] * self.grid[1]
        weights = sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(columns))
        width = columns.taps.dtype.itemsize
        return pl.CostEstimate(
            flops=2 * products * tiles,
            bytes_accessed=steps * self.channels * width * tiles + weights,
            transcendentals=0,
        )


def _float(x: Array) -> Array:
    return x.astype(jnp.float32)


def _activated(kind: str, x: Array, alpha: Any) -> tuple[Array, Array, Any]:
    """act(x), its derivative by x, and that by alpha."""
    if kind == "elu":
        below = jnp.exp(jnp.minimum(x, 0.0))
        return jnp.where(x > 0, x, below - 1.0), below, None
    gain = 1.0 / (alpha + SNAKE_EPS)
    sine, cosine = _sine_and_cosine(alpha * x)
    double = 2.0 * gain * sine * cosine
    square = gain * sine * sine
    return x + square, 1.0 + alpha * double, x * double - gain * square


def _sine_and_cosine(angle: Array) -> tuple[Array, Array]:
    """Both, or both negated, within 2e-7, and what float32 leaves of the angle.

    Of products of two the sign is none, so a half turn is as good as a whole one. The compiler's
    own sine is good for any angle, at seven times the instructions; the kernel would wait for it.
    """
    turns = jnp.floor(angle * (1 / np.pi) + 0.5)
    # pi in two parts, the first of so few bits that its multiples are exact (Cody & Waite 1980).
    angle = (angle - turns * PI_HIGH) - turns * (np.pi - PI_HIGH)
    square = angle * angle
    return angle * _polynomial(SINE, square), _polynomial(COSINE, square)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    total = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


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
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=semantics, vmem_limit_bytes=VMEM_BYTES
        ),
        **fields,
    )


def _whole(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda b, i: (0,) * len(x.shape))


def _read_from(signal: Array, specs: list[Any]) -> list[Any]:
    return [None if spec is None else signal for spec in specs]


def _alphas(columns: Columns) -> list[Any]:
    return [None if a is None else a[...] for a in (columns.alpha_0, columns.alpha_1)]


def _forward(settings: Settings, x: Array, weights: Weights) -> Array:
    tiles = _Tiles(settings, x)
    size, channels, hidden = weights.kernel_0.shape
    ahead, own, block = _shifts(settings, size), tiles.own(), settings.block
    columns = _columns(weights, x.dtype)
    sides = bool(settings.padding[0]), bool(settings.padding[1])

    def kernel(window: Any, w: Columns, out: Any) -> None:
        read, alphas = tiles.read(window), _alphas(w)
        active, *_ = _activated(settings.activation, read, alphas[0])
        h = _dot(w.taps[...], _stacked(active, ahead, x.dtype, own)) + w.bias_0[...]
        h, *_ = _activated(settings.activation, h, alphas[1])
        branch = _dot(w.mix[...], h.astype(x.dtype)) + w.bias_1[...]
        out[0] = (read[:, own] + branch).astype(out.dtype)

    specs = tiles.window(sides)
    moved = 2 * block + settings.edge * sum(sides)
    return _call(
        settings,
        kernel,
        tiles,
        "parallel",
        in_specs=[specs, jax.tree.map(_whole, columns)],
        out_specs=tiles.tile(),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        cost_estimate=tiles.cost(moved, (size + 1) * channels * hidden * block, columns),
    )(_read_from(x, specs), columns)


def _backward(
    settings: Settings, x: Array, weights: Weights, cotangent: Array
) -> tuple[Array, Weights]:
    """Gradients of x and of the weights, which are summed over the grid in float32."""
    tiles = _Tiles(settings, x)
    size, channels, hidden = weights.kernel_0.shape
    ahead, own, block = _shifts(settings, size), tiles.own(), settings.block
    behind = [-s for s in ahead]
    columns = _columns(weights, x.dtype)
    # Of y's gradient a tile needs the steps whose convolutions reach into it.
    sides = bool(settings.padding[1]), bool(settings.padding[0])

    def kernel(window: Any, cotangents: Any, w: Columns, out: Any, found: Columns) -> None:
        @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
        def _() -> None:
            for total in jax.tree.leaves(found):
                total[...] = jnp.zeros_like(total)

        read, dy, alphas = tiles.read(window), tiles.read(cotangents), _alphas(w)
        active, slope_0, by_alpha_0 = _activated(settings.activation, read, alphas[0])
        taps = _stacked(active, ahead, x.dtype)
        h = _dot(w.taps[...], taps) + w.bias_0[...]
        mixed, slope_1, by_alpha_1 = _activated(settings.activation, h, alphas[1])
        # Zero where the signal is not, as dy is.
        pulled = _dot(w.mix[...].T, dy.astype(x.dtype))
        dh = pulled * slope_1
        back = _dot(w.back[...], _stacked(dh, behind, x.dtype, own))
        out[0] = (dy[:, own] + back * slope_0[:, own]).astype(out.dtype)

        found.taps[...] += _dot(dh[:, own].astype(x.dtype), taps[:, own], 1)
        found.mix[...] += _dot(dy[:, own].astype(x.dtype), mixed[:, own].astype(x.dtype), 1)
        found.bias_0[...] += _summed(dh[:, own])
        found.bias_1[...] += _summed(dy[:, own])
        if settings.activation == "snake":
            found.alpha_0[...] += _summed(back * by_alpha_0[:, own])
            found.alpha_1[...] += _summed((pulled * by_alpha_1)[:, own])

    sums = columns._replace(back=None)
    specs = tiles.window((True, True)), tiles.window(sides)
    moved = 3 * block + settings.edge * (2 + sum(sides))
    products = (3 * size + 2) * block + 2 * (size + 1) * settings.edge
    gradient, found = _call(
        settings,
        kernel,
        tiles,
        "arbitrary",
        in_specs=[*specs, jax.tree.map(_whole, columns)],
        out_specs=[tiles.tile(), jax.tree.map(_whole, sums)],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, jnp.float32), sums),
        ],
        cost_estimate=tiles.cost(moved, products * channels * hidden, columns),
    )(_read_from(x, specs[0]), _read_from(cotangent, specs[1]), columns)
    of_weights = Weights(
        found.taps.T.reshape(size, channels, hidden),
        found.bias_0[:, 0],
        found.mix.T,
        found.bias_1[:, 0],
        *(None if a is None else a[:, 0] for a in (found.alpha_0, found.alpha_1)),
    )
    return gradient, jax.tree.map(lambda g, v: g.astype(v.dtype), of_weights, weights)


def _summed(x: Float[Array, "C n"]) -> Float[Array, "C 1"]:
    return jnp.sum(x, axis=1, keepdims=True)
