"""A codec that trains in minutes on a laptop: 16 kHz mono, 50 frames a second, 4 codebooks of 512.

  mgen train --config=codec/tiny_16khz --workdir=out/codec --config.data.dataset=PATH

Hardware: 2 CPU cores, about 4 minutes (11 steps a second). On 200 pieces of corpus_scores/band,
SI-SDR and DAC's mel distance on held-out mixes after 1000, 2000, 3000 steps: 5.2 dB and 2.42, 5.6
and 2.29, 5.6 and 2.21.

Causal with zero padding, so it streams. No discriminator: the smallest STFT discriminator makes a
step on a CPU ten times dearer. `:smoke` takes seconds.
"""

import ml_collections

from mgen.codec import discriminators, loss
from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.train import loop, optim


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    smoke = variants.check(arg) == "smoke"
    config = ml_collections.ConfigDict()
    config.family = "codec"
    config.seed = 0
    config.model = dict(
        sample_rate=16000,
        channels=1,
        # Thin at 16 kHz, where convolutions cost most and learn least, and few stages: a shallow
        # stack fits waveforms in hundreds of steps, a deep one in tens of thousands.
        filters=4 if smoke else 8,
        multipliers=(8, 16, 32),
        strides=(16, 5, 4),
        dilations=(),
        kernel_in=7,
        encoder_kernel_out=3,
        decoder_kernel_out=7,
        activation="elu",
        norm="weight",
        init="level",
        causal=True,
        pad_mode="constant",
        bottleneck="rvq",
        latent_dim=32,
        num_codebooks=4,
        codebook_size=512,
        # Codebooks forget within 30 steps: the encoder moves fast.
        ema_decay=0.97,
    )
    config.loss = loss.default_config(
        # The waveform terms carry the phase and the bass, mel the rest of what is heard.
        time_l1=dict(weight=20.0),
        stft=dict(weight=1.0, windows=(1024, 256), log=0.0, convergence=1.0),
        mel=dict(
            weight=0.5, windows=(2048, 512, 128), n_mels=(64, 40, 16), linear_l1=0.0, log_l1=1.0
        ),
        commitment=dict(weight=3.0),
    )
    config.discriminator = discriminators.default_config()
    config.optim = optim.default_config(
        name="adam",
        learning_rate=1.5e-3,
        b1=0.8,
        b2=0.99,
        schedule="cosine",
        warmup=2 if smoke else 50,
        end_factor=0.05,
        clip=5.0,
    )
    config.optim_d = optim.default_config()
    config.data = pipeline.default_config(
        source="mix",
        sample_rate=config.model.sample_rate,
        channels=config.model.channels,
        seconds=0.5 if smoke else 1.0,
        batch_size=2 if smoke else 4,
    )
    config.train = loop.default_config(
        steps=4 if smoke else 2500,
        log_every=2 if smoke else 50,
        eval_every=4 if smoke else 1000,
        eval_batches=1 if smoke else 2,
        save_every=4 if smoke else 250,
    )
    return variants.finish(config, arg)
