"""MusicLM's three stages over the tokens of `make demo-tokens`.

  mgen train --config=hierarchy/tiny_musiclm:semantic --workdir=out/semantic_lm \\
      --config.data.dataset=TOKENS --config.stage.joint_codebook=CODEBOOK
  mgen train --config=hierarchy/tiny_musiclm:coarse ...
  mgen train --config=hierarchy/tiny_musiclm:fine --workdir=out/fine_lm --config.data.dataset=TOKENS

semantic  joint tokens -> semantic tokens, crops of 12 s; semantic_melody: also from the tokens of a
          melody (`mgen tokenize --melody`)
coarse    joint and semantic tokens -> levels 1-2 of the codec, 5 s
fine      levels 1-2 -> levels 3-4, 2 s

What a stage reads is added to the frames that it writes: MusicLM's prefix takes more steps to learn
what belongs to what than these have.

Hardware: 2 CPU cores, minutes a stage. Expected: see `make demo-hierarchy` in BENCHMARKS.md.
`:coarse,smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base, variants

STAGES = {
    "semantic": (dict(target=("semantic",), aligned=("joint",)), 12.0),
    "semantic_melody": (dict(target=("semantic",), prefix=("melody",), aligned=("joint",)), 12.0),
    "coarse": (dict(target=("acoustic[0:2]",), aligned=("joint", "semantic")), 5.0),
    "fine": (dict(target=("acoustic[2:4]",), aligned=("acoustic[0:2]",)), 2.0),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    name, variant = variants.split(arg, tuple(STAGES))
    stage, seconds = STAGES[name]
    return hierarchy_base.tiny(
        variant,
        streams=hierarchy_base.TINY,
        stage=stage,
        model=dict(layout="flatten"),
        data=dict(seconds=seconds, batch_size=4),
        train={},
    )
