"""Oobleck, the VAE of Stable Audio: 44.1 kHz stereo, hop 2048 (21.5 Hz), 64 latent channels;
156,112,514 parameters.

  mgen train --config=codec/oobleck_44khz --workdir=out/oobleck --config.data.dataset=PATH

Hardware: 8 accelerators of 40 GB and up (batch 32 of 1.5 s). A run of two steps on a CPU: `:smoke`.
Source: Evans et al. 2024 (arXiv:2404.10301, 2407.14358) and the released settings: AdamW 1.5e-4
(0.8, 0.99), discriminator 3e-4, crops of 65,536 samples; their slow inverse learning rate decay is
left out. `mgen.interop.oobleck` reads the released weights.
"""

import ml_collections

from mgen.configs import codec_base as base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.experiment(
        dict(
            sample_rate=44100,
            channels=2,
            filters=128,
            decoder_filters=128,
            strides=(2, 4, 4, 8, 8),
            multipliers=(1, 2, 4, 8, 16),
            encoder_kernel_out=3,
            residual_kernel=7,
            dilations=(1, 3, 9),
            compress=1,
            activation="snake_beta",
            output_padding=False,
            decoder_out_bias=False,
            bottleneck="vae",
            latent_dim=64,
        ),
        loss_recipe="oobleck",
        discriminator_recipe="oobleck",
        optimizer=dict(
            name="adamw", learning_rate=1.5e-4, b1=0.8, b2=0.99, weight_decay=1e-3, ema=0.999
        ),
        optimizer_d=dict(learning_rate=3e-4),
        seconds=65536 / 44100,
        batch_size=32,
        steps=1_000_000,
    )
    return base.finish(config, arg)
