"""Token layouts at equal size: MusicGen's ablation (Copet et al. 2023, table 4) on the tiny data.

  mgen ablate --config=ablation/patterns --dataset=TOKENS --out=out/patterns   # all, and a table
  mgen train --config=ablation/patterns:delay --workdir=out/delay --config.data.dataset=TOKENS

The argument is the layout: flatten, delay, parallel, coarse_first or partial_flatten.
Hardware: 2 CPU cores, minutes a layout. `:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base, variants

VARIANTS = ("flatten", "delay", "parallel", "coarse_first", "partial_flatten")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    layout, variant = variants.split(arg, VARIANTS)
    return hierarchy_base.tiny(
        variant,
        streams=hierarchy_base.TINY,
        stage=dict(target=("acoustic",)),
        model=dict(layout=layout),
        data=dict(seconds=4.0, batch_size=4),
        train=dict(steps=600),
    )
