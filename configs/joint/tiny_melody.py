r"""Tiny melody embedding on pairs rendered from the corpus scores: melody_vit for a laptop.

  mgen train --config=joint/tiny_melody --workdir=out/melody --config.data.dataset=DATA

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
            text=None,
            mel=joint_base.TINY_MEL,
            spec_augment=dict(time_masks=1, mel_masks=1),
        ),
        data=joint_base.MELODY_PAIRS,
        loss=dict(kind="triplet"),
        optimizer=dict(warmup=50),
        train=dict(steps=300, eval_every=150, save_every=150, log_every=25),
    )
