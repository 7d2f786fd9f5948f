"""Conformer stack (Gulati et al. 2020): half a feed-forward, self-attention, a convolution module,
half a feed-forward, a norm.

Settings of `ConformerConfig` give the stacks of wav2vec 2.0 Conformer (batch norm; rotary or
relative positions), Wav2Vec2-BERT (layer norm, causal convolution, Shaw's positions) and w2v-BERT
(layer norm, relative positions).
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mgen.nn.attention import attend
from mgen.nn.embed import rope
from mgen.nn.transformer import ACTIVATIONS, REMAT_POLICIES
from mgen.sharding.mesh import BATCH, constrain
from mgen.typing import Array, Float

POSITIONS = ("rotary", "relative", "relative_key", "none")
CONV_NORMS = ("layer", "batch")
# Of what each sub-layer adds: a block begins as its last norm. Begun by LeCun's rule
# hierarchy/tiny_soundstorm stayed at the unigram loss for all its steps.
SILENT = nn.initializers.zeros


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """Shape of a stack of Conformer blocks.

    Attributes:
      dim, heads, layers, ff: widths D, H, depth, hidden width of the feed-forwards.
      activation: a name of `mgen.nn.transformer.ACTIVATIONS`, of feed-forwards and convolutions.
      positions: of self-attention. "rotary" turns the input of the query and key projections, head
        by head (wav2vec 2.0 Conformer), "relative" is Transformer-XL's (Dai et al. 2019, section
        3.3), "relative_key" Shaw's on keys (Shaw et al. 2018).
      left, right: largest distances to the past and the future with an embedding of their own
        ("relative_key").
      kernel_size: of the depthwise convolution, odd.
      causal_conv: whether the convolution sees the past only; attention sees everything.
      conv_norm: after the depthwise convolution, "layer" or "batch". The statistics of the latter
        are those of the collection "batch_stats" in training too, so that no example depends on its
        batch mates; they come from released weights.
      final_norm: whether a norm follows the last block, beside its own.
      norm_epsilon: added to variances.
      dropout: rate on the output of each sub-layer.
      dtype: compute dtype; parameters stay float32.
      scan, remat: see `mgen.nn.transformer.TransformerConfig`.
    """

    dim: int
    heads: int
    layers: int
    ff: int
    activation: str = "silu"
    positions: str = "relative"
    left: int = 64
    right: int = 8
    kernel_size: int = 31
    causal_conv: bool = False
    conv_norm: str = "layer"
    final_norm: bool = False
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"


def distance_table(length: int, dim: int) -> Float[np.ndarray, "R D"]:
    """Sinusoids of the distances query minus key from length - 1 down to 1 - length, sines and
    cosines interleaved (Dai et al. 2019, section 3.3)."""
    distance = np.arange(length - 1, -length, -1)[:, None]
    angle = distance * np.exp(np.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    table = np.empty((2 * length - 1, dim), np.float32)
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle[:, : dim // 2])
    return table


class RelativeAttention(nn.Module):
    """Self-attention with one of `POSITIONS`."""

    config: ConformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        config = self.config
        heads, length = config.heads, x.shape[1]
        width = config.dim // heads

        def project(name: str, use_bias: bool = True) -> nn.DenseGeneral:
            return nn.DenseGeneral((heads, width), use_bias=use_bias, dtype=config.dtype, name=name)

        source = x
        if config.positions == "rotary":
            split = x.reshape(*x.shape[:2], heads, width)
            source = rope(split, jnp.arange(length)[:, None]).reshape(x.shape)
        query = project("query")(source)  # [B, L, H, hd]
        key = project("key")(source)
        value = project("value")(x)
        bias = embedding = None
        if config.positions == "relative":
            table = jnp.asarray(distance_table(length, config.dim), config.dtype)
            embedding = project("position", use_bias=False)(table).swapaxes(0, 1)  # [H, R, hd]
            shape, zeros = (heads, width), nn.initializers.zeros
            content_bias = self.param("content_bias", zeros, shape)
            position_bias = self.param("position_bias", zeros, shape)
            # (q + u) k + (q + v) e is (q + u) (k + e) + (v - u) e: the last is a distance's own.
            query = query + content_bias.astype(query.dtype)[None, None]
            bias = jnp.einsum("hd,hrd->hr", position_bias - content_bias, embedding) * width**-0.5
        elif config.positions == "relative_key":
            rows = (config.left + config.right + 1, width)
            table = self.param("distance", nn.initializers.normal(0.02), rows)
            distance = np.clip(np.arange(1 - length, length), -config.left, config.right)
            table = table.astype(query.dtype)[distance + config.left]
            embedding = jnp.broadcast_to(table, (heads, *table.shape))
        out = attend(query, key, value, bias=bias, embedding=embedding)
        return nn.DenseGeneral(
            x.shape[-1], axis=(-2, -1), dtype=config.dtype, kernel_init=SILENT, name="out"
        )(out)


class DepthwiseConv(nn.Module):
    """One filter a channel over time, without a bias; the length stays.

    A sum of shifted products: grouped convolutions of XLA are 10 to 70 times slower on the CPU.
    """

    kernel_size: int
    causal: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        size, length = self.kernel_size, x.shape[1]
        init = nn.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=0, out_axis=(), batch_axis=1
        )
        kernel = self.param("kernel", init, (size, x.shape[-1])).astype(self.dtype)
        left = size - 1 if self.causal else size // 2
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (left, size - 1 - left), (0, 0)))
        out = padded[:, :length] * kernel[0][None, None]
        for tap in range(1, size):
            out = out + padded[:, tap : tap + length] * kernel[tap][None, None]
        return out


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by stored statistics (collection "batch_stats"), in training too."""

    epsilon: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape).value
        variance = self.variable("batch_stats", "var", jnp.ones, shape).value
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        gain = scale * jax.lax.rsqrt(variance + self.epsilon)
        return (x * gain[None, None] + (bias - mean * gain)[None, None]).astype(self.dtype)


class ConvModule(nn.Module):
    """Norm, gated pointwise convolution, depthwise convolution, norm, activation, pointwise
    convolution."""

    config: ConformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        config = self.config
        dense: dict[str, Any] = dict(use_bias=False, dtype=config.dtype)
        x = make_norm(config, "norm")(x)
        x, gate = jnp.split(nn.Dense(2 * config.dim, name="pointwise_in", **dense)(x), 2, axis=-1)
        x = x * jax.nn.sigmoid(gate)
        x = DepthwiseConv(config.kernel_size, config.causal_conv, config.dtype, name="depthwise")(x)
        if config.conv_norm == "batch":
            x = FrozenBatchNorm(config.norm_epsilon, config.dtype, name="depthwise_norm")(x)
        else:
            x = make_norm(config, "depthwise_norm")(x)
        x = ACTIVATIONS[config.activation](x)
        return nn.Dense(config.dim, name="pointwise_out", kernel_init=SILENT, **dense)(x)


def make_norm(config: ConformerConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=config.norm_epsilon, dtype=config.dtype, use_fast_variance=False, name=name
    )


class ConformerBlock(nn.Module):
    """Returns its output twice where `hidden`, as `nn.scan` wants it."""

    config: ConformerConfig
    train: bool = False
    hidden: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], _: None = None) -> tuple[Array, Array | None]:
        config = self.config

        def drop(x: Array) -> Array:
            return nn.Dropout(config.dropout, deterministic=not self.train)(x)

        def feed_forward(x: Array, name: str) -> Array:
            hidden = make_norm(config, f"{name}_norm")(x)
            hidden = nn.Dense(config.ff, dtype=config.dtype, name=f"{name}_in")(hidden)
            hidden = ACTIVATIONS[config.activation](hidden)
            hidden = nn.Dense(
                config.dim, dtype=config.dtype, kernel_init=SILENT, name=f"{name}_out"
            )(hidden)
            return add(x, 0.5 * drop(hidden))

        def add(x: Array, change: Array) -> Array:
            # Or the compiler splits widths as the parameters are, and sums scores over devices.
            return constrain(x + change, BATCH, "seq")

        x = feed_forward(x, "ff1")
        attention = RelativeAttention(config, name="attention")
        x = add(x, drop(attention(make_norm(config, "attention_norm")(x))))
        x = add(x, drop(ConvModule(config, name="conv")(x)))
        x = feed_forward(x, "ff2")
        x = make_norm(config, "norm")(x)
        return x, x if self.hidden else None


class Conformer(nn.Module):
    """A stack of blocks. Parameters are stacked under "layers" with scan, else under "layers_0",
    "layers_1", ... (`mgen.nn.transformer.stack_layers` and `unstack_layers` convert)."""

    config: ConformerConfig

    def __call__(self, x: Float[Array, "B L D"], train: bool = False) -> Float[Array, "B L D"]:
        return self.run(x, train, hidden=False)[0]

    def hidden_states(
        self, x: Float[Array, "B L D"], train: bool = False
    ) -> Float[Array, "N B L D"]:
        """The input and the output of every block, N = layers + 1; the last one passes the final
        norm where there is one."""
        out, blocks = self.run(x, train, hidden=True)
        assert blocks is not None
        return jnp.concatenate([x[None].astype(out.dtype), blocks[:-1], out[None]])

    @nn.compact
    def run(self, x: Array, train: bool, hidden: bool) -> tuple[Array, Array | None]:
        """Output, and where `hidden` the outputs of all blocks [layers, B, L, D] before the final
        norm."""
        config = self.config
        block: Any = ConformerBlock
        if config.remat != "none":
            policy = REMAT_POLICIES[config.remat]
            block = nn.remat(block, policy=policy, prevent_cse=not config.scan)
        x = x.astype(config.dtype)
        if config.scan:
            stack = nn.scan(
                block,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True, "dropout": True},
                length=config.layers,
            )
            x, blocks = stack(config, train, hidden, name="layers")(x, None)
        else:
            outputs = []
            for i in range(config.layers):
                x, output = block(config, train, hidden, name=f"layers_{i}")(x)
                outputs.append(output)
            blocks = jnp.stack(outputs) if hidden else None
        if config.final_norm:
            x = make_norm(config, "final_norm")(x)
        return x, blocks
