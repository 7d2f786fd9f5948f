r"""Tiny MuLan on crops of the corpus scores: a small ViT, contrastive loss, 64 dimensions.

  mgen train --config=joint/tiny_mulan --workdir=out/joint --config.data.dataset=DATA \
    --config.data.vocabulary=VOCABULARY

Hardware: 2 CPU cores, minutes. `:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import joint_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return joint_base.tiny(
        arg,
        model=dict(
            embed_dim=64,
            audio_kind="vit",
            audio=joint_base.TINY_VIT,
            text=joint_base.TINY_TEXT,
            mel=joint_base.TINY_MEL,
            spec_augment=dict(time_masks=1, mel_masks=1),
        ),
        data={},
        loss=dict(kind="contrastive"),
        optimizer={},
        train=dict(steps=600, eval_every=600),
    )
