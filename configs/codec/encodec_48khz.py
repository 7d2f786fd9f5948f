"""EnCodec 48 kHz: stereo, not causal, time-group norm, 1 s segments that overlap by 1%, 16
codebooks of 1024 (3 to 24 kbps).

  mgen train --config=codec/encodec_48khz --workdir=out/encodec_48khz --config.data.dataset=PATH

Hardware: 8 accelerators of 16 GB and up (batch 64 of 1 s). A run of two steps on a CPU: `:smoke`.
14,856,294 parameters. Source: Défossez et al. 2022 (arXiv:2210.13438); each segment is divided by
its RMS level, which travels beside the codes. `mgen.interop.encodec` reads the released weights.
"""

import ml_collections

from mgen.configs import codec_base as base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.experiment(
        dict(
            sample_rate=48000,
            channels=2,
            normalize=True,
            segment_seconds=1.0,
            segment_overlap=0.01,
            align_input=False,
            filters=32,
            strides=(2, 4, 5, 8),
            conv_shortcut=True,
            lstm_layers=2,
            pad_mode="reflect",
            norm="time_group",
            bottleneck="rvq",
            latent_dim=128,
            num_codebooks=16,
            codebook_size=1024,
            quantizer_dropout=1.0,
            dropout_choices=(2, 4, 8, 16),
        ),
        loss_recipe="encodec_48khz",
        discriminator_recipe="encodec",
        optimizer=dict(name="adam", learning_rate=3e-4, b1=0.5, b2=0.9),
        seconds=1.0,
        batch_size=64,
        steps=600_000,
    )
    return base.finish(config, arg)
