"""The functions of trained models that are exported, with their shapes.

b is any batch size, f any number of frames. A codec with an LSTM or mirrored padding must know the
length when it is traced, and one that is defined on segments has theirs: their signatures state one
length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mgen.codec.config import CodecConfig
from mgen.codec.sample import FrozenCodec
from mgen.export.signature import Arrays, Model, Signature, symbolic
from mgen.joint.sample import FrozenJoint
from mgen.lm.filters import SamplingConfig
from mgen.lm.stages import Directions, FrozenStage, Timeline, run
from mgen.lm.streams import ATTRIBUTES, CHROMA, EXCERPT, JOINT, JOINT_VECTORS, STYLE, TEXT
from mgen.typing import Params

Shapes = dict[str, tuple[str, Any]]  # of `symbolic`
CODES = {"acoustic": "codes"}  # as `decode` calls them


def of_codec(codec: FrozenCodec, fingerprint: str, seconds: float) -> list[Signature]:
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

    def bound(params: dict[str, Params]) -> FrozenCodec:
        collections = dict(params["codec"])
        return FrozenCodec(whole, collections.pop("params"), collections)

    def encode(params: dict[str, Params], inputs: Arrays) -> Arrays:
        model = bound(params)
        if not config.has_codes:
            return {name: model.encode_latents(inputs["audio"])}
        codes, levels = model.encode_with_levels(inputs["audio"])
        return {name: codes, **({"levels": levels} if config.normalize else {})}

    def decode(params: dict[str, Params], inputs: Arrays) -> Arrays:
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
    model = (Model("codec", codec.variables, fingerprint, about),)
    return [
        Signature("encode", model, encode, audio),
        Signature("decode", model, decode, symbolic(**coded)),
    ]


def joint_model(joint: FrozenJoint, fingerprint: str) -> Model:
    """The weights of a joint embedding."""
    config = joint.config
    about = {
        "sample_rate": config.sample_rate,
        "channels": config.channels,
        "window_seconds": config.seconds,
        "text_length": config.text_length if config.text is not None else 0,
        "embed_dim": config.embed_dim,
    }
    return Model("joint", joint.variables, fingerprint, about)


def of_joint(joint: FrozenJoint, model: Model) -> list[Signature]:
    """`embed_audio`: one window of audio [b, T, C] -> unit vectors [b, D]; in a model that reads
    text also `embed_text`: ids int32 and mask bool [b, L] of the vocabulary -> the same.

    Args:
      model: of `joint_model`.
    """
    config = joint.config

    def embed_audio(params: dict[str, Params], inputs: Arrays) -> Arrays:
        variables, audio = params["joint"], inputs["audio"]
        embedding: Any = joint.model.apply(variables, audio, method="embed_audio")
        return {"embedding": embedding}

    def embed_text(params: dict[str, Params], inputs: Arrays) -> Arrays:
        return {"embedding": _embed_text(joint, params, inputs)}

    audio = symbolic(audio=(f"b, {config.samples}, {config.channels}", jnp.float32))
    signatures = [Signature("embed_audio", (model,), embed_audio, audio)]
    if config.text is not None:
        text = symbolic(**_text(joint))
        signatures.append(Signature("embed_text", (model,), embed_text, text))
    return signatures


def _text(joint: FrozenJoint) -> Shapes:
    shape = f"b, {joint.config.text_length}"
    return {"ids": (shape, jnp.int32), "mask": (shape, jnp.bool_)}


def _embed_text(joint: FrozenJoint, params: dict[str, Params], inputs: Arrays) -> Any:
    return joint.model.apply(params["joint"], inputs["ids"], inputs["mask"], method="embed_text")


def of_chain(
    stages: Sequence[FrozenStage],
    fingerprints: Sequence[str],
    seconds: float,
    sampling: Sequence[SamplingConfig],
    fields: dict[str, Any],
    joint: tuple[FrozenJoint, Model] | None = None,
) -> Signature:
    """`generate`: what a chain of language models writes, from text to the codec's tokens, in the
    windows and with the seeds of `mgen.lm.stages`.

    seed int32 [b], temperature float32 [stages], guidance float32 [], and what no stage before
    writes of the streams that they read: of a joint embedding ids and mask of a text (as
    `embed_text` has them) or, without the embedding, joint_embedding float32 [b, 1, D]; text
    float32 [b, c, W] and text_mask bool [b, c] of a T5 release (c is free where cross-attention
    reads it); attributes int32 [b, A], 0 unknown; other vectors float32 [b, N, W] with a mask;
    tokens int32 [b, N, K], the codebook's size for unknown. -> every stream that is written, int32
    [b, F, K], the codec's as "codes".

    Args:
      fingerprints, sampling: one a stage; of sampling top_k and top_p count.
      fields: names and values of the attributes.
      joint: with the model that `embed_text` reads too.
    """
    streams = chain_inputs(stages, seconds)
    text = joint if JOINT_VECTORS in streams else None
    shapes = {"seed": ("b", jnp.int32), **streams}
    if text:
        del shapes[JOINT_VECTORS]
        shapes |= _text(text[0])
    sampled = {"temperature": (str(len(stages)), jnp.float32)}
    if streams:
        sampled["guidance"] = ("", jnp.float32)
    models = [
        Model(f"lm_{i}", _weights(stage), fingerprint, _about(stage, seconds, own, fields))
        for i, (stage, fingerprint, own) in enumerate(zip(stages, fingerprints, sampling))
    ]

    def generate(params: dict[str, Params], inputs: dict[str, Any]) -> Arrays:
        given = {name: inputs[name] for name in streams if name in inputs}
        if text:
            given[JOINT_VECTORS] = _embed_text(text[0], params, inputs)[:, None]
        told = Directions(attributes=given.pop(ATTRIBUTES, None))
        timelines = []
        for i, (stage, own) in enumerate(zip(stages, sampling)):
            numbers = {name: inputs[name] for name in sampled}
            numbers["temperature"] = numbers["temperature"][i]
            stage = dataclasses.replace(stage, **params[f"lm_{i}"])
            own = dataclasses.replace(own, **numbers)
            timelines.append(Timeline(stage, seconds, inputs["seed"], told, own))
        *_, made = run(timelines, given)
        written = {part.stream for stage in stages for part in stage.stage.target}
        return {CODES.get(name, name): jnp.asarray(made[name]) for name in written}

    read = (*models, text[1]) if text else tuple(models)
    return Signature("generate", read, generate, symbolic(**shapes, **sampled))


def chain_inputs(stages: Sequence[FrozenStage], seconds: float) -> Shapes:
    """The streams that stages read and none before them writes."""
    written: set[str] = set()
    found: Shapes = {}
    for stage in stages:
        for name in sorted(stage.reads - written):
            found |= _stream(stage, JOINT_VECTORS if name == JOINT else name, seconds)
        written |= {part.stream for part in stage.stage.target}
    return found


def _stream(frozen: FrozenStage, name: str, seconds: float) -> Shapes:
    """The inputs of one stream; all rows that a clip of `seconds` has."""
    stage, config = frozen.stage, frozen.lm.config
    if name == ATTRIBUTES:
        return {name: (f"b, {len(config.attribute_sizes)}", jnp.int32)}
    vectors: dict[str, tuple[Any, int]] = {}
    if stage.vectors:
        vectors[stage.vectors] = ("c", config.condition_width)
    for (front, rate), width in zip(stage.front, config.front):
        # What stands before the codes shapes the cache: its length cannot be free.
        count = frozen.text_length if front == TEXT else max(1, round(seconds * rate))
        vectors[front] = (count, width)
    if name == JOINT_VECTORS:
        width = frozen.codebook.shape[-1] if frozen.codebook is not None else vectors[name][1]
        return {name: (f"b, 1, {width}", jnp.float32)}
    if name in vectors:
        rows, width = vectors[name]
        mask = {f"{name}_mask": (f"b, {rows}", jnp.bool_)}
        return {name: (f"b, {rows}, {width}", jnp.float32), **mask}
    (part,) = (p for p in (*stage.prefix, *stage.aligned) if p.stream == name)
    rows = part.rows(EXCERPT[1] if name == STYLE else seconds)
    if name == CHROMA:
        mask = {f"{name}_mask": (f"b, {rows}", jnp.bool_)}
        return {name: (f"b, {rows}, {part.size}", jnp.float32), **mask}
    return {name: (f"b, {rows}, {part.last}", jnp.int32)}


def _weights(stage: FrozenStage) -> dict[str, Any]:
    """The fields of a stage that hold arrays."""
    return {"lm": stage.lm} | ({} if stage.codebook is None else {"codebook": stage.codebook})


def _about(
    frozen: FrozenStage, seconds: float, sampling: SamplingConfig, fields: dict[str, Any]
) -> dict[str, Any]:
    config = frozen.lm.config
    return {
        "frames": frozen.stage.frames(seconds),
        "codebooks": config.num_codebooks,
        "codebook_sizes": list(config.sizes),
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "attributes": fields if config.attribute_sizes else {},
    }


def _codec_lengths(config: CodecConfig, seconds: float) -> tuple[str, str]:
    """Samples of the audio and frames of its codes, as dimensions."""
    if config.segment_length:
        return str(config.segment_length), str(-(-config.segment_length // config.hop))
    # A recurrence and mirrored padding need to know the length when they are traced.
    if config.lstm_layers or config.pad_mode == "reflect":
        frames = max(1, round(seconds * config.frame_rate))
        return str(frames * config.hop), str(frames)
    return f"{config.hop}*f", "f"
