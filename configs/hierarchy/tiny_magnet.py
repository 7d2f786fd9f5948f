"""MAGNeT over the tokens of `make demo-tokens`, guided by classes.

  mgen train --config=hierarchy/tiny_magnet --workdir=out/magnet --config.data.dataset=TOKENS
  mgen generate --lm=out/magnet --codec=CODEC --guidance=3 --out=out/clips

Hardware: 2 CPU cores, minutes. `:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.tiny(
        arg,
        streams=hierarchy_base.TINY,
        stage=dict(target=("acoustic",)),
        model=dict(objective="masked", layout="parallel", context=5, **hierarchy_base.CLASSES),
        masking=dict(span=3, prompt=False, steps=(20, 5), noise=1.0, last_guidance=1.0),
        data=dict(seconds=5.0, batch_size=4),
        train={},
    )
