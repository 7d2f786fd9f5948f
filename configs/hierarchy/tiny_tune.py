"""A tune followed frame by frame: the loudest pitch class (MusicGen's chroma) and joint tokens,
added to the frames of the codes that are written.

  mgen tokenize --chroma --codec=CODEC --joint=JOINT --joint_codebook=BOOK --dataset=DATA \\
      --out=TOKENS
  mgen train --config=hierarchy/tiny_tune --workdir=out/lm --config.data.dataset=TOKENS \\
      --config.stage.joint_codebook=BOOK
  mgen generate --lm=out/lm --codec=CODEC --joint=JOINT --prompt="a waltz" --melody=tune.wav ...

MusicGen puts the tune in front of the codes (configs/hierarchy/tiny_musicgen_melody.py), which
takes more steps to learn than this one has.

Hardware: 2 CPU cores, minutes. Expected: see `make demo-hierarchy` in BENCHMARKS.md.
`:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    tune = hierarchy_base.CHROMA | dict(codebooks=1, codebook_size=hierarchy_base.CHROMA["width"])
    return hierarchy_base.tiny(
        arg,
        streams=hierarchy_base.TINY | dict(chroma=tune),
        stage=dict(target=("acoustic",), aligned=("joint", "chroma")),
        model=dict(layout="delay"),
        data=dict(seconds=6.0, batch_size=4),
        train={},
    )
