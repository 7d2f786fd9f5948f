r"""Tiny MusicCoCa on crops of the corpus scores: tiny_mulan and a captioning decoder.

  mgen train --config=joint/tiny_coca --workdir=out/joint_coca --config.data.dataset=DATA \
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
            decoder_layers=1,
            audio_kind="vit",
            audio=joint_base.TINY_VIT,
            text=joint_base.TINY_TEXT,
            mel=joint_base.TINY_MEL,
            spec_augment=dict(time_masks=1, mel_masks=1),
        ),
        data={},
        loss=dict(kind="contrastive", caption_weight=1.0),
        optimizer={},
        train={},
    )
