"""Wav2Vec2-Conformer and Wav2Vec2-BERT from the names and shapes that transformers gives them."""

from typing import Any

from mgen.errors import UserError
from mgen.interop.hubert import conv_front_config, front_params
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
from mgen.nn.conformer import ConformerConfig
from mgen.semantic.config import MelConfig, MelFrontConfig, SemanticConfig
from mgen.typing import Params

# Blocks of Wav2Vec2-Conformer take PyTorch's default, whatever the config says.
EPSILON = 1e-5
ROTARY_BASE = 10000
# Held in state dicts without being weights.
NOT_WEIGHTS = ("num_batches_tracked", "embed_positions.inv_freq")


def wav2vec2_conformer_config(
    theirs: Any, sample_rate: int = 16000, **overrides: Any
) -> SemanticConfig:
    """The `SemanticConfig` of a `Wav2Vec2ConformerConfig`.

    Args:
      sample_rate: Hz that the model was trained at; the config does not say.
      overrides: further fields of the trunk's `ConformerConfig` (scan, remat, dtype).

    Raises:
      UserError: a setting that the family does not have.
    """
    trunk = _trunk(theirs, conv_norm="batch", final_norm=True, **overrides)
    return SemanticConfig(
        sample_rate=sample_rate,
        front=conv_front_config(theirs),
        trunk=trunk,
        feature_norm=True,
        norm_epsilon=EPSILON,
        dropout=float(theirs.hidden_dropout),
    )


def wav2vec2_bert_config(theirs: Any, **overrides: Any) -> SemanticConfig:
    """The `SemanticConfig` of a `Wav2Vec2BertConfig`.

    The released models read Kaldi's 80 log-mel bins, two frames side by side and normalised a
    recording, which `Encoder.encode` takes as they are; our spectrogram differs in the window and
    the pre-emphasis.

    Args, Raises: as `wav2vec2_conformer_config`.
    """
    trunk = _trunk(
        theirs,
        causal_conv=True,
        left=theirs.left_max_position_embeddings,
        right=theirs.right_max_position_embeddings,
        **overrides,
    )
    return SemanticConfig(
        sample_rate=16000,
        front=MelFrontConfig(
            mel=MelConfig(n_fft=400, hop=160, n_mels=theirs.feature_projection_input_dim // 2),
            stack=2,
        ),
        trunk=trunk,
        feature_norm=True,
        norm_epsilon=EPSILON,
        dropout=float(theirs.hidden_dropout),
    )


def _trunk(theirs: Any, **fields: Any) -> ConformerConfig:
    for name, expected in (
        ("layer_norm_eps", EPSILON),
        ("rotary_embedding_base", ROTARY_BASE),
        ("add_adapter", False),
    ):
        if getattr(theirs, name) != expected:
            raise UserError(f"{name} is {getattr(theirs, name)!r}, expected {expected!r}")
    name = {"swish": "silu"}.get(theirs.hidden_act, theirs.hidden_act)
    own = dict(
        dim=theirs.hidden_size,
        heads=theirs.num_attention_heads,
        layers=theirs.num_hidden_layers,
        ff=theirs.intermediate_size,
        activation=activation(name, "hidden_act"),
        positions=theirs.position_embeddings_type or "none",
        kernel_size=theirs.conv_depthwise_kernel_size,
        dropout=float(theirs.hidden_dropout),
    )
    return ConformerConfig(**{**own, **fields})


def wav2vec2_params(config: SemanticConfig, state: StateDict) -> dict[str, Params]:
    """Variables of `Encoder` from the weights of `Wav2Vec2ConformerModel` or `Wav2Vec2BertModel`:
    {"params"}, and {"batch_stats"} where the convolutions have batch norm.

    Args:
      config: from `wav2vec2_conformer_config` or `wav2vec2_bert_config`.
      state: the state dict as numpy arrays.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    # Wav2Vec2-Conformer holds a positional convolution that it does not use.
    unused = "encoder.pos_conv_embed."
    reader = Reader({n: tensor for n, tensor in state.items() if not n.startswith(unused)})
    trunk = config.trunk
    assert isinstance(trunk, ConformerConfig)
    names = [f"encoder.layers.{i}" for i in range(trunk.layers)]
    layers = {f"layers_{i}": _block(reader, name, trunk) for i, name in enumerate(names)}
    params = front_params(config, reader)
    if trunk.final_norm:
        layers["final_norm"] = layer_norm(reader, "encoder.layer_norm", trunk.dim)
    variables = {"params": params | {"trunk": arrange(layers, trunk.scan)}}
    if trunk.conv_norm == "batch":
        statistics = {
            f"layers_{i}": {"conv": {"depthwise_norm": _statistics(reader, name, trunk.dim)}}
            for i, name in enumerate(names)
        }
        variables["batch_stats"] = {"trunk": arrange(statistics, trunk.scan)}
    return finish(reader, variables, ignore=NOT_WEIGHTS)


def _block(reader: Reader, name: str, trunk: ConformerConfig) -> Params:
    dim, heads = trunk.dim, trunk.heads
    attention: Params = {
        new: heads_in(reader, f"{name}.self_attn.linear_{old}", dim, heads)
        for old, new in (("q", "query"), ("k", "key"), ("v", "value"))
    }
    attention["out"] = heads_out(reader, f"{name}.self_attn.linear_out", dim, heads)
    shape = (heads, dim // heads)
    if trunk.positions == "relative":
        attention["position"] = heads_in(
            reader, f"{name}.self_attn.linear_pos", dim, heads, bias=False
        )
        attention["content_bias"] = reader.take(f"{name}.self_attn.pos_bias_u", shape)
        attention["position_bias"] = reader.take(f"{name}.self_attn.pos_bias_v", shape)
    if trunk.positions == "relative_key":
        rows = (trunk.left + trunk.right + 1, dim // heads)
        attention["distance"] = reader.take(f"{name}.self_attn.distance_embedding.weight", rows)
    conv, size = f"{name}.conv_module", trunk.kernel_size
    norm = "batch_norm" if trunk.conv_norm == "batch" else "depthwise_layer_norm"
    block: Params = {
        "attention_norm": layer_norm(reader, f"{name}.self_attn_layer_norm", dim),
        "attention": attention,
        "conv": {
            "norm": layer_norm(reader, f"{conv}.layer_norm", dim),
            "pointwise_in": _pointwise(reader, f"{conv}.pointwise_conv1", dim, 2 * dim),
            "depthwise": {
                "kernel": reader.take(f"{conv}.depthwise_conv.weight", (dim, 1, size))[:, 0].T
            },
            "depthwise_norm": layer_norm(reader, f"{conv}.{norm}", dim),
            "pointwise_out": _pointwise(reader, f"{conv}.pointwise_conv2", dim, dim),
        },
        "norm": layer_norm(reader, f"{name}.final_layer_norm", dim),
    }
    for ours, theirs in (("ff1", "ffn1"), ("ff2", "ffn2")):
        block[f"{ours}_norm"] = layer_norm(reader, f"{name}.{theirs}_layer_norm", dim)
        block[f"{ours}_in"] = dense(reader, f"{name}.{theirs}.intermediate_dense", dim, trunk.ff)
        block[f"{ours}_out"] = dense(reader, f"{name}.{theirs}.output_dense", trunk.ff, dim)
    return block


def _pointwise(reader: Reader, name: str, inputs: int, outputs: int) -> Params:
    """A convolution over one step as a linear layer."""
    return {"kernel": reader.take(f"{name}.weight", (outputs, inputs, 1))[..., 0].T}


def _statistics(reader: Reader, name: str, dim: int) -> Params:
    norm = f"{name}.conv_module.batch_norm"
    return {
        "mean": reader.take(f"{norm}.running_mean", (dim,)),
        "var": reader.take(f"{norm}.running_var", (dim,)),
    }
