"""Transformer stack: blocks with optional cross-attention, scanned or unrolled over layers."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.nn.attention import Attention
from mgen.typing import Array, Bool, Float, Params

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a stack of blocks.

    Attributes:
      dim, heads, kv_heads, layers, ff: widths D, H, key-value heads, depth, hidden width of the
        feed-forward.
      activation: a name of `ACTIVATIONS`.
      norm: "layer" or "rms".
      norm_position: "pre" (a final norm follows the last block) or "post".
      bias: whether linear layers have one.
      causal, rotary: of self-attention.
      cross: whether each block attends to a memory.
      dropout: rate on the output of each sub-layer.
      dtype: compute dtype; parameters stay float32.
      scan: one traced block scanned over stacked parameters (compiles in O(1) of the depth), or
        unrolled blocks.
      remat: "none", or what is kept for the backward pass: "full" (nothing) or "dots" (outputs of
        matmuls).
    """

    dim: int
    heads: int
    kv_heads: int
    layers: int
    ff: int
    activation: str = "gelu"
    norm: str = "layer"
    norm_position: str = "pre"
    bias: bool = False
    causal: bool = True
    rotary: bool = False
    cross: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"


def make_norm(config: TransformerConfig, name: str) -> nn.Module:
    """Normalisation in float32 of the last axis."""
    if config.norm == "rms":
        return nn.RMSNorm(epsilon=NORM_EPSILON, dtype=config.dtype, name=name)
    return nn.LayerNorm(
        epsilon=NORM_EPSILON, dtype=config.dtype, use_fast_variance=False, name=name
    )


class Block(nn.Module):
    """Self-attention, cross-attention where configured, feed-forward; each with a norm, dropout and
    a residual."""

    config: TransformerConfig
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        memory: Float[Array, "B C D"] | None,
        mask: Bool[Array, "B C"] | None,
    ) -> tuple[Float[Array, "B L D"], None]:
        config = self.config
        heads: dict[str, Any] = dict(
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.dim // config.heads,
            bias=config.bias,
            dtype=config.dtype,
        )

        def residual(x: Array, layer: Any, name: str) -> Array:
            drop = nn.Dropout(config.dropout, deterministic=not self.train)
            norm = make_norm(config, f"{name}_norm")
            if config.norm_position == "pre":
                return x + drop(layer(norm(x)))
            return norm(x + drop(layer(x)))

        def feed_forward(x: Array) -> Array:
            dense: dict[str, Any] = dict(use_bias=config.bias, dtype=config.dtype)
            hidden = nn.Dense(config.ff, name="ff_in", **dense)(x)
            return nn.Dense(config.dim, name="ff_out", **dense)(
                ACTIVATIONS[config.activation](hidden)
            )

        attention = Attention(causal=config.causal, rotary=config.rotary, name="attention", **heads)
        x = residual(x, attention, "attention")
        if config.cross and memory is not None:
            cross = Attention(name="cross_attention", **heads)
            x = residual(x, lambda h: cross(h, memory, mask), "cross_attention")
        return residual(x, feed_forward, "ff"), None


class Transformer(nn.Module):
    """A stack of blocks. Parameters are stacked under "layers" with scan, else under "layers_0",
    "layers_1", ..."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        memory: Float[Array, "B C D"] | None = None,
        mask: Bool[Array, "B C"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B L D"]:
        config = self.config
        block: Any = Block
        if config.remat != "none":
            policy = REMAT_POLICIES[config.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not config.scan)
        x = x.astype(config.dtype)
        if config.scan:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=config.layers,
            )
            x, _ = stack(config, train, name="layers")(x, memory, mask)
        else:
            for i in range(config.layers):
                x, _ = block(config, train, name=f"layers_{i}")(x, memory, mask)
        return make_norm(config, "final_norm")(x) if config.norm_position == "pre" else x


def unstack_layers(params: Params) -> Params:
    """Parameters of an unrolled `Transformer` from those of a scanned one; already unrolled ones
    pass through."""
    if "layers" not in params:
        return params
    rest = {name: value for name, value in params.items() if name != "layers"}
    depth = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = {
        f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(depth)
    }
    return rest | layers


def stack_layers(params: Params) -> Params:
    """Inverse of `unstack_layers`."""
    depth = sum(name.startswith("layers_") for name in params)
    if not depth:
        return params
    rest = {name: value for name, value in params.items() if not name.startswith("layers_")}
    layers = [params[f"layers_{i}"] for i in range(depth)]
    return rest | {"layers": jax.tree.map(lambda *xs: jnp.stack(xs), *layers)}
