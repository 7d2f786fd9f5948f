"""A separator trained by regression, the baseline of configs/stems/tiny_bands.py on a laptop.

  mgen train --config=stems/tiny_separator --workdir=out/separator --config.data.dataset=out/data

2,775,872 parameters. Hardware: 2 CPU cores; a step takes 1.3 s of one.
`:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import stems_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return stems_base.tiny(
        arg,
        model=dict(kind="separator", **stems_base.TINY_BANDS),
        batch_size=4,
        learning_rate=2e-3,
        steps=1200,  # the time that tiny_bands takes
    )
