"""HuBERT, and with it the trunk of MERT, from the names and shapes that transformers gives it."""

from typing import Any

import numpy as np

from mgen.errors import UserError
from mgen.interop.torch_weights import WEIGHT_NORM_NAMES, Reader, StateDict
from mgen.interop.transformer_weights import (
    activation,
    arrange,
    dense,
    finish,
    heads_in,
    heads_out,
    layer_norm,
)
from mgen.nn.transformer import TransformerConfig
from mgen.semantic.config import ConvFrontConfig, SemanticConfig
from mgen.typing import Params, ndarray


def hubert_config(theirs: Any, sample_rate: int = 16000, **overrides: Any) -> SemanticConfig:
    """The `SemanticConfig` of a `HubertConfig`.

    Args:
      sample_rate: Hz that the model was trained at; the config does not say (MERT v1: 24000).
      overrides: further fields of the trunk's `TransformerConfig` (scan, remat, dtype).

    Raises:
      UserError: a setting that the family does not have.
    """
    if getattr(theirs, "conv_pos_batch_norm", False) or getattr(theirs, "adapter_attn_dim", None):
        raise UserError("conv_pos_batch_norm and adapter_attn_dim: not supported, expected neither")
    trunk = dict(
        dim=theirs.hidden_size,
        heads=theirs.num_attention_heads,
        kv_heads=theirs.num_attention_heads,
        layers=theirs.num_hidden_layers,
        ff=theirs.intermediate_size,
        activation=activation(theirs.hidden_act, "hidden_act"),
        norm_epsilon=theirs.layer_norm_eps,
        norm_position="pre" if theirs.do_stable_layer_norm else "post",
        bias=True,
        causal=False,
        dropout=float(theirs.hidden_dropout),
    )
    return SemanticConfig(
        sample_rate=sample_rate,
        front=conv_front_config(theirs),
        trunk=TransformerConfig(**{**trunk, **overrides}),
        feature_norm=getattr(theirs, "feat_proj_layer_norm", True),
        position_kernel=theirs.num_conv_pos_embeddings,
        position_groups=theirs.num_conv_pos_embedding_groups,
        norm_epsilon=theirs.layer_norm_eps,
        dropout=float(theirs.hidden_dropout),
    )


def hubert_params(config: SemanticConfig, state: StateDict) -> Params:
    """Parameters of `Encoder` from the weights of `HubertModel`.

    Args:
      config: from `hubert_config`.
      state: the state dict as numpy arrays.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    reader = Reader(state)
    trunk, dim = config.trunk, config.dim

    def block(name: str) -> Params:
        return {
            "attention_norm": layer_norm(reader, f"{name}.layer_norm", dim),
            "attention": {
                "query": heads_in(reader, f"{name}.attention.q_proj", dim, trunk.heads),
                "key": heads_in(reader, f"{name}.attention.k_proj", dim, trunk.heads),
                "value": heads_in(reader, f"{name}.attention.v_proj", dim, trunk.heads),
                "out": heads_out(reader, f"{name}.attention.out_proj", dim, trunk.heads),
            },
            "ff_norm": layer_norm(reader, f"{name}.final_layer_norm", dim),
            "ff_in": dense(reader, f"{name}.feed_forward.intermediate_dense", dim, trunk.ff),
            "ff_out": dense(reader, f"{name}.feed_forward.output_dense", trunk.ff, dim),
        }

    layers = {f"layers_{i}": block(f"encoder.layers.{i}") for i in range(trunk.layers)}
    params = front_params(config, reader)
    norm = layer_norm(reader, "encoder.layer_norm", dim)
    if isinstance(trunk, TransformerConfig) and trunk.norm_position == "post":
        params["input_norm"] = norm
    else:
        layers["final_norm"] = norm
    params["positions"] = positional_conv(config, reader)
    params["trunk"] = arrange(layers, trunk.scan)
    return finish(reader, params)


def conv_front_config(theirs: Any) -> ConvFrontConfig:
    """The waveform convolutions of any config of the wav2vec 2.0 line."""
    if theirs.feat_extract_activation != "gelu":
        raise UserError(
            f"feat_extract_activation is {theirs.feat_extract_activation!r}, expected 'gelu'"
        )
    return ConvFrontConfig(
        dims=tuple(theirs.conv_dim),
        kernels=tuple(theirs.conv_kernel),
        strides=tuple(theirs.conv_stride),
        bias=theirs.conv_bias,
        norm=theirs.feat_extract_norm,
    )


def front_params(config: SemanticConfig, reader: Reader) -> Params:
    """Parameters of an encoder before the trunk, but for the positions: any of the wav2vec 2.0
    line."""
    front = config.front
    params: Params = {}
    width = config.dim
    if isinstance(front, ConvFrontConfig):
        convs: Params = {}
        for i, (kernel, inputs, outputs) in enumerate(
            zip(front.kernels, (1, *front.dims), front.dims)
        ):
            name = f"feature_extractor.conv_layers.{i}"
            convs[f"conv_{i}"] = reader.conv(
                f"{name}.conv", kernel, inputs, outputs, norm="none", bias=front.bias
            )
            if front.norm == "layer" or i == 0:
                convs[f"norm_{i}"] = layer_norm(reader, f"{name}.layer_norm", outputs)
        params["front"] = {"convs": convs}
        features = front.dims[-1]
    else:
        features = front.stack * front.mel.n_mels
    if config.feature_norm:
        params["feature_norm"] = layer_norm(reader, "feature_projection.layer_norm", features)
    params["projection"] = dense(reader, "feature_projection.projection", features, width)
    # Models without masking have none.
    mask = "masked_spec_embed"
    params["mask_embedding"] = (
        reader.take(mask, (width,)) if mask in reader else np.zeros(width, np.float32)
    )
    return params


def positional_conv(config: SemanticConfig, reader: Reader) -> dict[str, ndarray]:
    """Kernel [k, D / groups, D] with one gain a tap."""
    name, size, dim = "encoder.pos_conv_embed.conv", config.position_kernel, config.dim
    naming = "legacy" if f"{name}.weight_v" in reader else "parametrized"
    gain, direction = WEIGHT_NORM_NAMES[naming]
    shape = (dim, dim // config.position_groups, size)
    return {
        "kernel": reader.take(f"{name}.{direction}", shape).transpose(2, 1, 0),
        "scale": reader.take(f"{name}.{gain}", (1, 1, size))[0, 0],
        "bias": reader.take(f"{name}.bias", (dim,)),
    }
