"""The independent models to configs/stems/tiny_msdm.py, one a stem.

  mgen train --config=stems/tiny_isdm:bass --workdir=out/isdm_bass --config.data.dataset=out/data

and likewise `:drums`, `:guitar` and `:piano`. The same network and data, but that the stem sounds
in each crop where possible; a quarter of the steps, so that the four together have the budget of
the joint model. Hardware: 2 CPU cores, MINUTES minutes each.
`:bass,smoke` takes seconds.
"""

import ml_collections

from mgen.configs import stems_base, variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    name, variant = variants.split(arg, stems_base.NAMES)
    return stems_base.tiny_diffusion(variant, names=(name,), steps=625)
