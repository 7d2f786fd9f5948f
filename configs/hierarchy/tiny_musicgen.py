"""Tiny MusicGen over the tokens of configs/codec/tiny_16khz.py, guided by classes.

  mgen train --config=hierarchy/tiny_musicgen --workdir=out/lm --config.data.dataset=TOKENS

Hardware: 2 CPU cores, minutes. `:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.tiny(
        arg,
        streams=hierarchy_base.TINY,
        stage=dict(target=("acoustic",)),
        model=dict(layout="delay", **hierarchy_base.CLASSES),
        data=dict(seconds=6.0, batch_size=4),
        train=dict(steps=1500, eval_every=500, save_every=250),
    )
