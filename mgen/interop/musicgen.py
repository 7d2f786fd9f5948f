"""MusicGen's language model from the names and shapes that transformers gives it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.interop.transformer_weights import activation
from mgen.lm.model import LMConfig, stack_layers
from mgen.typing import Params

_NORMS = {
    "self_attn_layer_norm": "attention_norm",
    "encoder_attn_layer_norm": "cross_attention_norm",
    "final_layer_norm": "ff_norm",
}
_ATTENTIONS = {"self_attn": "attention", "encoder_attn": "cross_attention"}
_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}


def lm_config(decoder: Any, condition_width: int | None = None, **overrides: Any) -> LMConfig:
    """The `LMConfig` of a `MusicgenDecoderConfig`.

    Args:
      decoder: the decoder's config object.
      condition_width: width of the text encoder (768 for T5-base). None where vectors already have
        the decoder's width, as `MusicgenForCausalLM` takes them.
      overrides: further fields of `LMConfig` (scan, remat, dtype).

    Raises:
      UserError: an activation or a number of channels that the family does not have.
    """
    streams = decoder.num_codebooks
    # Stereo checkpoints interleave left and right codebooks and delay each pair together.
    delays = tuple(k // decoder.audio_channels for k in range(streams))
    return LMConfig(
        num_codebooks=streams,
        codebook_size=decoder.vocab_size,
        layout="delay",
        delays=() if decoder.audio_channels == 1 else delays,
        dim=decoder.hidden_size,
        heads=decoder.num_attention_heads,
        layers=decoder.num_hidden_layers,
        ff=decoder.ffn_dim,
        activation=activation(decoder.activation_function, "activation_function"),
        condition_width=condition_width or decoder.hidden_size,
        dropout=float(decoder.dropout),
        **overrides,
    )


def lm_params(config: LMConfig, state: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `LM` from the weights of `MusicgenForCausalLM` or of
    `MusicgenForConditionalGeneration`.

    Args:
      config: from `lm_config`.
      state: the state dict as numpy arrays; of a conditional model, the text encoder and the codec
        are ignored.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    names = set(state)
    prefix = "decoder." if "decoder.lm_heads.0.weight" in names else ""
    ours = {n for n in names if n.startswith((prefix, "enc_to_dec_proj."))}
    # Fixed sinusoids, stored by old checkpoints.
    ours = {n for n in ours if not n.endswith("embed_positions.weights")}

    def take(name: str, *shape: int) -> np.ndarray:
        if name not in names:
            raise UserError(f"{name}: missing from the weights")
        ours.discard(name)
        if state[name].shape != shape:
            raise UserError(f"{name}: shape is {state[name].shape}, expected {shape}")
        return np.asarray(state[name], np.float32)

    dim, heads, width = config.dim, config.heads, config.head_dim

    def norm(name: str) -> Params:
        return {"scale": take(f"{name}.weight", dim), "bias": take(f"{name}.bias", dim)}

    def attention(name: str) -> Params:
        out = {
            new: {"kernel": take(f"{name}.{old}.weight", dim, dim).T.reshape(dim, heads, width)}
            for old, new in _PROJECTIONS.items()
        }
        kernel = take(f"{name}.out_proj.weight", dim, dim).T.reshape(heads, width, dim)
        return out | {"out": {"kernel": kernel}}

    def block(name: str) -> Params:
        return {
            **{new: norm(f"{name}.{old}") for old, new in _NORMS.items()},
            **{new: attention(f"{name}.{old}") for old, new in _ATTENTIONS.items()},
            "ff_in": {"kernel": take(f"{name}.fc1.weight", config.ff, dim).T},
            "ff_out": {"kernel": take(f"{name}.fc2.weight", dim, config.ff).T},
        }

    model = f"{prefix}model.decoder"
    streams = range(config.num_codebooks)
    rows = config.codebook_size + 1
    tables = [take(f"{model}.embed_tokens.{k}.weight", rows, dim) for k in streams]
    kernels = [take(f"{prefix}lm_heads.{k}.weight", rows - 1, dim).T for k in streams]
    params: Params = {
        "embed": {"embedding": np.concatenate(tables)},
        "heads": {"kernel": np.stack(kernels, axis=1)},
        "transformer": {
            **{f"layers_{i}": block(f"{model}.layers.{i}") for i in range(config.layers)},
            "final_norm": norm(f"{model}.layer_norm"),
        },
    }
    if config.condition_width != dim:
        kernel = take("enc_to_dec_proj.weight", dim, config.condition_width).T
        params["condition_projection"] = {
            "kernel": kernel,
            "bias": take("enc_to_dec_proj.bias", dim),
        }
    if ours:
        raise UserError(f"{min(ours)}: weight without a place in this model")
    params = jax.tree.map(jnp.asarray, params)
    return stack_layers(params) if config.scan else params
