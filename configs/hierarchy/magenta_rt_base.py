"""Magenta RealTime's shape (Lyria team 2025) with a depth decoder: 20 layers over time, 4 over the
16 codebooks of a frame.

  mgen train --config=hierarchy/magenta_rt_base --workdir=out/magenta_rt \\
      --config.data.dataset=TOKENS --config.stage.joint_codebook=CODEBOOK

6 style tokens (the first levels of the joint embedding) before 12 s of frames at 25 Hz: at
inference 10 s of context and 2 s of new frames. One decoder reads both, where the released model
has an encoder for the context. 200,398,848 parameters.
Hardware: a pod slice; batches of 512 crops.
"""

import ml_collections

from mgen.configs import hierarchy_base

STREAMS = dict(
    acoustic=dict(codebooks=16, codebook_size=1024, frame_rate=25.0, sample_rate=48000),
    joint=dict(codebooks=12, codebook_size=1024, frame_rate=1.0, embed_dim=768),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.published(
        arg,
        streams=STREAMS,
        stage=dict(target=("acoustic",), prefix=("joint[0:6]",)),
        model=hierarchy_base.T5
        | dict(
            layout="parallel",
            positions="rope",
            dim=768,
            heads=12,
            layers=20,
            ff=2048,
            depth_layers=4,
            depth_dim=768,
            depth_heads=12,
            depth_ff=2048,
        ),
        data=dict(sample_rate=48000, channels=2, seconds=12.0, batch_size=512),
        optimizer=dict(learning_rate=1e-3, warmup=4000, weight_decay=0.01),
        train=dict(steps=500_000),
    )
