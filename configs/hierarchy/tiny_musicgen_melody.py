"""Tiny MusicGen that follows a tune: chroma and a joint embedding before the codes.

  mgen tokenize --chroma --codec=CODEC --joint=JOINT --joint_codebook=BOOK --dataset=DATA \\
      --out=TOKENS
  mgen train --config=hierarchy/tiny_musicgen_melody --workdir=out/lm --config.data.dataset=TOKENS
  mgen generate --lm=out/lm --codec=CODEC --joint=JOINT --prompt="a waltz" --melody=tune.wav ...

Hardware: 2 CPU cores, minutes. Expected: see `make demo-hierarchy` in BENCHMARKS.md.
`:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.tiny(
        arg,
        streams=hierarchy_base.TINY,
        stage=dict(target=("acoustic",), front=("chroma", "joint_embedding")),
        model=dict(layout="delay", front=(12, 64)),
        data=dict(seconds=6.0, batch_size=4),
        train={},
    )
