"""Transformer stack, encoder or decoder: blocks with optional cross-attention, scanned or unrolled
over layers.

Settings of `TransformerConfig` give the stacks of MusicGen (pre-norm, no biases), BERT (post-norm),
ViT (pre-norm) and T5 (RMS norm, relative position bias, unscaled scores).
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.nn.attention import Attention
from mgen.nn.embed import RelativeBias
from mgen.nn.masks import Nearby
from mgen.sharding.mesh import BATCH, constrain
from mgen.typing import Array, Bool, Float, Params

ACTIVATIONS = {
    # By erf: the erfc of `jax.nn.gelu` is four times slower on the CPU.
    "gelu": lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5))),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a stack of blocks.

    Attributes:
      dim, heads, kv_heads, layers, ff: widths D, H, key-value heads, depth, hidden width of the
        feed-forward.
      activation: a name of `ACTIVATIONS`.
      gated: the feed-forward is activation(x W_g) * (x W_in) W_out (Shazeer 2020, "GLU Variants").
      norm, norm_epsilon: "layer" or "rms", and what is added to the variance.
      norm_position: "pre" (a final norm follows the last block) or "post".
      bias: whether linear layers have one.
      causal, rotary, rope_base, window, sink: of self-attention, see `Attention`.
      relative_buckets, relative_distance: of T5's position bias, shared by all blocks; 0 buckets is
        none.
      head_dim, scale: of attention; None is dim / heads and head_dim ** -0.5.
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
    gated: bool = False
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    norm_position: str = "pre"
    bias: bool = False
    causal: bool = True
    rotary: bool = False
    rope_base: float = 10000.0
    window: int = 0
    sink: int = 0
    relative_buckets: int = 0
    relative_distance: int = 128
    head_dim: int | None = None
    scale: float | None = None
    cross: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"


def make_norm(config: TransformerConfig, name: str) -> nn.Module:
    """Normalisation in float32 of the last axis."""
    if config.norm == "rms":
        return nn.RMSNorm(epsilon=config.norm_epsilon, dtype=config.dtype, name=name)
    return nn.LayerNorm(
        epsilon=config.norm_epsilon, dtype=config.dtype, use_fast_variance=False, name=name
    )


class Block(nn.Module):
    """Self-attention, cross-attention where configured, feed-forward; each with a norm, dropout and
    a residual. Returns its output twice where `hidden`, as `nn.scan` wants it."""

    config: TransformerConfig
    train: bool = False
    hidden: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        memory: Float[Array, "B C D"] | None,
        mask: Bool[Array, "B 1 C"] | None,
        seen: Bool[Array, "B 1 L"] | None,
        bias: Float[Array, "H R"] | None,
        nearby: Nearby | None = None,
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"] | None]:
        config = self.config
        heads: dict[str, Any] = dict(
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim or config.dim // config.heads,
            scale=config.scale,
            bias=config.bias,
            dtype=config.dtype,
        )

        def residual(x: Array, layer: Any, name: str) -> Array:
            drop = nn.Dropout(config.dropout, deterministic=not self.train)
            norm = make_norm(config, f"{name}_norm")
            if config.norm_position == "pre":
                return constrain(x + drop(layer(norm(x))), BATCH, "seq")
            return constrain(norm(x + drop(layer(x))), BATCH, "seq")

        def feed_forward(x: Array) -> Array:
            dense: dict[str, Any] = dict(use_bias=config.bias, dtype=config.dtype)
            activation = ACTIVATIONS[config.activation]
            hidden = nn.Dense(config.ff, name="ff_in", **dense)(x)
            if config.gated:
                hidden = hidden * activation(nn.Dense(config.ff, name="ff_gate", **dense)(x))
            else:
                hidden = activation(hidden)
            return nn.Dense(config.dim, name="ff_out", **dense)(hidden)

        attention = Attention(
            causal=config.causal,
            rotary=config.rotary,
            rope_base=config.rope_base,
            window=config.window,
            sink=config.sink,
            name="attention",
            **heads,
        )
        x = residual(x, lambda h: attention(h, None, seen, bias, nearby=nearby), "attention")
        if config.cross and memory is not None:
            cross = Attention(name="cross_attention", **heads)
            x = residual(x, lambda h: cross(h, memory, mask), "cross_attention")
        x = residual(x, feed_forward, "ff")
        return x, x if self.hidden else None


class Transformer(nn.Module):
    """A stack of blocks. Parameters are stacked under "layers" with scan, else under "layers_0",
    "layers_1", ..."""

    config: TransformerConfig

    def __call__(
        self,
        x: Float[Array, "B L D"],
        memory: Float[Array, "B C D"] | None = None,
        mask: Bool[Array, "B C"] | None = None,
        train: bool = False,
        nearby: Nearby | None = None,
    ) -> Float[Array, "B L D"]:
        """The last block's output, normalised in a pre-norm stack; `mask` is True where `memory`
        (`x` itself in a stack without one) may be seen, `nearby` restricts the context of
        self-attention."""
        return self.run(x, memory, mask, nearby, train, hidden=False)[0]

    def hidden_states(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L"] | None = None,
        train: bool = False,
    ) -> Float[Array, "N B L D"]:
        """What every layer sees and gives, N = layers + 1: the input, the output of each block, the
        last one normalised in a pre-norm stack."""
        out, blocks = self.run(x, None, mask, None, train, hidden=True)
        assert blocks is not None
        return jnp.concatenate([x[None].astype(out.dtype), blocks[:-1], out[None]])

    @nn.compact
    def run(
        self,
        x: Array,
        memory: Array | None,
        mask: Array | None,
        nearby: Nearby | None,
        train: bool,
        hidden: bool,
    ) -> tuple[Array, Array | None]:
        """Output, and where `hidden` the outputs of all blocks [layers, B, L, D] before the final
        norm."""
        config = self.config
        block: Any = Block
        if config.remat != "none":
            policy = REMAT_POLICIES[config.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not config.scan)
        x = x.astype(config.dtype)
        mask = None if mask is None else mask[:, None]
        seen = mask if memory is None else None
        bias = None
        if config.relative_buckets:
            bias = RelativeBias(
                config.relative_buckets,
                config.relative_distance,
                config.heads,
                bidirectional=not config.causal,
                name="relative_bias",
            )(x.shape[1])
        inputs = memory, mask, seen, bias, nearby
        if config.scan:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=config.layers,
            )
            x, blocks = stack(config, train, hidden, name="layers")(x, *inputs)
        else:
            outputs = []
            for i in range(config.layers):
                layer = block(config, train, hidden, name=f"layers_{i}")
                x, output = layer(x, *inputs)
                outputs.append(output)
            blocks = jnp.stack(outputs) if hidden else None
        if config.norm_position == "pre":
            x = make_norm(config, "final_norm")(x)
        return x, blocks


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
