"""Attention of one new position a sequence to the filled part of a cache.

XLA reads the cache as long as it is; how much of it is filled only the running program knows. Here
blocks behind the filled part are not read. Counted for B sequences of G heads of width D, F
positions filled, H heads of queries:

    4 B H F D FLOPs;  8 B G D (F rounded up to blocks) bytes of keys and values in float32

so that a step waits for memory on every chip: on v5e (819 GB/s) 16 sequences of MusicGen small's 24
layers take 3.8 us a position of the cache. By the compiler, an update of the cache and attention to
it, bytes in sizes of the cache (what the kernel reads of it not counted: F / C) and temporaries:

                                            v5e             v5p             v6e
                                       XLA   kernel    XLA   kernel    XLA   kernel
    16 x 16 heads of 64, 1503 long     3.4    0.26     1.3    0.26     1.3    0.26
    the same with T5's bias            3.3    0.31     1.3    0.32     1.4    0.32
    8 x 8 heads of 128, 4096 long      1.05   0.00     1.11   0.00     1.05   0.00

What is left is the tile of 128 positions that a new one is written into. Steps of MusicGen small to
the end of 30 s, 16 sequences, on a v5e: temporaries of 0.9 GiB, where XLA asks for 15.9 and does
not fit. Ragged paged attention (of JAX's own kernels) wants heads of 128 and knows no bias. No TPU
has run any of this yet.
"""

import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from mgen.errors import UserError
from mgen.kernels.decode_attention import pallas_tpu
from mgen.kernels.decode_attention.reference import cached_attention
from mgen.sharding.mesh import BATCH, divided, platform
from mgen.typing import Array, Bool, Float, Int

IMPLEMENTATIONS = ("xla", "pallas_tpu")


def decode_attention(
    query: Float[Array, "B H L hd"],
    key: Float[Array, "B G C hd"],
    value: Float[Array, "B G C hd"],
    filled: Int[Array, ""],
    mask: Bool[Array, "#B L C"],
    bias: Float[Array, "#B H L C"] | None = None,
    *,
    implementation: str = "",
) -> Float[Array, "B H L hd"]:
    """softmax(q k / sqrt(hd) + b) v over the positions that `mask` shows.

    Args:
      query: of H heads, a multiple of G.
      filled: positions at the front of the cache that hold something; `mask` shows no other, and
        one of them at least.
      implementation: one of `IMPLEMENTATIONS`, by default the kernel where the program is for TPUs,
        L is 1 and the cache has more than one block.

    Raises:
      UserError: no such implementation, or the kernel for more than one position.
    """
    if implementation and implementation not in IMPLEMENTATIONS:
        raise UserError(f"implementation {implementation!r}, expected {IMPLEMENTATIONS}")
    alone = query.shape[2] == 1
    if implementation == "pallas_tpu" and not alone:
        raise UserError(f"query of {query.shape[2]} positions, expected 1")
    if not implementation:
        pays = alone and key.shape[2] > pallas_tpu.LANES and platform() == "tpu"
        implementation = "pallas_tpu" if pays else "xla"
    if implementation == "xla":
        return cached_attention(query, key, value, mask, bias)
    short = None if bias is None else bias[:, :, 0]
    return on_each_device(query[:, :, 0], key, value, filled, mask[:, 0], short)[:, :, None]


def on_each_device(
    query: Array, key: Array, value: Array, filled: Array, mask: Array, bias: Any, **settings: Any
) -> Array:
    """The kernel on each device's examples and heads of the mesh that is set, as XLA cannot split
    it."""
    run = functools.partial(pallas_tpu.decode_attention, **settings)
    split = divided(key.shape, BATCH, "tensor")
    if split is None:
        return run(query, key, value, filled, mask, bias)
    rows, heads = split
    shown = P(rows if len(mask) > 1 else None)
    shifted = None if bias is None else P(rows if len(bias) > 1 else None, heads)
    specs = (split, split, split, P(), shown, shifted)
    mapped = jax.shard_map(run, in_specs=specs, out_specs=split, check_vma=False)
    return mapped(query, key, value, filled, mask, bias)
