"""The residual unit of codecs, x + conv1x1(act(conv_dilated(act(x)))), in one pass over the signal
(EnCodec: Defossez et al. 2022; DAC: Kumar et al. 2023).

XLA splits time into a batch of its own where examples are few, changes the layout before and after
each convolution and keeps what is between them. Here a tile of time is read once and written once,
and the way back computes again what is between. Counted for K taps, widths C and H, N bytes of
signal, tiles of b steps with e beside them (128 for (K - 1) dilation up to that):

    forward   2 (K + 1) C H FLOPs a step;  bytes N (2 + s e / b), s sides that are padded
    backward  (6 K + 4 + 4 (K + 1) e / b) C H FLOPs a step, 2 K C H of them for what lies between;
              bytes N (3 + (2 + s) e / b)

On v5e (197 TFLOP/s, 819 GB/s) the narrow units wait for memory and the wide ones for products: the
two meet at 240 FLOPs a byte, (K + 1) H = 480 in bfloat16. By the compiler, for v5e, in bfloat16,
four examples of 65,536 steps, time in lanes outside; bytes in N (the second of XLA: without what it
keeps in VMEM), temporaries in N, and thousands of cycles (XLA's own estimate; instructions of the
kernel, which are no less than its time if memory keeps up):

                                   bytes               temporaries     kilocycles
                              XLA           kernel    XLA  kernel    XLA    kernel
    elu   C 32  H 16  K 3     40 / 3.1      2.1       0     0         1290      90
      and backward            190 / 66      5.3       16    0         7350     250
    snake C 64  H 64  K 7     27 / 7.0      2.1       2.0   0         4410     460
      and backward            149 / 87      5.4       12    0        24530    1440
    elu   C 192 H 96  K 3     22 / 14       2.1       1.3   0         7860     540
      and backward            102 / 78      5.3       9.7   0        38520    1760
    snake C 192 H 192 K 7     23 / 16       2.3       2.7   0        12710    1760
      and backward            118 / 89      5.8       10    0        64810    6570

With channels in lanes outside, the kernel pays for transposes as XLA does (C 192 H 96: 6.7 N and 15
N, against 22 and 74). XLA does better with convolutions written as K products of shifted signals:
2450 and 10050 kilocycles of C 64. No TPU has run any of this yet.
"""

import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from mgen.errors import UserError
from mgen.kernels.residual_unit import pallas_tpu, reference
from mgen.kernels.residual_unit.reference import Weights
from mgen.sharding.mesh import BATCH, divided, platform
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
      implementation: one of `IMPLEMENTATIONS`, by default the kernel where the program is for TPUs,
        the widths fit it (`pallas_tpu.fits`) and time is not split.

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
    if not implementation:
        split = jax.sharding.get_abstract_mesh().shape.get("seq", 1) > 1
        implementation = "pallas_tpu" if fits and platform() == "tpu" and not split else "xla"
    return (kernel if implementation == "pallas_tpu" else xla)(x, weights)


def _check(
    x: Array, weights: Weights, activation: str, dilation: int, padding: tuple[int, int]
) -> None:
    if activation not in ACTIVATIONS:
        raise UserError(f"activation {activation!r}, expected {ACTIVATIONS}")
    kernel, channels, hidden = weights.kernel_0.shape
    taps, mix = (kernel, x.shape[2], hidden), (hidden, channels)
    alphas = ((channels,), (hidden,)) if activation == "snake" else (None, None)
    expected = taps, (hidden,), mix, (channels,), *alphas
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
