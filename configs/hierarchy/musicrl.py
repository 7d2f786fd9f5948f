"""MusicRL's policy (Cideron et al. 2024): one decoder over frames of semantic and coarse tokens.

  mgen train --config=hierarchy/musicrl --workdir=out/musicrl \\
      --config.data.dataset=TOKENS --config.stage.joint_codebook=CODEBOOK

12 joint tokens -> at 25 Hz 1 semantic token and 2 x 4 codes of the codec, flattened: 225 tokens a
second. 434,182,656 parameters at the width of MusicLM's stages; musiclm_430m:fine makes the finer
levels. This is the model before it is tuned to preferences.
Hardware: a pod slice; batches of 256 crops of 10 s.
"""

import ml_collections

from mgen.configs import hierarchy_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.published(
        arg,
        streams=hierarchy_base.MUSICLM,
        stage=dict(target=("semantic", "acoustic[0:4]"), prefix=("joint",)),
        model=hierarchy_base.T5 | dict(layout="flatten", dim=1024, heads=16, layers=24, ff=4096),
        data=dict(sample_rate=24000, seconds=10.0, batch_size=256),
        optimizer=dict(learning_rate=3e-4, warmup=4000, weight_decay=0.01),
        train=dict(steps=500_000),
    )
