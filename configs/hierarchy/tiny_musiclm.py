"""MusicLM's three stages over the tokens of `make demo-tokens`.

  mgen train --config=hierarchy/tiny_musiclm:semantic --workdir=out/semantic_lm \\
      --config.data.dataset=TOKENS --config.stage.joint_codebook=CODEBOOK
  mgen train --config=hierarchy/tiny_musiclm:coarse ...
  mgen train --config=hierarchy/tiny_musiclm:fine --workdir=out/fine_lm --config.data.dataset=TOKENS

semantic  joint tokens -> semantic tokens, crops of 12 s; semantic_melody: also from the tokens of a
          melody (`mgen tokenize --melody`)
coarse    joint and semantic tokens -> levels 1-2 of the codec, 5 s
fine      levels 1-2 -> levels 3-4, 2 s

Hardware: 2 CPU cores, minutes a stage. Expected on held-out pieces of
`make demo-hierarchy`: 2.15, 5.20 and 5.70 nats a token (unigram 5.45, 5.98, 5.98). `:coarse,smoke`
takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base, variants

STAGES = {
    "semantic": (dict(target=("semantic",), prefix=("joint",)), 12.0),
    "semantic_melody": (dict(target=("semantic",), prefix=("joint", "melody")), 12.0),
    "coarse": (dict(target=("acoustic[0:2]",), prefix=("joint", "semantic")), 5.0),
    "fine": (dict(target=("acoustic[2:4]",), prefix=("acoustic[0:2]",)), 2.0),
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
