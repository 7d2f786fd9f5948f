"""Multi-head attention: over a sequence in training, over a key-value cache in decoding."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mgen.kernels.relative_attention import relative_attention
from mgen.nn.embed import rope
from mgen.nn.masks import visible
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
    ) -> Float[Array, "B L D"]:
        """Attends from `x` to `memory` (to itself where None); `mask` is True where a position may
        see another, `bias` is what each of the R = L + C - 1 distances (key minus query, ascending)
        adds to the scores, `positions` are the rotary ones (None: 0, 1, ...)."""

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
        out = self._attend(query, key, value, mask, bias)
        return nn.DenseGeneral(
            x.shape[-1], axis=(-2, -1), use_bias=self.bias, dtype=self.dtype, name="out"
        )(out)

    def _attend(
        self, query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None
    ) -> Float[Array, "B L H hd"]:
        if mask is None and cudnn_fits(query, self.sink):
            return jax.nn.dot_product_attention(
                query, key, value, bias=self._bias_of_pairs(bias, query, key),
                scale=self.scale, is_causal=self.causal, implementation="cudnn",
                local_window_size=(self.window - 1, 0) if self.window else None,
            )  # fmt: skip
        # XLA's own for TPUs keeps the scores of all pairs; a kernel does not pay for few of them.
        long = min(query.shape[1], key.shape[1]) >= LONG and platform() == "tpu"
        if mask is None and (long or bias is not None):
            q, k, v = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
            scale = self.head_dim**-0.5 if self.scale is None else self.scale
            masks: Any = dict(causal=self.causal, window=self.window, sink=self.sink)
            return jnp.swapaxes(relative_attention(q, k, v, bias, scale=scale, **masks), 1, 2)
        seen = None if mask is None else mask[:, None]
        if self.window:
            index = np.arange(query.shape[1])
            near = jnp.asarray(visible(index[:, None], index, self.window, self.sink))
            seen = near[None, None] if seen is None else seen & near[None, None]
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias=self._bias_of_pairs(bias, query, key),
            mask=seen,
            scale=self.scale,
            is_causal=self.causal,
        )

    def _bias_of_pairs(self, bias: Array | None, query: Array, key: Array) -> Array | None:
        """[1, H, L, C] of that of distances."""
        if bias is None:
            return None
        length, source = query.shape[1], key.shape[1]
        at = np.arange(source) - np.arange(length)[:, None] + length - 1
        return bias[:, at][None].astype(query.dtype)
