"""CLAP (Wu et al. 2023) from the names and shapes that transformers gives it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mgen.errors import UserError
from mgen.interop import text_encoders
from mgen.interop.torch_weights import Reader
from mgen.interop.transformer_weights import (
    activation,
    dense,
    finish,
    heads_in,
    heads_out,
    layer_norm,
)
from mgen.joint.config import JointConfig, MelConfig
from mgen.joint.htsat import HTSATConfig
from mgen.typing import Params

# Front end of the unfused checkpoints (100 frames/s at 48 kHz), for any number of bins.
SAMPLE_RATE = 48000
MEL: dict[str, Any] = dict(
    n_fft=1024,
    win_length=1024,
    hop=480,
    fmin=50.0,
    fmax=14000.0,
    htk=False,
    unit_area=True,
    scale="db",
    floor=1e-10,
)
# Longest text that the checkpoints were trained on.
TEXT_LENGTH = 77
# Of torch's batch norm; its running statistics are folded into an affine map.
BATCH_NORM_EPSILON = 1e-5
_HTSAT_BUFFERS = ("relative_position_index", "batch_norm.num_batches_tracked")
_TEXT_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def clap_config(shape: Any, **overrides: Any) -> JointConfig:
    """The `JointConfig` of a `ClapConfig`.

    Args:
      shape: the config object.
      overrides: further fields of `JointConfig` (seconds, text_length).

    Raises:
      UserError: a fused model, or settings that the family does not have.
    """
    if shape.projection_hidden_act != "relu":
        raise UserError(
            f"projection_hidden_act is {shape.projection_hidden_act!r}, expected 'relu'"
        )
    audio = htsat_config(shape.audio_config)
    text = text_encoders.roberta_config(shape.text_config)
    fields: dict[str, Any] = dict(
        sample_rate=SAMPLE_RATE,
        seconds=10.0,
        text_length=min(TEXT_LENGTH, text.max_length),
        embed_dim=shape.projection_dim,
        audio_kind="htsat",
        audio=audio,
        text=text,
        mel=MelConfig(n_mels=audio.mels, **MEL),
        projection="mlp",
    )
    return JointConfig(**{**fields, **overrides})


def clap_params(config: JointConfig, state: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `JointModel` from the weights of `ClapModel`.

    CLAP has a temperature for each direction of the comparison; ours is the one of an audio among
    texts.

    Args:
      config: from `clap_config`.
      state: the state dict as numpy arrays.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    assert isinstance(config.audio, HTSATConfig)
    reader = Reader(dict(state))

    def projection(name: str, width: int) -> Params:
        return {
            "in": dense(reader, f"{name}.linear1", width, config.embed_dim),
            "out": dense(reader, f"{name}.linear2", config.embed_dim, config.embed_dim),
        }

    assert config.text is not None
    reader.take("logit_scale_t", ())
    params: Params = {
        "scores": {"log_scale": reader.take("logit_scale_a", ())},
        "audio_tower": read_htsat(config.audio, reader, "audio_model.audio_encoder."),
        "text_tower": text_encoders.read_bert(config.text, reader, "text_model."),
        "audio_projection": projection("audio_projection", config.audio.widths[-1]),
        "text_projection": projection("text_projection", config.text.dim),
    }
    return finish(reader, params, ignore=(*_HTSAT_BUFFERS, *_TEXT_BUFFERS))


def htsat_config(shape: Any, **overrides: Any) -> HTSATConfig:
    """The `HTSATConfig` of a `ClapAudioConfig`.

    Args:
      shape: the config object.
      overrides: further fields of `HTSATConfig` (dropout, dtype).

    Raises:
      UserError: a fused model, or settings that the tower does not have.
    """
    stride = shape.patch_stride
    stride = (stride, stride) if isinstance(stride, int) else tuple(stride)
    expected = {
        "enable_fusion": (shape.enable_fusion, False),
        "patch_stride": (stride, (shape.patch_size, shape.patch_size)),
        "patch_embed_input_channels": (shape.patch_embed_input_channels, 1),
        "enable_patch_layer_norm": (shape.enable_patch_layer_norm, True),
        "qkv_bias": (shape.qkv_bias, True),
    }
    for field, (value, wanted) in expected.items():
        if value != wanted:
            raise UserError(f"audio_config.{field} is {value}, expected {wanted}")
    fields: dict[str, Any] = dict(
        mels=shape.num_mel_bins,
        size=shape.spec_size,
        patch=shape.patch_size,
        window=shape.window_size,
        dim=shape.patch_embeds_hidden_size,
        depths=tuple(shape.depths),
        heads=tuple(shape.num_attention_heads),
        ff=shape.mlp_ratio,
        activation=activation(shape.hidden_act, "audio_config.hidden_act"),
        norm_epsilon=shape.layer_norm_eps,
        dropout=float(shape.hidden_dropout_prob),
    )
    return HTSATConfig(**{**fields, **overrides})


def htsat_params(config: HTSATConfig, state: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `HTSAT` from the weights of `ClapAudioModel`.

    Args:
      config: from `htsat_config`.
      state: the state dict as numpy arrays.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    reader = Reader(dict(state))
    return finish(reader, read_htsat(config, reader, "audio_encoder."), ignore=_HTSAT_BUFFERS)


def read_htsat(config: HTSATConfig, reader: Reader, prefix: str) -> Params:
    """Parameters of `HTSAT` from the tensors of `reader` whose names start with `prefix`."""
    span = 2 * config.window - 1

    def block(name: str, dim: int, heads: int) -> Params:
        attention = f"{name}.attention.self"
        table = f"{attention}.relative_position_bias_table"
        inner = int(config.ff * dim)
        return {
            "attention_norm": layer_norm(reader, f"{name}.layernorm_before", dim),
            "attention": {
                **{
                    part: heads_in(reader, f"{attention}.{part}", dim, heads)
                    for part in ("query", "key", "value")
                },
                "relative_bias": reader.take(table, (span * span, heads)),
                "out": heads_out(reader, f"{name}.attention.output.dense", dim, heads),
            },
            "ff_norm": layer_norm(reader, f"{name}.layernorm_after", dim),
            "ff_in": dense(reader, f"{name}.intermediate.dense", dim, inner),
            "ff_out": dense(reader, f"{name}.output.dense", inner, dim),
        }

    kernel = reader.take(
        f"{prefix}patch_embed.proj.weight", (config.dim, 1, config.patch, config.patch)
    )
    params: Params = {
        **_mel_affine(config, reader, f"{prefix}batch_norm"),
        "patch_embed": {
            "kernel": kernel.reshape(config.dim, -1).T,
            "bias": reader.take(f"{prefix}patch_embed.proj.bias", (config.dim,)),
        },
        "patch_norm": layer_norm(reader, f"{prefix}patch_embed.norm", config.dim),
        "final_norm": layer_norm(reader, f"{prefix}norm", config.widths[-1]),
    }
    for stage, (depth, dim) in enumerate(zip(config.depths, config.widths, strict=True)):
        for i in range(depth):
            name = f"{prefix}layers.{stage}.blocks.{i}"
            params[f"stage_{stage}_{i}"] = block(name, dim, config.heads[stage])
    for stage, dim in enumerate(config.widths[:-1]):
        name = f"{prefix}layers.{stage}.downsample"
        merge = f"merge_{stage + 1}"
        params[f"{merge}_norm"] = layer_norm(reader, f"{name}.norm", 4 * dim)
        params[merge] = dense(reader, f"{name}.reduction", 4 * dim, 2 * dim, bias=False)
    return params


def _mel_affine(config: HTSATConfig, reader: Reader, name: str) -> Params:
    weight, bias, mean, variance = (
        reader.take(f"{name}.{part}", (config.mels,))
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(variance + BATCH_NORM_EPSILON)
    return {"mel_scale": scale, "mel_bias": bias - mean * scale}
