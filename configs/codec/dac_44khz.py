"""Descript Audio Codec at 44.1 kHz: 86.1 Hz, 9 codebooks of 1024 in 8 dimensions, snake, hop 512.

  mgen train --config=codec/dac_44khz --workdir=out/dac_44khz --config.data.dataset=PATH

Hardware: 8 accelerators of 40 GB (batch 72 of 0.38 s). A run of two steps on a CPU: `:smoke`.
Source: Kumar et al. 2023 (arXiv:2306.06546) and its released settings: AdamW 1e-4 (0.8, 0.99), 400k
updates. 76,620,777 parameters once weight norm is folded, as released; `mgen.interop.dac` reads
those weights.
"""

import ml_collections

from mgen.configs import codec_base as base


def get_config(
    arg: str = "",
    sample_rate: int = 44100,
    strides: tuple[int, ...] = (2, 4, 8, 8),
    num_codebooks: int = 9,
) -> ml_collections.ConfigDict:
    """dac_16khz and dac_24khz call this with their numbers."""
    config = base.experiment(
        dict(
            sample_rate=sample_rate,
            filters=64,
            decoder_filters=96,
            strides=strides,
            encoder_kernel_out=3,
            residual_kernel=7,
            dilations=(1, 3, 9),
            compress=1,
            activation="snake",
            final_activation="tanh",
            output_padding=False,
            bottleneck="factorized_rvq",
            latent_dim=1024,
            num_codebooks=num_codebooks,
            codebook_size=1024,
            codebook_dim=8,
            quantizer_dropout=0.5,
        ),
        loss_recipe="dac",
        discriminator_recipe="dac",
        optimizer=dict(
            name="adamw",
            learning_rate=1e-4,
            b1=0.8,
            b2=0.99,
            weight_decay=0.01,
            schedule="exponential",
            gamma=0.999996,
            clip=1000.0,
        ),
        optimizer_d=dict(clip=10.0),
        seconds=0.38,
        batch_size=72,
        steps=400_000,
    )
    return base.finish(config, arg)
