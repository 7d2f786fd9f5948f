r"""MusicLM's melody embedding (Agostinelli et al. 2023): a ViT on 4 s, 192 dimensions.

  mgen train --config=joint/melody_vit --workdir=out/melody_vit --config.data.dataset=DATA

As published: 12 layers, 6 heads, width 512, feed-forward 1024, semi-hard triplet loss on pairs of
one melody in different acoustics. Heads of 64 (512 is no multiple of 6), 100 mel frames/s in
patches of four whole frames, FaceNet's margin of 0.2, batch and schedule are this repository's; so
are the pairs, which are rendered from scores where the paper had recordings. Its tokens: hop 3 s,
24 x 512,

  mgen fit_codebook --encoder=out/melody_vit --stride_seconds=3 --levels=24 --size=512 \
    --dataset=DATA --out=out/melody_codebook

Hardware: one GPU; `:smoke` seconds on a CPU.
"""

import ml_collections

from mgen.configs import joint_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return joint_base.published(
        arg,
        model=dict(
            embed_dim=192,
            audio_kind="vit",
            audio=dict(
                patch=(4, 128),
                stride=(4, 128),
                class_tokens=0,
                pooling="mean",
                dim=512,
                layers=12,
                heads=6,
                head_dim=64,
                ff=1024,
                norm_epsilon=1e-6,
                dtype="bfloat16",
                remat="dots",
            ),
            text=None,
            mel=dict(mean=-4.0, std=4.0),
            spec_augment=dict(time_masks=2, mel_masks=2),
        ),
        data=joint_base.MELODY_PAIRS | dict(source="any", batch_size=1024, workers=8),
        loss=dict(kind="triplet", mask_duplicates=True, chunk=256),
        optimizer=dict(learning_rate=3e-4, b2=0.98, warmup=2000, weight_decay=0.05),
        train=dict(steps=100_000),
    )
