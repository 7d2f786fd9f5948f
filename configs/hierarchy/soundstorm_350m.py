"""SoundStorm (Borsos et al. 2023): a Conformer of 12 layers, 16 heads, d 1024, ff 4096, kernel 5.

  mgen train --config=hierarchy/soundstorm_350m --workdir=out/soundstorm \\
      --config.data.dataset=TOKENS

Semantic tokens to all 12 levels of the codec, 30 s in 27 passes; in MusicLM's place of the coarse
and the fine stage. 316,015,616 parameters; the paper counts 350 M.
Hardware: a pod slice; batches of 256 crops.
"""

import ml_collections

from mgen.configs import hierarchy_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.published(
        arg,
        streams=hierarchy_base.MUSICLM,
        stage=dict(target=("acoustic",), aligned=("semantic",)),
        model=dict(
            objective="masked",
            layout="parallel",
            positions="none",
            dim=1024,
            heads=16,
            layers=12,
            ff=4096,
            activation="silu",
            conv_kernel=5,
        ),
        masking=dict(steps=(16, 1)),
        data=dict(sample_rate=24000, seconds=30.0, batch_size=256),
        optimizer=dict(learning_rate=3e-4, warmup=4000, weight_decay=0.01),
        train=dict(steps=500_000),
    )
