r"""MuLan with the ResNet-50 tower (Huang et al. 2022): 10 s at 16 kHz, BERT-base, 128 dimensions.

  mgen train --config=joint/mulan_resnet --workdir=out/mulan_resnet --config.data.dataset=DATA \
    --config.data.vocabulary=VOCABULARY

As published: ResNet-50 on 64 log-mel bins of 25 ms windows every 10 ms, BERT-base, learned
temperature, linear projections; with group norm in place of batch norm. Batch and schedule are this
repository's.
Hardware: a TPU pod or tens of GPUs; `:smoke` seconds on a CPU.
"""

import ml_collections

from mgen.configs import joint_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return joint_base.published(
        arg,
        model=dict(
            embed_dim=128,
            audio_kind="resnet",
            audio=dict(dtype="bfloat16"),
            text=dict(**joint_base.BERT_BASE, dtype="bfloat16", remat="dots"),
            mel=dict(n_mels=64, mean=-4.0, std=4.0),
            spec_augment=dict(time_masks=2, mel_masks=2),
        ),
        data=dict(sample_rate=16000, seconds=10.0, batch_size=4096, text_length=128, workers=8),
        loss=dict(chunk=512),
        optimizer=dict(learning_rate=4e-5, b2=0.999, warmup=2000, weight_decay=0.01),
        train=dict(steps=100_000),
    )
