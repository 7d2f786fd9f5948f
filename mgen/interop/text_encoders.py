"""T5's encoder, BERT and RoBERTa from the names and shapes that transformers gives them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mgen.interop.torch_weights import Reader, StateDict
from mgen.interop.transformer_weights import (
    activation,
    arrange,
    dense,
    finish,
    heads_in,
    heads_out,
    layer_norm,
)
from mgen.joint.text import TextConfig
from mgen.typing import Params

# What released BERT checkpoints hold besides the encoder, or hold as constants.
_BERT_HEADS = ("cls.", "lm_head.", "qa_outputs.", "classifier.")
_BERT_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def t5_config(shape: Any, **overrides: Any) -> TextConfig:
    """The `TextConfig` of the encoder of a `T5Config`, pooled by "mean".

    Args:
      shape: the config object.
      overrides: further fields of `TextConfig` (pooling, scan, remat, dtype).

    Raises:
      UserError: an activation that the tower does not have.
    """
    fields: dict[str, Any] = dict(
        vocab_size=shape.vocab_size,
        dim=shape.d_model,
        layers=shape.num_layers,
        heads=shape.num_heads,
        ff=shape.d_ff,
        activation=activation(shape.dense_act_fn, "feed_forward_proj"),
        gated=shape.is_gated_act,
        norm="rms",
        norm_epsilon=shape.layer_norm_epsilon,
        norm_position="pre",
        bias=False,
        positions="relative",
        token_types=0,
        embedding_norm=False,
        relative_buckets=shape.relative_attention_num_buckets,
        relative_distance=shape.relative_attention_max_distance,
        head_dim=shape.d_kv,
        scale=1.0,
        pooling="mean",
        dropout=float(shape.dropout_rate),
    )
    return TextConfig(**{**fields, **overrides})


def bert_config(shape: Any, **overrides: Any) -> TextConfig:
    """The `TextConfig` of a `BertConfig`, with BERT's own pooler.

    Raises:
      UserError: an activation that the tower does not have.
    """
    fields: dict[str, Any] = dict(
        vocab_size=shape.vocab_size,
        dim=shape.hidden_size,
        layers=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        ff=shape.intermediate_size,
        activation=activation(shape.hidden_act, "hidden_act"),
        norm_epsilon=shape.layer_norm_eps,
        max_length=shape.max_position_embeddings,
        token_types=shape.type_vocab_size,
        dropout=float(shape.hidden_dropout_prob),
    )
    return TextConfig(**{**fields, **overrides})


def roberta_config(shape: Any, **overrides: Any) -> TextConfig:
    """The `TextConfig` of a `RobertaConfig` or a `ClapTextConfig`: BERT whose positions start
    behind the padding id.

    Raises:
      UserError: an activation that the tower does not have.
    """
    offset = shape.pad_token_id + 1
    length = shape.max_position_embeddings - offset
    return bert_config(shape, **{"max_length": length, "position_offset": offset, **overrides})


def t5_params(config: TextConfig, state: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `TextTower` from the weights of `T5EncoderModel`, or of a whole T5, whose
    decoder and head are ignored.

    Args:
      config: from `t5_config`.
      state: the state dict as numpy arrays.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    state = {n: v for n, v in state.items() if not n.startswith(("decoder.", "lm_head."))}
    reader = Reader(state)
    heads: dict[str, Any] = dict(
        dim=config.dim, heads=config.heads, head_dim=config.head_dim, bias=False
    )

    def norm(name: str) -> Params:
        return {"scale": reader.take(f"{name}.weight", (config.dim,))}

    def block(name: str) -> Params:
        attention = f"{name}.layer.0.SelfAttention"
        ff = f"{name}.layer.1.DenseReluDense"
        inner = {"ff_in": "wi_1", "ff_gate": "wi_0"} if config.gated else {"ff_in": "wi"}
        return {
            "attention_norm": norm(f"{name}.layer.0.layer_norm"),
            "attention": {
                "query": heads_in(reader, f"{attention}.q", **heads),
                "key": heads_in(reader, f"{attention}.k", **heads),
                "value": heads_in(reader, f"{attention}.v", **heads),
                "out": heads_out(reader, f"{attention}.o", **heads),
            },
            "ff_norm": norm(f"{name}.layer.1.layer_norm"),
            **{
                new: dense(reader, f"{ff}.{old}", config.dim, config.ff, bias=False)
                for new, old in inner.items()
            },
            "ff_out": dense(reader, f"{ff}.wo", config.ff, config.dim, bias=False),
        }

    rows = (config.vocab_size, config.dim)
    table = reader.take("shared.weight", rows)
    # The encoder's name for the same table.
    if "encoder.embed_tokens.weight" in reader:
        reader.take("encoder.embed_tokens.weight", rows)
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    stack: Params = {
        **{f"layers_{i}": block(f"encoder.block.{i}") for i in range(config.layers)},
        "relative_bias": {"embedding": reader.take(bias, (config.relative_buckets, config.heads))},
        "final_norm": norm("encoder.final_layer_norm"),
    }
    params = {"tokens": {"embedding": table}, "transformer": arrange(stack, config.scan)}
    return finish(reader, params)


def bert_params(config: TextConfig, state: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `TextTower` from the weights of `BertModel` or `RobertaModel`, or of one with a
    head, which is ignored. The pooler is left out where `config.pooling` is not "tanh_cls".

    Args:
      config: from `bert_config` or `roberta_config`.
      state: the state dict as numpy arrays.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    reader = Reader(bert_state(state))
    params = read_bert(config, reader)
    pooler = () if config.pooling == "tanh_cls" else ("pooler.dense.weight", "pooler.dense.bias")
    return finish(reader, params, ignore=(*_BERT_BUFFERS, *pooler))


def bert_state(state: Mapping[str, np.ndarray]) -> StateDict:
    """The encoder's tensors under the names of the bare `BertModel`: heads dropped, norms of the
    first released checkpoints (gamma, beta) renamed."""
    out = {}
    for name, tensor in state.items():
        if not name.startswith(_BERT_HEADS):
            name = name.removeprefix("bert.").removeprefix("roberta.")
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
            out[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return out


def read_bert(config: TextConfig, reader: Reader, prefix: str = "") -> Params:
    """Parameters of `TextTower` from BERT's tensors of `reader`, whose names start with
    `prefix`."""
    dim = config.dim

    def table(name: str, rows: int) -> Params:
        name = f"{prefix}embeddings.{name}_embeddings.weight"
        return {"embedding": reader.take(name, (rows, dim))}

    def block(name: str) -> Params:
        return {
            "attention": {
                **{
                    part: heads_in(reader, f"{name}.attention.self.{part}", dim, config.heads)
                    for part in ("query", "key", "value")
                },
                "out": heads_out(reader, f"{name}.attention.output.dense", dim, config.heads),
            },
            "attention_norm": layer_norm(reader, f"{name}.attention.output.LayerNorm", dim),
            "ff_in": dense(reader, f"{name}.intermediate.dense", dim, config.ff),
            "ff_out": dense(reader, f"{name}.output.dense", config.ff, dim),
            "ff_norm": layer_norm(reader, f"{name}.output.LayerNorm", dim),
        }

    layers = {f"layers_{i}": block(f"{prefix}encoder.layer.{i}") for i in range(config.layers)}
    params: Params = {
        "tokens": table("word", config.vocab_size),
        "positions": table("position", config.max_length + config.position_offset),
        "token_types": table("token_type", config.token_types),
        "embedding_norm": layer_norm(reader, f"{prefix}embeddings.LayerNorm", dim),
        "transformer": arrange(layers, config.scan),
    }
    if config.pooling == "tanh_cls":
        params["pooler"] = dense(reader, f"{prefix}pooler.dense", dim, dim)
    return params
