"""What the configs of token language models share: streams, the shape of an experiment, its smoke
size."""

from typing import Any

import ml_collections

from mgen.configs import variants
from mgen.inputs import attributes, pipeline
from mgen.train import loop, optim

# The pitch classes of MusicGen's melody model.
CHROMA: dict[str, Any] = dict(sample_rate=32000, frame_rate=7.8125, width=12)
# The tokens of MusicLM (Agostinelli et al. 2023, section 4): SoundStream, w2v-BERT, MuLan, and of
# melodies.
MUSICLM: dict[str, dict[str, Any]] = dict(
    acoustic=dict(codebooks=12, codebook_size=1024, frame_rate=50.0, sample_rate=24000),
    semantic=dict(codebooks=1, codebook_size=1024, frame_rate=25.0),
    joint=dict(codebooks=12, codebook_size=1024, frame_rate=1.0, embed_dim=128),
    melody=dict(codebooks=24, codebook_size=512, frame_rate=1 / 3),
)
# Those of `make demo-tokens`: codec/tiny_16khz, semantic/tiny_muq, joint/tiny_mulan; and of
# joint/tiny_melody, and residual ones of semantic/tiny_muq.
TINY: dict[str, dict[str, Any]] = dict(
    acoustic=dict(codebooks=4, codebook_size=512, frame_rate=50.0, sample_rate=16000),
    semantic=dict(codebooks=1, codebook_size=256, frame_rate=25.0),
    # Few and coarse: finer ones name the piece, which a model of some hundred pieces learns by
    # heart and no text of another piece hits.
    joint=dict(codebooks=2, codebook_size=32, frame_rate=1.0, embed_dim=64),
    melody=dict(codebooks=12, codebook_size=256, frame_rate=1 / 3),
    style=dict(codebooks=4, codebook_size=64, frame_rate=5.0),
    chroma=CHROMA,
)
# A decoder of T5 1.1's shape.
T5: dict[str, Any] = dict(
    activation="gelu_tanh", gated=True, norm="rms", norm_epsilon=1e-6, positions="relative"
)
TINY_MODEL: dict[str, Any] = dict(
    dim=192, heads=3, layers=4, ff=768, activation="silu", positions="rope", scan=False
)
# Of a model that is told classes. One that is told a text is told nothing twice, so that a text
# alone is what it knows from training.
CLASSES: dict[str, Any] = dict(attribute_sizes=attributes.sizes())


def experiment(
    arg: str,
    *,
    streams: dict[str, dict[str, Any]],
    stage: dict[str, Any],
    model: dict[str, Any],
    data: dict[str, Any],
    optimizer: dict[str, Any],
    train: dict[str, Any],
    loss: dict[str, Any] | None = None,
    masking: dict[str, Any] | None = None,
) -> ml_collections.ConfigDict:
    """A locked experiment; `arg` is a variant of `variants`.

    Args:
      streams: what token datasets have to offer; those that the stage does not read are left out.
      stage: target, prefix, aligned, vectors, front, see `mgen.lm.streams`.
      model, loss: see `mgen.lm.task.Task`. data, optimizer, train: fields of their defaults.
    """
    stage = dict(prefix=(), aligned=(), vectors="", front=(), joint_codebook="") | stage
    parts = (*stage["target"], *stage["prefix"], *stage["aligned"])
    rated = tuple(name for name in stage["front"] if name in streams)
    names = tuple(dict.fromkeys((*(part.partition("[")[0] for part in parts), *rated)))
    read = ["joint_embedding" if name == "joint" else name for name in names]
    read += [name for name in (stage["vectors"], *stage["front"]) if name]
    config = ml_collections.ConfigDict(dict(family="lm", seed=0, stage=stage))
    config.streams = ml_collections.ConfigDict({name: streams[name] for name in names})
    config.model = ml_collections.ConfigDict(model)
    # So that a text without a tune is known too.
    tunes = {name: 0.5 for name in ("melody", "chroma") if name in names}
    dropout = dict(condition_dropout=0.1, attribute_dropout=0.1, source_dropout=tunes)
    config.loss = ml_collections.ConfigDict(
        dict(z_loss=0.0, label_smoothing=0.0, chunk=0) | dropout | (loss or {})
    )
    if masking is not None:
        masking = dict(hide="level", span=1, prompt=True, finer=False, steps=(16, 1)) | masking
        masking = dict(noise=1.0, causal_bias=0.0, cooling=False) | masking
        # None, that a number on the command line may replace.
        masking = dict(last_guidance=ml_collections.config_dict.placeholder(float)) | masking
        config.masking = ml_collections.ConfigDict(masking)
    read = tuple(dict.fromkeys(read))
    config.data = pipeline.default_config(**(dict(view="streams", streams=read) | data))
    config.optim = optim.default_config(**optimizer)
    config.train = loop.default_config(**train)
    if variants.check(arg) == "smoke":
        _shrink(config)
    return variants.finish(config, arg)


def published(arg: str, **parts: Any) -> ml_collections.ConfigDict:
    """An experiment of published size: bfloat16 but for parameters and losses, cosine schedule,
    evaluations and checkpoints far apart."""
    parts["model"] = dict(dropout=0.1, remat="dots", dtype="bfloat16") | parts["model"]
    parts["optimizer"] = dict(name="adamw", schedule="cosine", clip=1.0) | parts["optimizer"]
    parts["train"] = dict(eval_every=5000, save_every=5000, log_every=100) | parts["train"]
    return experiment(arg, **parts)


def tiny(arg: str, **parts: Any) -> ml_collections.ConfigDict:
    """An experiment on the tokens of rendered scores that two CPU cores train in minutes."""
    parts["model"] = TINY_MODEL | parts["model"]
    parts["loss"] = dict(z_loss=1e-4) | parts.get("loss", {})
    parts["optimizer"] = dict(
        learning_rate=2e-3,
        schedule="cosine",
        warmup=100,
        weight_decay=0.05,
        end_factor=0.05,
        clip=1.0,
    ) | parts.get("optimizer", {})
    parts["train"] = (
        dict(steps=700, eval_every=350, save_every=175, log_every=50, eval_batches=16)
        | parts["train"]
    )
    return experiment(arg, **parts)


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.model.update(dim=32, heads=2, layers=2, ff=64, scan=False, remat="none")
    if "dtype" in config.model:
        config.model.dtype = "float32"  # for the CPU
    if "kv_heads" in config.model:
        config.model.kv_heads = 1
    if "depth_layers" in config.model:
        config.model.update(depth_layers=1, depth_dim=16, depth_heads=2, depth_ff=32)
    config.data.update(seconds=1.0, batch_size=2)
    config.optim.update(warmup=min(config.optim.warmup, 2), accumulate=1)
    config.train.update(steps=4, log_every=2, eval_every=4, eval_batches=2, save_every=2)
