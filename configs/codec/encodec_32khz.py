"""EnCodec 32 kHz, the codec of MusicGen: mono, not causal, 50 Hz, 4 codebooks of 2048 (2.2 kbps),
no quantiser dropout.

  mgen train --config=codec/encodec_32khz --workdir=out/encodec_32khz --config.data.dataset=PATH

Hardware: 8 accelerators of 16 GB and up (batch 64 of 1 s). A run of two steps on a CPU: `:smoke`.
57,584,834 parameters with the 1x1 shortcut convolutions of EnCodec. The released MusicGen weights
have identity shortcuts: 56,884,674 with `codec/encodec_32khz:musicgen`. Source: Copet et al. 2023
(arXiv:2306.05284) and its released training settings. `mgen.interop.encodec` reads the released
weights.
"""

import ml_collections

from mgen.configs import codec_base as base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.experiment(
        dict(
            sample_rate=32000,
            align_input=False,
            filters=64,
            strides=(4, 4, 5, 8),
            conv_shortcut=arg != "musicgen",
            lstm_layers=2,
            pad_mode="reflect",
            bottleneck="rvq",
            latent_dim=128,
            num_codebooks=4,
            codebook_size=2048,
        ),
        loss_recipe="encodec_32khz",
        discriminator_recipe="encodec_32khz",
        optimizer=dict(name="adam", learning_rate=3e-4, b1=0.5, b2=0.9),
        seconds=1.0,
        batch_size=64,
        steps=600_000,
    )
    return base.finish(config, arg.removeprefix("musicgen"))
