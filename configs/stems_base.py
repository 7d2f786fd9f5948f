"""What the experiments over stems share: the tracks, the shape of an experiment, its smoke size."""

import math
from typing import Any

import ml_collections

from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.inputs.controls import CHORDS
from mgen.stems.model import NETWORKS
from mgen.train import loop, optim

# Slots of Slakh2100 and of corpus_scores/band.
NAMES = ("bass", "drums", "guitar", "piano")
# Samples of a crop of Slakh2100 (Mariani et al. 2024): 11.9 s.
CHUNK = 2**18
# Fields of networks that follow from the tracks.
DERIVED = ("stems", "channels", "categories", "mix")
# Of the separator and of the denoiser in bands.
TINY_BANDS: dict[str, Any] = dict(
    n_fft=2048, hop=512, bands=32, width=64, heads=4, layers=3, ff_multiplier=2
)
TINY_STEPS = 1500
# Noise levels of that denoiser: many at which little is heard of the stems, as where a mix is all
# that is known of them.
TINY_NOISE: dict[str, Any] = dict(noise_mean=-3.0, noise_std=1.5)


def experiment(
    arg: str,
    *,
    names: tuple[str, ...] = NAMES,
    sample_rate: int,
    samples: int,
    model: dict[str, Any],
    data: dict[str, Any],
    optimizer: dict[str, Any],
    train: dict[str, Any],
    channels: int = 1,
    codec: ml_collections.ConfigDict | None = None,
    diffusion: dict[str, Any] | None = None,
) -> ml_collections.ConfigDict:
    """A locked experiment on stems; `arg` is a variant of `variants`.

    Args:
      names: of the stems. samples: length of a crop.
      model: kind, and what its config has other than by default, see `mgen.stems.model.NETWORKS`.
      data, optimizer, train: fields of their defaults.
      codec: experiment of the codec of a Transformer over latents.
      diffusion: what is otherwise than MSDM has it.
    """
    kind = model["kind"]
    network = NETWORKS[kind][0](**{name: value for name, value in model.items() if name != "kind"})
    fields = {name: x for name, x in vars(network).items() if name not in DERIVED}
    config = ml_collections.ConfigDict(dict(family="stems", seed=0))
    config.stems = dict(names=names, sample_rate=sample_rate, channels=channels)
    config.model = dict(kind=kind, **fields)
    if kind == "separator":
        config.loss = dict(spectral=1.0, windows=(4096, 2048, 1024, 512, 256))
    else:
        config.diffusion = dict(
            sigma_data=0.2,
            # None on the command line is no bound.
            clip=ml_collections.FieldReference(1.0, field_type=float),
            noise_mean=-3.0,
            noise_std=1.0,
            given=0.0,
            one_level=False,
            beside_mix=0.0,
            count_missing=True,
        )
        config.diffusion.update(diffusion or {})
    if codec is not None:
        config.codec = codec
        config.latents = dict(
            hop=math.prod(codec.model.strides), codec="", scale="", dtype="float32"
        )
    config.data = pipeline.default_config(
        view="stems",
        stems=names,
        min_sounding=2,
        sample_rate=sample_rate,
        channels=channels,
        seconds=samples / sample_rate,
        **data,
    )
    config.optim = optim.default_config(**optimizer)
    config.train = loop.default_config(**train)
    if variants.check(arg) == "smoke":
        _shrink(config)
    return variants.finish(config, arg)


def slakh(arg: str, *, names: tuple[str, ...] = NAMES, **model: Any) -> ml_collections.ConfigDict:
    """An experiment on Slakh2100 with the data, the optimiser and the batch of MSDM (Mariani et al.
    2024)."""
    return experiment(
        arg,
        names=names,
        sample_rate=22050,
        samples=CHUNK,
        model=dict(dtype="bfloat16", remat=True) | model,
        data=dict(batch_size=8, workers=4),
        optimizer=dict(name="adam", learning_rate=1e-4, b1=0.9, b2=0.99),
        train=dict(steps=500_000, eval_every=5000, summary_every=25000, save_every=5000),
    )


def tiny(
    arg: str,
    *,
    names: tuple[str, ...] = NAMES,
    model: dict[str, Any],
    batch_size: int,
    learning_rate: float,
    steps: int,
    diffusion: dict[str, Any] | None = None,
) -> ml_collections.ConfigDict:
    """An experiment on crops of 2.6 s of rendered scores that two CPU cores train in minutes."""
    # Stems of corpus_scores/band have an RMS of 0.021.
    diffusion = dict(sigma_data=0.02, noise_mean=-4.0) | (diffusion or {})
    return experiment(
        arg,
        names=names,
        sample_rate=16000,
        samples=40960,
        model=model,
        data=dict(batch_size=batch_size),
        optimizer=dict(
            name="adam",
            learning_rate=learning_rate,
            schedule="cosine",
            warmup=100,
            end_factor=0.05,
            clip=1.0,
            ema=0.999,
        ),
        train=dict(steps=steps, eval_every=500, eval_batches=8, save_every=100),
        diffusion=diffusion,
    )


def latent(
    arg: str, *, codec: ml_collections.ConfigDict, model: dict[str, Any], **parts: Any
) -> ml_collections.ConfigDict:
    """An experiment on the latents of a codec, which have mean 0 and variance 1: a noise level for
    each track, the mix as a track beside half of the examples, chords, beats and melody."""
    own = codec.model
    diffusion = dict(
        objective="edm",
        sigma_data=1.0,
        clip=None,
        noise_mean=-0.4,
        noise_std=1.4,
        given=0.25,
        count_missing=False,
        beside_mix=0.5,
        condition_dropout=0.1,
        input_dropout=0.3,
    )
    controls = dict(chords=CHORDS, beats=True, melody=True)
    rate = own.sample_rate / math.prod(own.strides)
    return experiment(
        arg,
        sample_rate=own.sample_rate,
        channels=own.channels,
        model=dict(kind="dit", latent_dim=own.latent_dim) | controls | model,
        data=dict(control_rate=rate) | parts.pop("data"),
        codec=codec,
        diffusion=diffusion | parts.pop("diffusion", {}),
        **parts,
    )


def _shrink(config: ml_collections.ConfigDict) -> None:
    if config.model.kind in ("separator", "bands"):
        config.model.update(
            n_fft=256, hop=64, bands=8, width=16, heads=2, layers=1, ff_multiplier=1
        )
        if "loss" in config:
            config.loss.windows = (256, 128)
    elif config.model.kind == "dit":
        config.model.update(dim=16, heads=2, layers=2, ff=24, remat="none")
    else:
        config.model.update(
            width=16,
            patch=4,
            multipliers=(1, 1, 2),
            factors=(4, 2),
            blocks=(1, 1),
            attentions=(False, True),
            heads=2,
            head_dim=4,
            groups=4,
        )
    samples = 16 * config.latents.hop if "latents" in config else 4096
    config.data.update(seconds=samples / config.stems.sample_rate, batch_size=2, workers=0)
    config.optim.warmup = min(config.optim.warmup, 2)
    config.train.update(
        steps=4, log_every=2, eval_every=4, eval_batches=1, summary_every=0, save_every=2
    )
