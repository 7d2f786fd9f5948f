r"""CLAP (Wu et al. 2023, "Large-scale Contrastive Language-Audio Pretraining"), HTSAT and RoBERTa.

  mgen train --config=joint/clap --workdir=out/clap --config.data.dataset=DATA \
    --config.data.vocabulary=VOCABULARY

As released (laion/clap-htsat-unfused): 10 s at 48 kHz, 64 mel bins of 50 to 14000 Hz every 10 ms,
two-layer projections to 512 dimensions, 77 tokens; AdamW with b1 0.99, b2 0.9, cosine schedule with
warm-up, batches of 2304. Longer recordings are embedded by windows, not by feature fusion.
Hardware: tens of GPUs; `:smoke` seconds on a CPU.
"""

import ml_collections

from mgen.configs import joint_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return joint_base.published(
        arg,
        model=dict(
            embed_dim=512,
            projection="mlp",
            audio_kind="htsat",
            audio=dict(dtype="bfloat16"),
            text=dict(**joint_base.ROBERTA_BASE, dtype="bfloat16", remat="dots"),
            mel=joint_base.CLAP_MEL,
            spec_augment=dict(time_masks=2, mel_masks=2),
        ),
        data=dict(sample_rate=48000, seconds=10.0, batch_size=2304, text_length=77, workers=8),
        loss=dict(chunk=256),
        optimizer=dict(learning_rate=1e-4, b1=0.99, b2=0.9, warmup=3200),
        train=dict(steps=100_000),
    )
