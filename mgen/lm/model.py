"""Decoder-only Transformer over K codebook streams: sum of K embeddings in, K heads out.

MusicGen (Copet et al. 2023) is one setting of `LMConfig`: pre-norm, no biases, sinusoidal
positions, cross-attention to T5.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mgen.errors import UserError
from mgen.lm.layouts import Layout
from mgen.nn import transformer
from mgen.nn.embed import SumEmbed, sinusoidal
from mgen.typing import Array, Bool, Float, Int, Params

CHOICES = {
    "activation": tuple(transformer.ACTIVATIONS),
    "norm": ("layer", "rms"),
    "norm_position": ("pre", "post"),
    "positions": ("sinusoidal", "rope", "none"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", *transformer.REMAT_POLICIES),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Shape of a token language model. 0 and () stand for "none".

    Attributes:
      num_codebooks, codebook_size: K streams of V codes; token V is the special one (filler and
        start).
      layout, delays: see `mgen.lm.layouts.Layout`.
      dim, heads, kv_heads, layers, ff: widths and depth; kv_heads = 0 stands for `heads`.
      activation, norm, norm_position, bias, dropout, dtype, scan, remat: see
        `mgen.nn.transformer.TransformerConfig`.
      positions: "sinusoidal" (added to the embeddings), "rope" or "none".
      condition_width: width of the vectors that cross-attention reads (768 for T5-base); projected
        to `dim` where it differs.
      attribute_sizes: rows of each categorical field; field value 0 is "unknown". Their embeddings
        are added at every step.
    """

    num_codebooks: int
    codebook_size: int
    layout: str = "delay"
    delays: tuple[int, ...] = ()
    dim: int = 1024
    heads: int = 16
    kv_heads: int = 0
    layers: int = 24
    ff: int = 4096
    activation: str = "gelu"
    norm: str = "layer"
    norm_position: str = "pre"
    bias: bool = False
    positions: str = "sinusoidal"
    condition_width: int = 0
    attribute_sizes: tuple[int, ...] = ()
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise UserError(
                    f"model.{field} is {getattr(self, field)!r}, expected one of {list(allowed)}"
                )
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(
                f"model.heads is {self.heads}, expected a number that splits dim {self.dim} into "
                "even widths"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise UserError(
                f"model.kv_heads is {self.kv_heads}, expected a divisor of heads {self.heads}"
            )
        self.make_layout()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> "LMConfig":
        """From the `model` part of an experiment config; `UserError` names an unknown or missing
        field."""
        values = {**dict(config), **overrides}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise UserError(f"model.{name}: unknown field, expected one of {sorted(fields)}")
        for name in ("num_codebooks", "codebook_size"):
            if name not in values:
                raise UserError(f"model.{name}: missing")
        for name in ("delays", "attribute_sizes"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)

    @property
    def transformer(self) -> transformer.TransformerConfig:
        return transformer.TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            layers=self.layers,
            ff=self.ff,
            activation=self.activation,
            norm=self.norm,
            norm_position=self.norm_position,
            bias=self.bias,
            rotary=self.positions == "rope",
            cross=self.condition_width > 0,
            dropout=self.dropout,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
        )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def token_sizes(self) -> tuple[int, ...]:
        """Rows of each stream's embedding table: the codes and the special token."""
        return (self.codebook_size + 1,) * self.num_codebooks

    def make_layout(self) -> Layout:
        return Layout(self.layout, self.num_codebooks, self.codebook_size, self.delays)


class LM(nn.Module):
    """The whole sequence at once, for training; `mgen.lm.decode` holds the cached step."""

    config: LMConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L K"],
        attributes: Int[Array, "B A"] | None = None,
        condition: Float[Array, "B C W"] | None = None,
        condition_mask: Bool[Array, "B C"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B L K V"]:
        """Logits of the sequence of which `tokens` is the shifted copy (`Layout.shift`); float32.

        Args:
          tokens: codes, or the special token V.
          attributes: categorical fields; None stands for all unknown.
          condition: vectors for cross-attention; None skips it, as a fully masked one does in a
            model without biases.
          condition_mask: True where `condition` holds something; None stands for everywhere.
          train: whether dropout is on (needs the "dropout" generator).
        """
        config = self.config
        x = SumEmbed(config.token_sizes, config.dim, name="embed")(tokens)
        if config.attribute_sizes:
            if attributes is None:
                attributes = jnp.zeros((tokens.shape[0], len(config.attribute_sizes)), jnp.int32)
            table = SumEmbed(config.attribute_sizes, config.dim, name="attributes")
            x = x + table(attributes)[:, None]
        if config.positions == "sinusoidal":
            x = x + sinusoidal(jnp.arange(tokens.shape[1]), config.dim)[None]
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        memory = self.project(condition, condition_mask) if config.condition_width else None
        x = transformer.Transformer(config.transformer, name="transformer")(
            x, memory, condition_mask if memory is not None else None, train
        )
        logits = nn.DenseGeneral(
            (config.num_codebooks, config.codebook_size),
            use_bias=config.bias,
            dtype=config.dtype,
            name="heads",
        )(x)
        return logits.astype(jnp.float32)

    def project(self, condition: Array | None, mask: Array | None) -> Float[Array, "B C D"] | None:
        """The condition at the model's width, zero where masked, as MusicGen has it."""
        if condition is None:
            return None
        if self.config.condition_width != self.config.dim:
            condition = nn.Dense(
                self.config.dim, dtype=self.config.dtype, name="condition_projection"
            )(condition)
        return condition if mask is None else condition * mask[..., None]


def unstack_layers(params: Params) -> Params:
    """Parameters of `LM` with scan=False from those with scan=True."""
    return {**params, "transformer": transformer.unstack_layers(params["transformer"])}


def stack_layers(params: Params) -> Params:
    """Inverse of `unstack_layers`."""
    return {**params, "transformer": transformer.stack_layers(params["transformer"])}
