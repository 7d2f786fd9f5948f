"""The independent models to configs/stems/tiny_bands.py, one a stem.

  mgen train --config=stems/tiny_isdm:bass --workdir=out/isdm_bass --config.data.dataset=out/data

and likewise `:drums`, `:guitar` and `:piano`. The same network and data, but that the stem sounds
in each crop where possible; a quarter of the steps, so that the four together have the budget of
the joint model. Hardware: 2 CPU cores; minutes each.
`:bass,smoke` takes seconds.
"""

import ml_collections

from mgen.configs import stems_base, variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    name, variant = variants.split(arg, stems_base.NAMES)
    return stems_base.tiny(
        variant,
        names=(name,),
        model=dict(kind="bands", **stems_base.TINY_BANDS),
        batch_size=4,
        learning_rate=2e-3,
        steps=stems_base.TINY_STEPS // 4,
        diffusion=stems_base.TINY_NOISE,
    )
