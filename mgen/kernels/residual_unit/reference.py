"""The residual unit of a codec as it is written: two convolutions of whole signals."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mgen.nn.activations import SNAKE_EPS
from mgen.typing import Array, Float


class Weights(NamedTuple):
    """kernel_0 [K, C, H], bias_0 [H], kernel_1 [H, C], bias_1 [C], and of snake alpha_0 [C] and
    alpha_1 [H], None of elu."""

    kernel_0: Array
    bias_0: Array
    kernel_1: Array
    bias_1: Array
    alpha_0: Any = None
    alpha_1: Any = None


def residual_unit(
    x: Float[Array, "B T C"],
    weights: Weights,
    *,
    activation: str,
    dilation: int,
    padding: tuple[int, int],
) -> Float[Array, "B T C"]:
    """As `mgen.kernels.residual_unit.residual_unit`."""
    kernel_0, bias_0, kernel_1, bias_1 = (v.astype(x.dtype) for v in weights[:4])
    hidden = _activated(activation, x, weights.alpha_0)
    hidden = jnp.pad(hidden, ((0, 0), padding, (0, 0)))
    hidden = _convolved(hidden, kernel_0, dilation) + bias_0[None, None]
    hidden = _activated(activation, hidden, weights.alpha_1)
    return x + (_convolved(hidden, kernel_1[None], 1) + bias_1[None, None])


def _activated(kind: str, x: Array, alpha: Any) -> Array:
    if kind == "elu":
        return jax.nn.elu(x)
    gain = (1.0 / (alpha + SNAKE_EPS)).astype(x.dtype)[None, None]
    return x + gain * jnp.square(jnp.sin(alpha.astype(x.dtype)[None, None] * x))


def _convolved(x: Array, kernel: Array, dilation: int) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1,), "VALID", rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
    )
