r"""MuLan with the AST tower (Huang et al. 2022): 10 s at 16 kHz, BERT-base text, 128 dimensions.

  mgen train --config=joint/mulan_ast --workdir=out/mulan_ast --config.data.dataset=DATA \
    --config.data.vocabulary=VOCABULARY

As published: AST-base (16 x 16 patches, stride 10) on 128 log-mel bins of 25 ms windows every
10 ms, SpecAugment, BERT-base, learned temperature, linear projections. Batch, schedule and the
share of patches dropped are this repository's; the paper trained on 370,000 hours.
Hardware: a TPU pod or tens of GPUs; `:smoke` seconds on a CPU.
"""

import ml_collections

from mgen.configs import joint_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return joint_base.published(
        arg,
        model=dict(
            embed_dim=128,
            audio_kind="vit",
            audio=dict(patchout=0.1, dtype="bfloat16", remat="dots"),
            text=dict(**joint_base.BERT_BASE, dtype="bfloat16", remat="dots"),
            mel=dict(mean=-4.0, std=4.0),
            spec_augment=dict(time_masks=2, mel_masks=2),
        ),
        data=dict(sample_rate=16000, seconds=10.0, batch_size=4096, text_length=128, workers=8),
        loss=dict(chunk=512),
        optimizer=dict(learning_rate=4e-5, b2=0.999, warmup=2000, weight_decay=0.01),
        train=dict(steps=100_000),
    )
