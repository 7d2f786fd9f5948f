"""Decoders of Llama's shape from the names and shapes that transformers gives them: Llama itself
(YuE's two language models) and the depth decoder of CSM.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mgen.errors import UserError
from mgen.interop.torch_weights import Reader
from mgen.interop.transformer_weights import (
    activation,
    arrange,
    dense,
    finish,
    heads_in,
    heads_out,
)
from mgen.lm.config import LMConfig
from mgen.nn.transformer import TransformerConfig
from mgen.typing import Params

_FF = {"ff_in": "up_proj", "ff_gate": "gate_proj"}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


def _shape(shape: Any) -> dict[str, Any]:
    """Fields that `LlamaConfig` and `CsmDepthDecoderConfig` share."""
    rope = shape.rope_parameters
    if rope["rope_type"] != "default":
        raise UserError(f"rope_type is {rope['rope_type']!r}, expected 'default'")
    return dict(
        activation=activation(shape.hidden_act, "hidden_act"),
        gated=True,
        norm="rms",
        norm_epsilon=float(shape.rms_norm_eps),
        positions="rope",
        rope_base=float(rope["rope_theta"]),
    )


def llama_config(shape: Any, **overrides: Any) -> LMConfig:
    """The `LMConfig` of a `LlamaConfig`: one codebook, its vocabulary.

    Raises:
      UserError: scaled rotary positions, an activation that the family does not have.
    """
    fields = _shape(shape) | dict(
        sizes=(shape.vocab_size,),
        layout="flatten",
        dim=shape.hidden_size,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        layers=shape.num_hidden_layers,
        ff=shape.intermediate_size,
    )
    return LMConfig(**{**fields, **overrides})


def llama_params(config: LMConfig, state: Mapping[str, np.ndarray], start: int) -> Params:
    """Parameters of `LM` from the weights of `LlamaForCausalLM`.

    Args:
      config: from `llama_config`.
      state: the state dict as numpy arrays.
      start: id of the token that begins a sequence.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    reader = Reader(dict(state))
    rows = (config.codebook_size, config.dim)
    table = reader.take("model.embed_tokens.weight", rows)
    tied = "lm_head.weight" not in reader
    head = table if tied else reader.take("lm_head.weight", rows)
    params: Params = {
        "embed": {"embedding": np.concatenate([table, table[start : start + 1]])},
        "heads": {"kernel": head.T[None]},
        "transformer": _stack(reader, "model", config.transformer),
    }
    return finish(reader, params)


def csm_config(shape: Any, **overrides: Any) -> LMConfig:
    """The `LMConfig` of a `CsmConfig`, for its depth decoder: the stack over time is not read, as
    CSM's also hears text.

    Raises:
      UserError: scaled rotary positions, an activation that the family does not have.
    """
    depth = shape.depth_decoder_config
    fields = _shape(depth) | dict(
        sizes=(depth.vocab_size,) * depth.num_codebooks,
        layout="parallel",
        dim=depth.backbone_hidden_size,
        heads=shape.num_attention_heads,
        layers=0,
        depth_layers=depth.num_hidden_layers,
        depth_dim=depth.hidden_size,
        depth_heads=depth.num_attention_heads,
        depth_ff=depth.intermediate_size,
    )
    return LMConfig(**{**fields, **overrides})


def csm_depth_params(config: LMConfig, state: Mapping[str, np.ndarray]) -> Params:
    """ "embed", "depth_projection", "depth" and "heads" of `LM` from the weights of
    `CsmDepthDecoderForCausalLM`. CSM takes codebook 0 from its first stack: its head here is zero.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    reader = Reader(dict(state))
    count, size, width = config.num_codebooks, config.codebook_size, config.depth_dim
    table = reader.take("model.embed_tokens.weight", (count * size, config.dim))
    special = np.zeros((count, 1, config.dim), np.float32)
    tables = np.concatenate([table.reshape(count, size, -1), special], axis=1)
    heads = reader.take("codebooks_head.weight", (count - 1, width, size))
    params: Params = {
        "embed": {"embedding": tables.reshape(-1, config.dim)},
        "depth_projection": dense(
            reader, "model.inputs_embeds_projector", config.dim, width, bias=False
        ),
        "depth": _stack(reader, "model", config.depth),
        "heads": {"kernel": np.concatenate([np.zeros_like(heads[:1]), heads])},
    }
    return finish(reader, params)


def _stack(reader: Reader, name: str, stack: TransformerConfig) -> Params:
    """Parameters of `Transformer`."""
    dim, width = stack.dim, stack.dim // stack.heads

    def norm(name: str) -> Params:
        return {"scale": reader.take(f"{name}.weight", (dim,))}

    def block(name: str) -> Params:
        attention = f"{name}.self_attn"
        counts = {"query": stack.heads, "key": stack.kv_heads, "value": stack.kv_heads}
        projections: Params = {
            ours: heads_in(reader, f"{attention}.{theirs}", dim, counts[ours], width, bias=False)
            for ours, theirs in _PROJECTIONS.items()
        }
        out = heads_out(reader, f"{attention}.o_proj", dim, stack.heads, width, bias=False)
        return {
            "attention_norm": norm(f"{name}.input_layernorm"),
            "attention": projections | {"out": out},
            "ff_norm": norm(f"{name}.post_attention_layernorm"),
            **{
                ours: dense(reader, f"{name}.mlp.{theirs}", dim, stack.ff, bias=False)
                for ours, theirs in _FF.items()
            },
            "ff_out": dense(reader, f"{name}.mlp.down_proj", stack.ff, dim, bias=False),
        }

    layers: Params = {
        **{f"layers_{i}": block(f"{name}.layers.{i}") for i in range(stack.layers)},
        "final_norm": norm(f"{name}.norm"),
    }
    return arrange(layers, stack.scan)
