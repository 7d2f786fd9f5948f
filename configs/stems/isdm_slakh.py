"""Independent diffusion models on Slakh2100, one a stem (Mariani et al. 2024, "ISDM"): four of them
separate together.

  mgen train --config=stems/isdm_slakh:bass --workdir=out/isdm_bass --config.data.dataset=out/data
  mgen train --config=stems/isdm_slakh:drums --workdir=out/isdm_drums --config.data.dataset=out/data

and likewise `:guitar` and `:piano`. 405,491,100 parameters each; all else as
configs/stems/msdm_slakh.py, but that each chunk is one in which the stem sounds where possible.
Hardware: one GPU of 80 GB each.
Expected: SI-SDRi on the test split of 17.3 dB on average with the Dirac sampler, in the paper.
`:bass,smoke` takes seconds on a CPU.
"""

import ml_collections

from mgen.configs import stems_base, variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    name, variant = variants.split(arg, stems_base.NAMES)
    return stems_base.slakh(variant, names=(name,), kind="unet")
