"""Text tower: BERT, RoBERTa and T5's encoder are settings of one Transformer encoder.

Token embeddings (plus learned positions and token types, and a norm, where the setting has them),
the stack, a pooled vector.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from mgen.errors import UserError
from mgen.joint.towers import Embedded, check_choices, check_heads
from mgen.nn.transformer import Transformer, TransformerConfig
from mgen.typing import Array, Bool, Float, Int

CHOICES = {
    "positions": ("learned", "relative", "none"),
    "pooling": ("cls", "mean", "tanh_cls"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Shape of a text tower; the defaults are BERT-base (Devlin et al. 2019).

    RoBERTa has position_offset 2 and token_types 1. T5 has positions "relative", norm "rms" with
    1e-6 in "pre" position, no bias, no embedding norm, token_types 0, scale 1.0, relu or gated
    gelu_tanh (Raffel et al. 2020).

    Attributes:
      vocab_size: rows of the token table.
      dim, layers, heads, ff, activation, gated, norm, norm_epsilon, norm_position, bias, head_dim,
        scale, dropout, dtype, scan, remat: see `mgen.nn.transformer.TransformerConfig`.
      positions: "learned" (a table), "relative" (T5's bias on the scores) or "none".
      position_offset: row of the table that the first position has; RoBERTa's is padding_idx + 1.
      max_length: longest input with learned positions.
      token_types: rows of the token-type table, of which row 0 is added everywhere; 0 is no table.
      embedding_norm: whether a norm follows the sum of the embeddings.
      relative_buckets, relative_distance: of T5's bias.
      pooling: "cls" (first position), "tanh_cls" (BERT's pooler on it) or "mean" (over the mask).
    """

    vocab_size: int
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ff: int = 3072
    activation: str = "gelu"
    gated: bool = False
    norm: str = "layer"
    norm_epsilon: float = 1e-12
    norm_position: str = "post"
    bias: bool = True
    positions: str = "learned"
    position_offset: int = 0
    max_length: int = 512
    token_types: int = 2
    embedding_norm: bool = True
    relative_buckets: int = 32
    relative_distance: int = 128
    head_dim: int | None = None
    scale: float | None = None
    pooling: str = "tanh_cls"
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"

    def __post_init__(self) -> None:
        check_choices(self, "model.text", CHOICES)
        if self.head_dim is None:
            check_heads(self.dim, self.heads, "model.text")

    @property
    def transformer(self) -> TransformerConfig:
        return TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            kv_heads=self.heads,
            layers=self.layers,
            ff=self.ff,
            activation=self.activation,
            gated=self.gated,
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            norm_position=self.norm_position,
            bias=self.bias,
            causal=False,
            relative_buckets=self.relative_buckets if self.positions == "relative" else 0,
            relative_distance=self.relative_distance,
            head_dim=self.head_dim,
            scale=self.scale,
            dropout=self.dropout,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
        )


class TextTower(nn.Module):
    """Ids to vectors; what lies outside the mask changes nothing inside it."""

    config: TextConfig

    def setup(self) -> None:
        config = self.config

        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, config.dim, embedding_init=nn.initializers.normal(0.02))

        self.tokens = table(config.vocab_size)
        if config.positions == "learned":
            self.positions = table(config.max_length + config.position_offset)
        if config.token_types:
            self.token_types = table(config.token_types)
        if config.embedding_norm:
            self.embedding_norm = nn.LayerNorm(epsilon=config.norm_epsilon, use_fast_variance=False)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config.transformer)
        if config.pooling == "tanh_cls":
            self.pooler = nn.Dense(config.dim)

    def __call__(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"] | None = None,
        train: bool = False,
    ) -> Embedded:
        """The pooled text and the last hidden states.

        Args:
          ids: tokens; whatever stands where `mask` is False.
          mask: True at tokens, which come before any padding; None stands for everywhere.
          train: whether dropout is on (needs the "dropout" generator).

        Raises:
          UserError: more positions than the config has.
        """
        tokens = self.transformer(self.embed(ids, train), mask=mask, train=train)
        return Embedded(self.pool(tokens.astype(jnp.float32), mask), tokens, mask)

    def hidden_states(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"] | None = None,
        train: bool = False,
    ) -> Float[Array, "N B L D"]:
        """Embeddings and output of every layer, N = layers + 1; see `Transformer.hidden_states`."""
        return self.transformer.hidden_states(self.embed(ids, train), mask, train)

    def embed(self, ids: Int[Array, "B L"], train: bool = False) -> Float[Array, "B L D"]:
        """What the stack reads."""
        config, length = self.config, ids.shape[1]
        x = self.tokens(ids)
        if config.positions == "learned":
            if length > config.max_length:
                raise UserError(
                    f"model.text.max_length is {config.max_length}, expected at least the "
                    f"{length} positions of the text"
                )
            x = x + self.positions(config.position_offset + jnp.arange(length))[None]
        if config.token_types:
            x = x + self.token_types(jnp.zeros((1, 1), jnp.int32))
        if config.embedding_norm:
            x = self.embedding_norm(x)
        return self.embedding_dropout(x, deterministic=not train)

    def pool(
        self, tokens: Float[Array, "B L D"], mask: Bool[Array, "B L"] | None
    ) -> Float[Array, "B D"]:
        if self.config.pooling == "mean":
            where = None if mask is None else mask[..., None]
            return jnp.mean(tokens, axis=1, where=where)
        first = tokens[:, 0]
        return jnp.tanh(self.pooler(first)) if self.config.pooling == "tanh_cls" else first
