r"""Tiny MuLan with a residual network in place of the ViT, see tiny_mulan.

  mgen train --config=joint/tiny_resnet --workdir=out/joint_resnet --config.data.dataset=DATA \
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
            audio_kind="resnet",
            audio=dict(blocks=(1, 1, 1, 1), width=16, groups=8),
            text=joint_base.TINY_TEXT,
            mel=joint_base.TINY_MEL,
            spec_augment=dict(time_masks=1, mel_masks=1),
        ),
        data={},
        loss=dict(kind="contrastive"),
        optimizer={},
        train={},
    )
