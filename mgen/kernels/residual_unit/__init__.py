"""The residual unit of codecs, x + conv1x1(act(conv_dilated(act(x)))), in one pass."""

import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from mgen.errors import UserError
from mgen.kernels.residual_unit import pallas_tpu, reference
from mgen.kernels.residual_unit.reference import Weights
from mgen.sharding.mesh import BATCH, divided
from mgen.typing import Array, Float

ACTIVATIONS = ("elu", "snake")
IMPLEMENTATIONS = ("xla", "pallas_tpu")


def residual_unit(
    x: Float[Array, "B T C"],
    weights: Weights,
    *,
    activation: str,
    dilation: int,
    padding: tuple[int, int],
    implementation: str = "",
) -> Float[Array, "B T C"]:
    """x + b1 + W1 act1(b0 + W0 *_dilated act0(x)); weights are cast to the type of x.

    Args:
      activation: one of `ACTIVATIONS`, the latter with the frequencies alpha of the weights.
      padding: zeros left and right of act0(x), (K - 1) dilation in all.
      implementation: one of `IMPLEMENTATIONS`, by default the kernel where the program is compiled
        for TPUs and the widths fit it (`pallas_tpu.fits`).

    Raises:
      UserError: weights or padding that do not fit, or no such activation or implementation.
    """
    _check(x, weights, activation, dilation, padding)
    if implementation and implementation not in IMPLEMENTATIONS:
        raise UserError(f"implementation {implementation!r}, expected {IMPLEMENTATIONS}")
    settings: Any = dict(activation=activation, dilation=dilation, padding=padding)
    xla = functools.partial(reference.residual_unit, **settings)
    kernel = functools.partial(on_each_device, **settings)
    fits = pallas_tpu.fits(weights)
    if implementation == "pallas_tpu" and not fits:
        raise UserError(
            f"kernel_0 of shape {weights.kernel_0.shape}, expected widths that are multiples of"
            f" {pallas_tpu.ROWS} up to {pallas_tpu.CHANNELS}"
        )
    if implementation or not fits:
        return (kernel if implementation == "pallas_tpu" else xla)(x, weights)
    return jax.lax.platform_dependent(x, weights, tpu=kernel, default=xla)


def _check(
    x: Array, weights: Weights, activation: str, dilation: int, padding: tuple[int, int]
) -> None:
    if activation not in ACTIVATIONS:
        raise UserError(f"activation {activation!r}, expected {ACTIVATIONS}")
    kernel, channels, hidden = weights.kernel_0.shape
    alphas = ((channels,), (hidden,)) if activation == "snake" else (None, None)
    expected = Weights(
        (kernel, x.shape[2], hidden), (hidden,), (hidden, channels), (channels,), *alphas
    )
    for name, array, shape in zip(Weights._fields, weights, expected, strict=True):
        found = None if array is None else array.shape
        if found != shape:
            raise UserError(f"{name} of shape {found}, expected {shape}")
    if min(padding) < 0 or sum(padding) != (kernel - 1) * dilation:
        raise UserError(f"padding {padding}, expected {(kernel - 1) * dilation} steps in all")


def on_each_device(x: Array, weights: Weights, **settings: Any) -> Array:
    """The kernel on each device's examples of the mesh that is set, as XLA cannot split it; time
    and channels are gathered."""
    run = functools.partial(pallas_tpu.residual_unit, **settings)
    split = divided(x.shape, BATCH)
    if split is None:
        return run(x, weights)
    # What the gradient of a weight sums over the devices, its transpose does.
    mapped = jax.shard_map(run, in_specs=(split, P()), out_specs=split, check_vma=False)
    return mapped(x, weights)
