"""AST, the Audio Spectrogram Transformer, from the names and shapes that transformers gives it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mgen.errors import UserError
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
from mgen.joint.vit import ViTConfig
from mgen.typing import Params

# Names of the checkpoints released before transformers 5, and today's.
_RENAMED = {
    "encoder.layer.": "layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def ast_config(shape: Any, **overrides: Any) -> ViTConfig:
    """The `ViTConfig` of an `ASTConfig`.

    Args:
      shape: the config object.
      overrides: further fields of `ViTConfig` (patchout, scan, remat, dtype).

    Raises:
      UserError: an activation or projections without bias, which the tower does not have.
    """
    if not shape.qkv_bias:
        raise UserError("qkv_bias is False, expected True")
    patch = shape.patch_size
    fields: dict[str, Any] = dict(
        frames=shape.max_length,
        mels=shape.num_mel_bins,
        patch=(patch, patch),
        stride=(shape.time_stride, shape.frequency_stride),
        dim=shape.hidden_size,
        layers=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        ff=shape.intermediate_size,
        activation=activation(shape.hidden_act, "hidden_act"),
        norm_epsilon=shape.layer_norm_eps,
        dropout=float(shape.hidden_dropout_prob),
    )
    return ViTConfig(**{**fields, **overrides})


def ast_params(config: ViTConfig, state: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `ViT` from the weights of `ASTModel` or of `ASTForAudioClassification`, whose
    classifier is ignored.

    Args:
      config: from `ast_config`.
      state: the state dict as numpy arrays, under the names of transformers 4 or 5.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    reader = Reader(_renamed(state))
    dim, heads = config.dim, config.heads

    def block(name: str) -> Params:
        return {
            "attention_norm": layer_norm(reader, f"{name}.layernorm_before", dim),
            "attention": {
                "query": heads_in(reader, f"{name}.attention.q_proj", dim, heads),
                "key": heads_in(reader, f"{name}.attention.k_proj", dim, heads),
                "value": heads_in(reader, f"{name}.attention.v_proj", dim, heads),
                "out": heads_out(reader, f"{name}.attention.o_proj", dim, heads),
            },
            "ff_norm": layer_norm(reader, f"{name}.layernorm_after", dim),
            "ff_in": dense(reader, f"{name}.mlp.fc1", dim, config.ff),
            "ff_out": dense(reader, f"{name}.mlp.fc2", config.ff, dim),
        }

    tokens = [
        reader.take(f"embeddings.{name}", (1, 1, dim))[0]
        for name in ("cls_token", "distillation_token")
    ]
    length = len(tokens) + config.grid[0] * config.grid[1]
    projection = "embeddings.patch_embeddings.projection"
    kernel = reader.take(f"{projection}.weight", (dim, 1, config.patch[1], config.patch[0]))
    stack: Params = {
        **{f"layers_{i}": block(f"layers.{i}") for i in range(config.layers)},
        "final_norm": layer_norm(reader, "layernorm", dim),
    }
    params: Params = {
        "class_tokens": np.concatenate(tokens),
        "positions": reader.take("embeddings.position_embeddings", (1, length, dim))[0],
        "patch_embed": {
            # [D, 1, bins, frames] -> [frames * bins, D]
            "kernel": kernel[:, 0].transpose(2, 1, 0).reshape(-1, dim),
            "bias": reader.take(f"{projection}.bias", (dim,)),
        },
        "transformer": arrange(stack, config.scan),
    }
    return finish(reader, params)


def _renamed(state: Mapping[str, np.ndarray]) -> StateDict:
    """The encoder's tensors under today's names of the bare `ASTModel`."""
    out = {}
    for name, tensor in state.items():
        if name.startswith("classifier."):
            continue
        name = name.removeprefix("audio_spectrogram_transformer.")
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        out[name] = tensor
    return out
