r"""Tiny CLAP on crops of the corpus scores: a small HTSAT, two-layer projections, sigmoid loss.

  mgen train --config=joint/tiny_clap --workdir=out/joint_clap --config.data.dataset=DATA \
    --config.data.vocabulary=VOCABULARY

The sigmoid loss of SigLIP (Zhai et al. 2023) stands in for CLAP's, so that it is tried on data too.
Hardware: 2 CPU cores, minutes. `:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import joint_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return joint_base.tiny(
        arg,
        model=dict(
            embed_dim=64,
            projection="mlp",
            audio_kind="htsat",
            audio=joint_base.TINY_HTSAT,
            text=joint_base.TINY_TEXT,
            mel=joint_base.TINY_MEL,
            spec_augment=dict(time_masks=1, mel_masks=1),
            # SigLIP starts at ln 10 and -10 with batches of thousands; the bias is ln(1 / batch).
            log_scale=2.3,
            score_bias=-3.5,
        ),
        data={},
        loss=dict(kind="sigmoid"),
        optimizer={},
        train={},
    )
