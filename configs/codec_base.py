"""What the published codecs' configs share: the shape of an experiment and its smoke size."""

from typing import Any

import ml_collections

from mgen.codec import discriminators, loss
from mgen.codec.config import CodecConfig
from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.train import loop, optim

ADVERSARIAL = ("stft_windows", "periods", "band_windows")


def experiment(
    model: dict[str, Any],
    *,
    loss_recipe: str,
    discriminator_recipe: str,
    optimizer: dict[str, Any],
    optimizer_d: dict[str, Any] | None = None,
    seconds: float,
    batch_size: int,
    steps: int,
) -> ml_collections.ConfigDict:
    """A codec experiment at full size. `optimizer_d` holds what the discriminator's optimiser has
    otherwise.
    """
    codec = CodecConfig(**model)
    config = ml_collections.ConfigDict()
    config.family = "codec"
    config.seed = 0
    config.model = ml_collections.ConfigDict(codec.to_dict())
    config.loss = loss.recipe(loss_recipe)
    config.discriminator = discriminators.recipe(discriminator_recipe)
    config.optim = optim.default_config(**optimizer)
    config.optim_d = optim.default_config(**{**optimizer, "ema": 0.0, **(optimizer_d or {})})
    config.data = pipeline.default_config(
        sample_rate=codec.sample_rate,
        channels=codec.channels,
        seconds=seconds,
        batch_size=batch_size,
    )
    config.train = loop.default_config(
        steps=steps, eval_every=5000, summary_every=25000, save_every=5000
    )
    return config


def finish(config: ml_collections.ConfigDict, arg: str) -> ml_collections.ConfigDict:
    """Shrinks everything for `arg` "smoke"; see `variants` for the rest."""
    if arg == "smoke":
        _shrink(config)
    return variants.finish(config, arg)


def _shrink(config: ml_collections.ConfigDict) -> None:
    model = config.model
    model.update(
        filters=2,
        decoder_filters=2,
        strides=model.strides[-2:],
        multipliers=model.multipliers[:2],
        dilations=model.dilations[:1],
        latent_dim=8,
        num_codebooks=2,
        codebook_size=8,
        codebook_dim=4,
        kmeans_iterations=2,
        dropout_choices=(),
    )
    for name in ADVERSARIAL:
        windows = config.discriminator[name]
        config.discriminator[name] = windows[:1] if name == "periods" else (256,) * bool(windows)
    config.discriminator.update(
        wave_scales=min(config.discriminator.wave_scales, 1),
        stft_filters=2,
        period_filters=(2, 2),
        band_filters=2,
        wave_filters=4,
        wave_max_filters=8,
    )
    config.loss.stft.windows = (256, 128)
    config.loss.mel.windows = (256, 128)
    config.loss.mel.n_mels = (8,)
    config.data.update(seconds=0.1, batch_size=2, workers=0)
    config.train.update(
        steps=2, log_every=1, eval_every=2, eval_batches=1, summary_every=0, save_every=2
    )
