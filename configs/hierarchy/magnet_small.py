"""MAGNeT small (Ziv et al. 2024): MusicGen small's Transformer over masked codes of 30 s.

  mgen train --config=hierarchy/magnet_small --workdir=out/magnet_small \\
      --config.data.dataset=TOKENS

420,371,456 parameters. Spans of 3 frames, 5 frames of context on either side for the levels behind
the first, 60 + 10 + 10 + 10 passes. As published: sample with guidance 10 (it falls to 1),
temperature 3 (to 0) and top-p 0.9. The paper trains one level a batch, here one an example.
Hardware: 32 GPUs in the paper. Text vectors: see configs/hierarchy/musicgen_small.py.
"""

import ml_collections

from mgen.configs import hierarchy_base
from mgen.configs.hierarchy import musicgen_small


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.published(
        arg,
        streams=musicgen_small.STREAMS,
        stage=dict(target=("acoustic",), vectors="text"),
        model=dict(
            objective="masked",
            layout="parallel",
            context=5,
            dim=1024,
            heads=16,
            layers=24,
            ff=4096,
            condition_width=768,
        ),
        masking=dict(
            span=3, prompt=False, steps=(60, 10), noise=0.0, last_guidance=1.0, cooling=True
        ),
        loss=dict(condition_dropout=0.2, attribute_dropout=0.0),
        data=dict(sample_rate=32000, seconds=30.0, batch_size=192),
        optimizer=dict(
            learning_rate=1e-4, b1=0.9, b2=0.95, weight_decay=0.1, warmup=4000, ema=0.99
        ),
        train=dict(steps=1_000_000),
    )
