"""What the configs of joint embeddings share: the shape of an experiment and its smoke size."""

from typing import Any

import ml_collections

from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.joint.config import FROM_DATA, JointConfig
from mgen.train import loop, optim

# The text towers of BERT-base (Devlin et al. 2019) and RoBERTa-base (Liu et al. 2019). A T5 encoder
# is one more setting of `mgen.joint.text.TextConfig`.
BERT_BASE: dict[str, Any] = dict(vocab_size=30522, dropout=0.1)
ROBERTA_BASE: dict[str, Any] = dict(
    vocab_size=50265,
    norm_epsilon=1e-5,
    position_offset=2,
    token_types=1,
    dropout=0.1,
)
# CLAP's front end (LAION-AI/CLAP, 48 kHz): 100 frames/s, 64 Slaney bins of 50 to 14000 Hz in dB.
# Mean and deviation stand in for the batch norm that the released tower begins with; weights
# imported from there carry its statistics themselves and want mean 0, std 1.
CLAP_MEL: dict[str, Any] = dict(
    n_fft=1024,
    win_length=1024,
    hop=480,
    n_mels=64,
    fmin=50.0,
    fmax=14000.0,
    htk=False,
    unit_area=True,
    scale="db",
    floor=1e-10,
    mean=-30.0,
    std=20.0,
)

# Towers that two CPU cores train: 50 frames/s of 64 bins, patches of 0.2 s by 16 bins.
TINY_MEL: dict[str, Any] = dict(
    n_fft=1024, win_length=800, hop=320, n_mels=64, fmin=40.0, mean=-4.0, std=4.0
)
TINY_VIT: dict[str, Any] = dict(
    patch=(10, 16),
    stride=(10, 16),
    class_tokens=0,
    pooling="mean",
    dim=128,
    layers=4,
    heads=4,
    ff=384,
    norm_epsilon=1e-6,
    # Random numbers of dropout would take a third of a step on a CPU; patchout makes steps shorter.
    patchout=0.25,
    scan=False,
)
TINY_HTSAT: dict[str, Any] = dict(
    size=128, window=8, dim=32, depths=(2, 2, 2), heads=(2, 4, 8), ff=3.0
)
TINY_TEXT: dict[str, Any] = dict(
    vocab_size=512,
    dim=128,
    layers=2,
    heads=4,
    ff=256,
    norm_position="pre",
    norm_epsilon=1e-6,
    token_types=0,
    max_length=64,
    pooling="mean",
    dropout=0.1,
    scan=False,
)
# Pairs of renditions: 4 s as MusicLM's melodies, played by any instruments at any level.
MELODY_PAIRS: dict[str, Any] = dict(
    view="audio_pair",
    sample_rate=16000,
    seconds=4.0,
    stem_dropout=0.3,
    # A melody alone is quieter than its mix, and both than most recordings.
    gain_db=(-6.0, 12.0),
    render=dict(instruments="free"),
)


def experiment(
    arg: str,
    *,
    model: dict[str, Any],
    data: dict[str, Any],
    loss: dict[str, Any],
    optimizer: dict[str, Any],
    train: dict[str, Any],
) -> ml_collections.ConfigDict:
    """A locked experiment. `model` holds fields of `JointConfig`, `data` those of the pipeline;
    `arg` is a variant of `variants`.
    """
    data = dict(view="audio_text", source="mix") | data
    pipeline_fields = pipeline.default_config(**data)
    read = {name: pipeline_fields[name] for name in FROM_DATA}
    config = ml_collections.ConfigDict(dict(family="joint", seed=0))
    config.model = ml_collections.ConfigDict(
        JointConfig.from_fields(model, **read).model_fields(), convert_dict=True
    )
    config.loss = ml_collections.ConfigDict(
        dict(
            kind="contrastive",
            mask_duplicates=False,
            chunk=0,
            margin=0.2,  # FaceNet's
            caption_weight=0.0,
            intra_weight=0.5,
            target_decay=0.995,
        )
        | loss
    )
    config.data = pipeline_fields
    config.optim = optim.default_config(**optimizer)
    config.train = loop.default_config(**train)
    if variants.check(arg) == "smoke":
        _shrink(config)
    return variants.finish(config, arg)


def published(arg: str, **parts: dict[str, Any]) -> ml_collections.ConfigDict:
    """An experiment of published size: cosine schedule, evaluations and checkpoints far apart."""
    parts["optimizer"] = dict(schedule="cosine", clip=1.0) | parts["optimizer"]
    parts["train"] = dict(eval_every=5000, save_every=5000, log_every=100) | parts["train"]
    return experiment(arg, **parts)


def tiny(arg: str, **parts: dict[str, Any]) -> ml_collections.ConfigDict:
    """An experiment on crops of rendered scores that two CPU cores train in minutes."""
    parts["data"] = (
        dict(
            sample_rate=16000,
            seconds=4.0,
            batch_size=32,
            text_length=48,
            # Fewer instruments at a time, of any kind: what is heard can be told from the caption.
            stem_dropout=0.3,
            render=dict(instruments="free"),
            # Rendering is a third of the work; two cores share it.
            workers=1,
        )
        | parts["data"]
    )
    parts["loss"] = dict(mask_duplicates=True) | parts["loss"]
    parts["optimizer"] = (
        dict(
            learning_rate=1e-3,
            schedule="cosine",
            warmup=100,
            weight_decay=0.05,
            end_factor=0.05,
            clip=1.0,
            b2=0.98,
        )
        | parts["optimizer"]
    )
    parts["train"] = (
        dict(steps=1000, eval_every=500, eval_batches=8, save_every=250, log_every=50)
        | parts["train"]
    )
    return experiment(arg, **parts)


def _shrink(config: ml_collections.ConfigDict) -> None:
    model = config.model
    small = dict(dim=16, layers=1, heads=2, ff=32, scan=False, remat="none")
    model.embed_dim = 8
    model.decoder_layers = min(model.decoder_layers, 1)
    model.predictor_hidden = min(model.predictor_hidden, 16)
    if model.text is not None:
        model.text.update(small)
    if model.audio_kind == "vit":
        model.audio.update(small)
    elif model.audio_kind == "resnet":
        model.audio.update(blocks=(1, 1), width=8, groups=4)
    else:
        model.audio.update(size=2 * model.mel.n_mels, dim=8, depths=(1, 1), heads=(2, 2))
    config.data.update(seconds=1.0, batch_size=4, text_length=16, workers=0)
    config.optim.update(warmup=min(config.optim.warmup, 2), accumulate=1)
    config.train.update(
        steps=4, log_every=2, eval_every=4, eval_batches=1, summary_every=0, save_every=2
    )
