"""MusicGen's language model, with and without melodies, from the names and shapes that transformers
gives it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mgen.interop.torch_weights import Reader
from mgen.interop.transformer_weights import (
    activation,
    arrange,
    dense,
    finish,
    heads_in,
    heads_out,
    layer_norm,
)
from mgen.lm.condition import Condition
from mgen.lm.config import LMConfig
from mgen.typing import Params

_NORMS = {
    "self_attn_layer_norm": "attention_norm",
    "encoder_attn_layer_norm": "cross_attention_norm",
    "final_layer_norm": "ff_norm",
}
_ATTENTIONS = {"self_attn": "attention", "encoder_attn": "cross_attention"}
_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
# Parts of a conditional model that are not the language model's.
_OTHERS = ("text_encoder.", "audio_encoder.")
# Of the melody model: what projects the vectors of its `front`, in order.
_FRONT = ("audio_enc_to_dec_proj", "enc_to_dec_proj")


def lm_config(
    decoder: Any,
    condition_width: int | None = None,
    front: tuple[int, ...] = (),
    **overrides: Any,
) -> LMConfig:
    """The `LMConfig` of a `MusicgenDecoderConfig` or `MusicgenMelodyDecoderConfig`.

    Args:
      decoder: the decoder's config object.
      condition_width: width of the text encoder (768 for T5-base). None where vectors already have
        the decoder's width, as `MusicgenForCausalLM` takes them.
      front: of the melody model, widths of chroma and text (12, 768), which stand before the codes
        in place of cross-attention.
      overrides: further fields of `LMConfig` (scan, remat, dtype).

    Raises:
      UserError: an activation or a number of channels that the family does not have.
    """
    streams = decoder.num_codebooks
    # Stereo checkpoints interleave left and right codebooks and delay each pair together.
    delays = tuple(k // decoder.audio_channels for k in range(streams))
    return LMConfig(
        sizes=(decoder.vocab_size,) * streams,
        layout="delay",
        delays=() if decoder.audio_channels == 1 else delays,
        dim=decoder.hidden_size,
        heads=decoder.num_attention_heads,
        layers=decoder.num_hidden_layers,
        ff=decoder.ffn_dim,
        activation=activation(decoder.activation_function, "activation_function"),
        condition_width=0 if front else condition_width or decoder.hidden_size,
        front=front,
        dropout=float(decoder.dropout),
        **overrides,
    )


def lm_params(config: LMConfig, state: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `LM` from the weights of `MusicgenForCausalLM`,
    `MusicgenForConditionalGeneration` or `MusicgenMelodyForConditionalGeneration`.

    Args:
      config: from `lm_config`.
      state: the state dict as numpy arrays; of a conditional model, the text encoder and the codec
        are ignored.

    Raises:
      UserError: a weight is missing, of another shape, or has no place.
    """
    # Fixed sinusoids are stored by old checkpoints.
    own = {n: v for n, v in state.items() if not n.startswith(_OTHERS)}
    reader = Reader({n: v for n, v in own.items() if not n.endswith("embed_positions.weights")})
    prefix = "decoder." if "decoder.lm_heads.0.weight" in reader else ""
    dim, heads = config.dim, config.heads

    def attention(name: str) -> Params:
        return {
            **{
                new: heads_in(reader, f"{name}.{old}", dim, heads, bias=False)
                for old, new in _PROJECTIONS.items()
            },
            "out": heads_out(reader, f"{name}.out_proj", dim, heads, bias=False),
        }

    crosses = config.condition_width > 0
    norms = {old: new for old, new in _NORMS.items() if crosses or "cross" not in new}
    attentions = {old: new for old, new in _ATTENTIONS.items() if crosses or "cross" not in new}

    def block(name: str) -> Params:
        return {
            **{new: layer_norm(reader, f"{name}.{old}", dim) for old, new in norms.items()},
            **{new: attention(f"{name}.{old}") for old, new in attentions.items()},
            "ff_in": dense(reader, f"{name}.fc1", dim, config.ff, bias=False),
            "ff_out": dense(reader, f"{name}.fc2", config.ff, dim, bias=False),
        }

    model = f"{prefix}model.decoder"
    streams, rows = range(config.num_codebooks), config.codebook_size + 1
    tables = [reader.take(f"{model}.embed_tokens.{k}.weight", (rows, dim)) for k in streams]
    kernels = [
        dense(reader, f"{prefix}lm_heads.{k}", dim, rows - 1, bias=False)["kernel"] for k in streams
    ]
    stack: Params = {
        **{f"layers_{i}": block(f"{model}.layers.{i}") for i in range(config.layers)},
        "final_norm": layer_norm(reader, f"{model}.layer_norm", dim),
    }
    params: Params = {
        "embed": {"embedding": np.concatenate(tables)},
        "heads": {"kernel": np.stack(kernels)},
        "transformer": arrange(stack, config.scan),
    }
    if config.condition_width not in (0, dim):
        params["condition_projection"] = dense(
            reader, "enc_to_dec_proj", config.condition_width, dim
        )
    for i, (name, width) in enumerate(zip(_FRONT, config.front)):
        if width != dim:
            params[f"front_projection_{i}"] = dense(reader, name, width, dim)
    return finish(reader, params)


def unconditional(condition: Condition) -> Condition:
    """What the melody model contrasts with in guidance: no text, and a melody that stays on C (the
    pitch class of silence), where a model of ours has no melody."""
    chroma, text = condition.front
    silence = jnp.zeros_like(chroma).at[..., 0].set(1.0)
    masks = jnp.ones(chroma.shape[:2], bool), jnp.zeros(text.shape[:2], bool)
    return Condition(front=(silence, jnp.zeros_like(text)), front_mask=masks)
