"""Attention with relative positions: T5's bias (Raffel et al. 2020), Shaw's embeddings (Shaw et al.
2018; Music Transformer, Huang et al. 2019), or both.

XLA keeps the scores of all pairs: at B4 H16 T4096, forward and backward, some 8 GiB. Here only
blocks of them exist. Counted for T queries and keys of width D, a head:

    forward    4 T^2 D FLOPs;  bytes (4 T D + R) of inputs and output, R = 2 T - 1 of the bias
    backward  10 T^2 D FLOPs without the gradient of the positions, 4 T^2 D more with it, and
               2 T^2 b for the rows of a block b that are turned round
"""

import jax

from mgen.errors import UserError
from mgen.kernels.relative_attention import pallas_tpu, reference
from mgen.typing import Array, Float

IMPLEMENTATIONS = ("xla", "pallas_tpu")


def relative_attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B G S D"],
    value: Float[Array, "B G S D"],
    bias: Float[Array, "H R"] | None = None,
    embedding: Float[Array, "H R D"] | None = None,
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
      causal, window, sink: what a query sees, see `mgen.nn.attention.visible`; a window only where
        causal.
      implementation: one of `IMPLEMENTATIONS`, by default that of the platform.

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
    if not implementation:
        implementation = "pallas_tpu" if jax.default_backend() == "tpu" else "xla"
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"implementation {implementation!r}, expected {IMPLEMENTATIONS}")
    module = pallas_tpu if implementation == "pallas_tpu" else reference
    settings = dict(causal=causal, window=window, sink=sink, scale=scale)
    return module.relative_attention(query, key, value, bias, embedding, **settings)
