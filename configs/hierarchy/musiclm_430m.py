"""MusicLM (Agostinelli et al. 2023): three decoders of 24 layers, 16 heads, d 1024, ff 4096.

  mgen train --config=hierarchy/musiclm_430m:semantic --workdir=out/semantic_lm \\
      --config.data.dataset=TOKENS --config.stage.joint_codebook=CODEBOOK
  mgen train --config=hierarchy/musiclm_430m:coarse ...
  mgen train --config=hierarchy/musiclm_430m:fine --workdir=out/fine_lm --config.data.dataset=TOKENS

semantic  12 joint tokens -> semantic tokens, crops of 30 s; 417,397,248 parameters
semantic_melody  the same, and 24 tokens for every 3 s of a melody; 430,004,736
coarse    12 joint and the semantic tokens -> levels 1-4 of the codec, 10 s; 424,741,376
fine      levels 1-4 -> levels 5-12, 3 s; 423,687,680

The paper counts 430 M a stage; with the gated feed-forward of T5 1.1 the stack has 403 M, the
tables of tokens make the rest. Joint tokens are those of the crop's mean audio embedding.
Hardware: a pod slice; batches of 256 crops.
"""

import ml_collections

from mgen.configs import hierarchy_base, variants

STAGES = {
    "semantic": (dict(target=("semantic",), prefix=("joint",)), 30.0),
    "semantic_melody": (dict(target=("semantic",), prefix=("joint", "melody")), 30.0),
    "coarse": (dict(target=("acoustic[0:4]",), prefix=("joint", "semantic")), 10.0),
    "fine": (dict(target=("acoustic[4:12]",), prefix=("acoustic[0:4]",)), 3.0),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    name, variant = variants.split(arg, tuple(STAGES))
    stage, seconds = STAGES[name]
    return hierarchy_base.published(
        variant,
        streams=hierarchy_base.MUSICLM,
        stage=stage,
        model=hierarchy_base.T5 | dict(layout="flatten", dim=1024, heads=16, layers=24, ff=4096),
        data=dict(sample_rate=24000, seconds=seconds, batch_size=256),
        optimizer=dict(learning_rate=3e-4, warmup=4000, weight_decay=0.01),
        train=dict(steps=500_000),
    )
