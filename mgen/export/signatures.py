"""The functions of trained models that are exported, with their shapes.

b is any batch size, f any number of frames. A codec with an LSTM or mirrored padding must know the
length when it is traced, and one that is defined on segments has theirs: their signatures state one
length.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from mgen.codec.config import CodecConfig
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.export.signature import Arrays, Model, Signature, symbolic
from mgen.joint.sample import FrozenJoint
from mgen.lm.condition import Condition
from mgen.lm.filters import SamplingConfig
from mgen.lm.sample import FrozenLM
from mgen.lm.stages import FrozenStage
from mgen.lm.streams import JOINT, TEXT
from mgen.typing import Params


def of_codec(codec: FrozenCodec, fingerprint: str, seconds: float) -> Model:
    """`encode`: audio [b, t, C] -> codes int32 [b, f, K], and `decode` back; latents float32
    [b, f, D] in place of codes where a codec has none.

    A codec that normalises also gives and takes `levels` [b, 1]. One that is defined on segments
    is exported as its function of one segment: callers cut and cross-fade.

    Args:
      seconds: length of the audio where it cannot be free (not of a segment, which has its own).
    """
    config = codec.config
    name, width = ("codes", config.num_codebooks) if config.has_codes else ("latents", 0)
    # One segment is a whole signal of its length.
    whole = config.replace(segment_seconds=0.0)
    samples, frames = _codec_lengths(config, seconds)

    def bound(params: Params) -> FrozenCodec:
        collections = {key: tree for key, tree in params.items() if key != "params"}
        return FrozenCodec(whole, params["params"], collections)

    def encode(params: Params, inputs: Arrays) -> Arrays:
        model = bound(params)
        if not config.has_codes:
            return {name: model.encode_latents(inputs["audio"])}
        codes, levels = model.encode_with_levels(inputs["audio"])
        return {name: codes, **({"levels": levels} if config.normalize else {})}

    def decode(params: Params, inputs: Arrays) -> Arrays:
        model = bound(params)
        run = model.decode if config.has_codes else model.decode_latents
        return {"audio": run(inputs[name], inputs.get("levels"))}

    audio = symbolic(audio=(f"b, {samples}, {config.channels}", jnp.float32))
    dtype = jnp.int32 if config.has_codes else jnp.float32
    coded = {name: (f"b, {frames}, {width or config.latent_dim}", dtype)}
    if config.normalize:
        coded["levels"] = ("b, 1", jnp.float32)
    about = {
        "sample_rate": config.sample_rate,
        "channels": config.channels,
        "frame_rate": config.frame_rate,
        "hop": config.hop,
        "codebooks": width,
        "codebook_size": config.codebook_size if config.has_codes else 0,
        "segment_length": config.segment_length,
        "segment_stride": config.segment_stride if config.segment_length else 0,
    }
    both = (Signature("encode", encode, audio), Signature("decode", decode, symbolic(**coded)))
    return Model("codec", codec.variables, both, fingerprint, about)


def of_joint(joint: FrozenJoint, fingerprint: str) -> Model:
    """`embed_audio`: one window of audio [b, T, C] -> unit vectors [b, D]; in a model that reads
    text also `embed_text`: ids int32 and mask bool [b, L] of the vocabulary -> the same."""
    config, model = joint.config, joint.model

    def embed_audio(params: Params, inputs: Arrays) -> Arrays:
        embedding: Any = model.apply(params, inputs["audio"], method="embed_audio")
        return {"embedding": embedding}

    def embed_text(params: Params, inputs: Arrays) -> Arrays:
        embedding: Any = model.apply(params, inputs["ids"], inputs["mask"], method="embed_text")
        return {"embedding": embedding}

    audio = symbolic(audio=(f"b, {config.samples}, {config.channels}", jnp.float32))
    shape = f"b, {config.text_length}"
    text = symbolic(ids=(shape, jnp.int32), mask=(shape, jnp.bool_))
    signatures = [Signature("embed_audio", embed_audio, audio)]
    if config.text is not None:
        signatures.append(Signature("embed_text", embed_text, text))
    about = {
        "sample_rate": config.sample_rate,
        "channels": config.channels,
        "window_seconds": config.seconds,
        "text_length": config.text_length if config.text is not None else 0,
        "embed_dim": config.embed_dim,
    }
    return Model("joint", joint.variables, tuple(signatures), fingerprint, about)


def of_stage(
    stage: FrozenStage,
    fingerprint: str,
    seconds: float,
    sampling: SamplingConfig,
    fields: dict[str, Any],
) -> Model:
    """`generate`: seed int32 [b], temperature and guidance float32 [], and the model's conditions
    (attributes int32 [b, A], 0 unknown; vectors float32 [b, c, W] and mask bool [b, c]; the same
    of each sequence of vectors before the codes, front_<i> and front_mask_<i>; prefix_<i> int32 [b,
    N, K]) -> codes int32 [b, frames, K].

    Args:
      sampling: top_k and top_p; temperature and guidance are inputs.
      fields: names and values of the attributes.
    """
    lm, frames = stage.lm, stage.stage.frames(seconds)
    if not isinstance(lm, FrozenLM):
        raise UserError("this model is masked, expected one that goes on step by step")
    config = lm.config
    shapes: dict[str, tuple[str, Any]] = {"seed": ("b", jnp.int32)}
    if config.attribute_sizes:
        shapes["attributes"] = (f"b, {len(config.attribute_sizes)}", jnp.int32)
    if config.condition_width:
        shapes["vectors"] = (f"b, c, {config.condition_width}", jnp.float32)
        shapes["mask"] = ("b, c", jnp.bool_)
    for i, ((name, rate), width) in enumerate(zip(stage.stage.front, config.front)):
        if name == TEXT:
            raise UserError("this model has a text of any length before its codes: not exported")
        rows = max(1, round(seconds * rate))
        shapes[f"front_{i}"] = (f"b, {rows}, {width}", jnp.float32)
        shapes[f"front_mask_{i}"] = (f"b, {rows}", jnp.bool_)
    for i, part in enumerate(stage.stage.prefix):
        rows = 1 if part.stream == JOINT else part.rows(seconds)
        shapes[f"prefix_{i}"] = (f"b, {rows}, {part.levels}", jnp.int32)
    guided = len(shapes) > 1
    shapes["temperature"] = ("", jnp.float32)
    if guided:
        shapes["guidance"] = ("", jnp.float32)

    def generate(params: Params, inputs: Arrays) -> Arrays:
        numbers: Any = {n: inputs[n] for n in ("temperature", "guidance") if n in inputs}
        condition = Condition(
            attributes=inputs.get("attributes"),
            vectors=inputs.get("vectors"),
            mask=inputs.get("mask"),
            front=tuple(inputs[f"front_{i}"] for i in range(len(config.front))),
            front_mask=tuple(inputs[f"front_mask_{i}"] for i in range(len(config.front))),
            prefix=tuple(inputs[name] for name in shapes if name.startswith("prefix_")),
        )
        codes = dataclasses.replace(lm, weights=params).generate(
            frames=frames,
            seeds=inputs["seed"],
            condition=condition,
            sampling=dataclasses.replace(sampling, **numbers),
        )
        return {"codes": codes}

    about = {
        "frames": frames,
        "codebooks": config.num_codebooks,
        "codebook_sizes": list(config.sizes),
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "attributes": fields if config.attribute_sizes else {},
    }
    only = Signature("generate", generate, symbolic(**shapes))
    return Model("lm", lm.weights, (only,), fingerprint, about)


def _codec_lengths(config: CodecConfig, seconds: float) -> tuple[str, str]:
    """Samples of the audio and frames of its codes, as dimensions."""
    if config.segment_length:
        return str(config.segment_length), str(-(-config.segment_length // config.hop))
    # A recurrence and mirrored padding need to know the length when they are traced.
    if config.lstm_layers or config.pad_mode == "reflect":
        frames = max(1, round(seconds * config.frame_rate))
        return str(frames * config.hop), str(frames)
    return f"{config.hop}*f", "f"
