"""SoundStream at 24 kHz as MusicLM uses it: 50 Hz, 12 codebooks of 1024 (6 kbps), causal,
streamable.

  mgen train --config=codec/soundstream_24khz --workdir=out/soundstream --config.data.dataset=PATH

Hardware: 8 accelerators of 16 GB and up (batch 64 of 1 s). A run of two steps on a CPU: `:smoke`.
Source: Zeghidour et al. 2021 (arXiv:2107.03312): 32 channels, residual units of kernel 7 dilated by
1, 3, 9, ELU, loss weights; Agostinelli et al. 2023 (arXiv:2301.11325): stride 480, 12 x 1024. Not
published there, chosen here: the strides that make 480, the latent width, the optimiser and the
batch (EnCodec's).
"""

import ml_collections

from mgen.configs import codec_base as base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.experiment(
        dict(
            sample_rate=24000,
            filters=32,
            strides=(3, 4, 5, 8),
            encoder_kernel_out=3,
            residual_kernel=7,
            dilations=(1, 3, 9),
            compress=1,
            causal=True,
            pad_mode="constant",
            bottleneck="rvq",
            latent_dim=128,
            num_codebooks=12,
            codebook_size=1024,
            quantizer_dropout=1.0,
        ),
        loss_recipe="soundstream",
        discriminator_recipe="soundstream",
        optimizer=dict(name="adam", learning_rate=3e-4, b1=0.5, b2=0.9),
        seconds=1.0,
        batch_size=64,
        steps=600_000,
    )
    return base.finish(config, arg)
