"""EnCodec 24 kHz: causal, mono, 75 Hz, up to 32 codebooks of 1024 (1.5 to 24 kbps); 14,851,810
parameters.

  mgen train --config=codec/encodec_24khz --workdir=out/encodec_24khz --config.data.dataset=PATH

Hardware: 8 accelerators of 16 GB and up (batch 64 of 1 s). A run of two steps on a CPU: `:smoke`.
Source: Défossez et al. 2022 (arXiv:2210.13438): Adam 3e-4 (0.5, 0.9), 600k updates, a random
bandwidth of 1.5, 3, 6, 12, 24 kbps an example. `mgen.interop.encodec` reads the released weights.
"""

import ml_collections

from mgen.configs import codec_base as base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.experiment(
        dict(
            sample_rate=24000,
            align_input=False,
            filters=32,
            strides=(2, 4, 5, 8),
            conv_shortcut=True,
            lstm_layers=2,
            causal=True,
            pad_mode="reflect",
            bottleneck="rvq",
            latent_dim=128,
            num_codebooks=32,
            codebook_size=1024,
            quantizer_dropout=1.0,
            dropout_choices=(2, 4, 8, 16, 32),
        ),
        loss_recipe="encodec_24khz",
        discriminator_recipe="encodec",
        optimizer=dict(name="adam", learning_rate=3e-4, b1=0.5, b2=0.9),
        seconds=1.0,
        batch_size=64,
        steps=600_000,
    )
    return base.finish(config, arg)
