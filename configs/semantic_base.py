"""What the semantic encoders that train on a laptop share: front end, masking, data, optimiser."""

from typing import Any

import ml_collections

from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.train import loop, optim

# From C2: a window twice as long for each octave further down.
CQT: dict[str, Any] = dict(cqt_bins=72, cqt_bins_per_octave=12, cqt_fmin=65.41, cqt_gain=10.0)
SMOKE_CQT: dict[str, Any] = CQT | dict(cqt_bins=12, cqt_fmin=440.0)


def mel(smoke: bool, hop: int) -> dict[str, Any]:
    """Windows of 128 ms tell semitones apart from 200 Hz; mean and deviation are those of the
    rendered scores."""
    return dict(n_fft=2048, hop=hop, n_mels=16 if smoke else 128, mean=-5.4, std=3.3)


def tiny(
    arg: str,
    *,
    model: dict[str, Any],
    targets: dict[str, Any],
    loss: dict[str, Any],
    data: dict[str, Any],
    fill: str = "noise",
    steps: int = 1500,
    **more: Any,
) -> ml_collections.ConfigDict:
    """A locked experiment on 4 s crops at 16 kHz; `more` are further parts of it."""
    smoke = variants.check(arg) == "smoke"
    masking = dict(probability=0.4, span=0.4, fill=fill, noise_mix=0.0, noise_snr=(-5.0, 5.0))
    config = ml_collections.ConfigDict(dict(family="semantic", seed=0, **more))
    config.update(model=dict(sample_rate=16000, **model), targets=targets, masking=masking)
    config.loss = ml_collections.ConfigDict(loss)
    config.data = pipeline.default_config(
        sample_rate=16000,
        seconds=1.0 if smoke else 4.0,
        batch_size=2 if smoke else 16,
        render=dict(instruments="free"),
        **data,
    )
    config.optim = optim.default_config(
        name="adamw",
        learning_rate=1.5e-3,
        b2=0.98,
        weight_decay=0.01,
        schedule="cosine",
        warmup=2 if smoke else 100,
        end_factor=0.05,
        clip=1.0,
    )
    config.train = loop.default_config(
        steps=4 if smoke else steps,
        eval_every=4 if smoke else steps,
        eval_batches=1 if smoke else 4,
        save_every=4 if smoke else 250,
        log_every=2 if smoke else 50,
    )
    return variants.finish(config, arg)
