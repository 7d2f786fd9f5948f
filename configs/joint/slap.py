r"""SLAP (Guinot et al. 2025): HTSAT and RoBERTa-base without negatives, for one GPU.

  mgen train --config=joint/slap --workdir=out/slap --config.data.dataset=DATA \
    --config.data.vocabulary=VOCABULARY

As released (Pliploop/SLAP): CLAP's front end, HTSAT of width 128 and depths 2, 2, 12, 2, a target
network with decay 0.995, cosine losses across and within modalities. Projections and predictors as
BYOL has them (batch norm, width 4096 in the predictors), equal weights of the two losses and the
schedule are this repository's. Embeddings are the predictions. Gradients of 8 micro-batches are
averaged: with no negatives, that loses nothing.
Hardware: one GPU; `:smoke` seconds on a CPU.
"""

import ml_collections

from mgen.configs import joint_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return joint_base.published(
        arg,
        model=dict(
            embed_dim=512,
            projection="batch_norm",
            predictor_hidden=4096,
            audio_kind="htsat",
            audio=dict(dim=128, depths=(2, 2, 12, 2), dtype="bfloat16"),
            text=dict(**joint_base.ROBERTA_BASE, dtype="bfloat16", remat="dots"),
            mel=joint_base.CLAP_MEL,
            spec_augment=dict(time_masks=2, mel_masks=2),
        ),
        data=dict(sample_rate=48000, seconds=10.0, batch_size=768, text_length=77, workers=8),
        loss=dict(kind="slap"),
        optimizer=dict(learning_rate=1e-4, b2=0.999, warmup=2000, weight_decay=0.01, accumulate=8),
        train=dict(steps=100_000),
    )
