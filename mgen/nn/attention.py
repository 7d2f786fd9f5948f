"""Multi-head attention: over a sequence in training, over a key-value cache in decoding."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mgen.kernels.relative_attention import relative_attention
from mgen.nn.embed import rope
from mgen.nn.masks import Nearby, visible
from mgen.sharding.mesh import platform
from mgen.typing import Array, Bool, Float, Int

LONG = 256  # positions


def cudnn_fits(query: Float[Array, "B L H D"], sink: int) -> bool:
    """Whether cuDNN's attention, which keeps no scores, takes this: on GPUs that are here, half
    precision, heads of 8 to 128, no first positions seen beside a window."""
    here = jax.default_backend() == platform() == "gpu"
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    width = query.shape[-1]
    return here and half and width % 8 == 0 and width <= 128 and not sink


def attend(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B C G D"],
    value: Float[Array, "B C G D"],
    *,
    mask: Bool[Array, "#B #L C"] | None = None,
    bias: Float[Array, "H R"] | None = None,
    embedding: Float[Array, "H R D"] | None = None,
    nearby: Nearby | None = None,
    causal: bool = False,
    window: int = 0,
    sink: int = 0,
    scale: float | None = None,
) -> Float[Array, "B L H D"]:
    """softmax(scale (q k + q e) + b) v by what keeps fewest scores on the platform: cuDNN, the
    kernel for TPUs, or XLA; the softmax in float32. See `Attention` for what the arguments mean,
    `mgen.kernels.relative_attention` for `bias` and `embedding`, those of distances. Raises
    `ValueError` for `embedding` beside a `mask`."""
    if mask is not None and embedding is not None:
        raise ValueError("embeddings of distances beside a mask are not implemented")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if mask is nearby is embedding is None and cudnn_fits(query, sink):
        return jax.nn.dot_product_attention(
            query, key, value, bias=_bias_of_pairs(bias, query, key), scale=scale,
            is_causal=causal, local_window_size=(window - 1, 0) if window else None,
            implementation="cudnn",
        )  # fmt: skip
    # XLA's own for TPUs keeps the scores of all pairs; a kernel does not pay for few of them.
    long = min(query.shape[1], key.shape[1]) >= LONG and platform() == "tpu"
    relative = bias is not None or embedding is not None
    if mask is None and (long or relative):
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
        masks: Any = dict(causal=causal, window=window, sink=sink)
        out = relative_attention(q, k, v, bias, embedding, nearby, scale=scale, **masks)
        return jnp.swapaxes(out, 1, 2)
    seen = None if mask is None else mask[:, None]
    if nearby is not None:
        near = nearby.mask(query.shape[1])[:, None]
        seen = near if seen is None else seen & near
    if window:
        index = np.arange(query.shape[1])
        near = jnp.asarray(visible(index[:, None], index, window, sink))[None, None]
        seen = near if seen is None else seen & near
    pairs = _bias_of_pairs(bias, query, key)
    return jax.nn.dot_product_attention(
        query, key, value, bias=pairs, mask=seen, scale=scale, is_causal=causal
    )


def _bias_of_pairs(bias: Array | None, query: Array, key: Array) -> Array | None:
    """[1, H, L, C] of that of distances."""
    if bias is None:
        return None
    length, source = query.shape[1], key.shape[1]
    at = np.arange(source) - np.arange(length)[:, None] + length - 1
    return bias[:, at][None].astype(query.dtype)


class Attention(nn.Module):
    """Self- or cross-attention with grouped keys and values (Vaswani et al. 2017; Ainslie et al.
    2023).

    Softmax runs in float32 whatever `dtype` is.

    Attributes:
      heads, kv_heads, head_dim: query heads, key-value heads (a divisor of `heads`), width of a
        head.
      bias: whether the four projections have one.
      causal: position l sees positions <= l; self-attention only.
      rotary, rope_base: rotary positions on queries and keys; self-attention only.
      window, sink: how far back a position sees, itself included, and how many of the first ones
        it sees beside (Xiao et al. 2023, "attention sinks"); window 0 is all; causal only.
      scale: factor on the scores; None is head_dim ** -0.5, T5 has 1.
      dtype: compute dtype.
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    causal: bool = False
    rotary: bool = False
    rope_base: float = 10000.0
    window: int = 0
    sink: int = 0
    scale: float | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        memory: Float[Array, "B C W"] | None = None,
        mask: Bool[Array, "#B #L C"] | None = None,
        bias: Float[Array, "H R"] | None = None,
        positions: Int[Array, " L"] | None = None,
        nearby: Nearby | None = None,
    ) -> Float[Array, "B L D"]:
        """Attends from `x` to `memory` (to itself where None); `mask` is True where a position may
        see another, `bias` is what each of the R = L + C - 1 distances (key minus query, ascending)
        adds to the scores, `positions` are the rotary ones (None: 0, 1, ...), `nearby` restricts
        the context of self-attention."""

        def project(name: str, heads: int) -> nn.DenseGeneral:
            return nn.DenseGeneral(
                (heads, self.head_dim), use_bias=self.bias, dtype=self.dtype, name=name
            )

        source = x if memory is None else memory
        query = project("query", self.heads)(x)  # [B, L, H, hd]
        key = project("key", self.kv_heads)(source)
        value = project("value", self.kv_heads)(source)
        if self.rotary:
            at = jnp.arange(x.shape[1]) if positions is None else positions
            query = rope(query, at[:, None], self.rope_base)
            key = rope(key, at[:, None], self.rope_base)
        out = attend(
            query, key, value, mask=mask, bias=bias, nearby=nearby, causal=self.causal,
            window=self.window, sink=self.sink, scale=self.scale,
        )  # fmt: skip
        return nn.DenseGeneral(
            x.shape[-1], axis=(-2, -1), use_bias=self.bias, dtype=self.dtype, name="out"
        )(out)
