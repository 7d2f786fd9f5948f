"""A separator trained by regression, the baseline of configs/stems/tiny_msdm.py on a laptop.

  mgen train --config=stems/tiny_separator --workdir=out/separator --config.data.dataset=out/data

PARAMETERS parameters. Hardware: 2 CPU cores, MINUTES minutes.
`:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import stems_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return stems_base.tiny(
        arg,
        model=dict(kind="separator", n_fft=2048, hop=512, bands=32, width=64, heads=4, layers=3),
        batch_size=4,
        learning_rate=2e-3,
        steps=1200,
    )
