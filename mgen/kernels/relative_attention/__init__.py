"""Attention with relative positions: T5's bias (Raffel et al. 2020), Shaw's embeddings (Shaw et al.
2018; Music Transformer, Huang et al. 2019), both (Transformer-XL, Dai et al. 2019), or none;
causal, in windows, or in MAGNeT's restricted context.

XLA keeps the scores of all pairs: at B4 H16 T4096, forward and backward, 13 GiB and more. Here only
blocks of them exist. Counted for T queries and keys of width D, a head:

    forward    4 T^2 D FLOPs;  bytes (4 T D + R) of inputs and output, R = 2 T - 1 of the bias
    backward  10 T^2 D FLOPs without the gradient of the positions, 4 T^2 D more with it, and
               2 T^2 b for the rows of a block b that are turned round

so that long sequences wait for products: forward and backward with the bias's gradient at B4 H16
T4096 D64, causal, in bfloat16 are 0.62 TFLOP and 0.4 GB, on v5e (197 TFLOP/s, 819 GB/s) 3.1 ms and
0.5 ms, on H200 (989 TFLOP/s, 4.8 TB/s) 0.6 ms and 0.1 ms. By the compiler the kernel's temporaries
are 35 to 64 times smaller than XLA's there (BENCHMARKS.md). GPUs in half precision have cuDNN's
attention (`mgen.nn.attention`), which takes the bias of all pairs and no embeddings. No TPU has run
any of this yet.
"""

import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from mgen.errors import UserError
from mgen.kernels.relative_attention import pallas_tpu, reference
from mgen.nn.masks import Nearby
from mgen.sharding.mesh import BATCH, divided, platform
from mgen.typing import Array, Float

IMPLEMENTATIONS = ("xla", "pallas_tpu")


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
    implementation: str = "",
) -> Float[Array, "B H T D"]:
    """softmax(scale (q k + q e) + b) v, e and b those of the distance key - query.

    Args:
      query: of H heads, a multiple of G.
      bias, embedding: of the R = T + S - 1 distances from 1 - T to S - 1.
      nearby: a restricted context, of self-attention that is not causal.
      causal, window, sink: what a query sees, see `mgen.nn.attention.visible`; a window only where
        causal.
      implementation: one of `IMPLEMENTATIONS`, by default that of the platform that the program is
        compiled for.

    Raises:
      UserError: shapes that do not fit, or no such implementation.
    """
    distances = query.shape[2] + key.shape[2] - 1
    for name, table in (("bias", bias), ("embedding", embedding)):
        if table is not None and table.shape[:2] != (query.shape[1], distances):
            raise UserError(
                f"{name} of shape {table.shape}, expected {query.shape[1]} heads and {distances}"
                " distances"
            )
    if query.shape[1] % key.shape[1]:
        raise UserError(f"{query.shape[1]} heads of queries over {key.shape[1]} of keys")
    if implementation and implementation not in IMPLEMENTATIONS:
        raise UserError(f"implementation {implementation!r}, expected {IMPLEMENTATIONS}")
    settings: Any = dict(causal=causal, window=window, sink=sink, scale=scale)
    xla = functools.partial(reference.relative_attention, **settings)
    kernel = functools.partial(on_each_device, **settings)
    inputs = query, key, value, bias, embedding, nearby
    implementation = implementation or ("pallas_tpu" if platform() == "tpu" else "xla")
    return (kernel if implementation == "pallas_tpu" else xla)(*inputs)


def on_each_device(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    embedding: Array | None,
    nearby: Nearby | None,
    **settings: Any,
) -> Array:
    """The kernel on each device's examples and heads of the mesh that is set, as XLA cannot split
    it; time is gathered."""
    run = functools.partial(pallas_tpu.relative_attention, **settings)
    inputs = query, key, value, bias, embedding, nearby
    split = divided(key.shape, BATCH, "tensor")
    if split is None:
        return run(*inputs)
    examples, table = P(split[0]), P(split[1])
    specs = (split, split, split, table, table, examples)
    # What the gradient of a table sums over the devices, its transpose does.
    mapped = jax.shard_map(run, in_specs=specs, out_specs=split, check_vma=False)
    return mapped(*inputs)
