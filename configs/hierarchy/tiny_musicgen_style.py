"""Tiny MusicGen that follows the style of an excerpt, guided by classes.

  mgen fit_codebook --encoder=SEMANTIC --layer=1 --rate=5 --levels=4 --size=64 --dataset=DATA \\
      --out=BOOK
  mgen tokenize --codec=CODEC --style=SEMANTIC --style_codebook=BOOK --dataset=DATA --out=TOKENS
  mgen train --config=hierarchy/tiny_musicgen_style --workdir=out/lm --config.data.dataset=TOKENS
  mgen generate --lm=out/lm --codec=CODEC --style=clip.wav --style_model=SEMANTIC \\
      --style_codebook=BOOK --out=out/clips

Hardware: 2 CPU cores, minutes. `:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.tiny(
        arg,
        streams=hierarchy_base.TINY,
        stage=dict(target=("acoustic",), prefix=("style",)),
        model=dict(layout="delay", **hierarchy_base.CLASSES),
        loss=dict(source_dropout=dict(style=0.2)),
        data=dict(seconds=6.0, batch_size=4),
        train={},
    )
