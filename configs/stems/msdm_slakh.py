"""Multi-source diffusion on Slakh2100 (Mariani et al. 2024): one model of bass, drums, guitar and
piano that generates, fills in and separates.

  mgen prepare_data --dataset=slakh2100 --source=SLAKH --out=out/data
  mgen train --config=stems/msdm_slakh --workdir=out/msdm --config.data.dataset=out/data

405,497,700 parameters. As published: mono at 22,050 Hz, chunks of 262,144 samples, log sigma from
N(-3, 1), Adam at 1e-4, batches of 8 in bfloat16, no average of the weights. The number of steps is
ours. A noise level for each stem, of which a quarter are given, makes it learn what each stem may
be beside any others:

  --config.model.per_track=True --config.diffusion.given=0.25

Hardware: one GPU of 80 GB.
Expected: SI-SDRi on the test split of 16.5 dB on average with the Dirac sampler, in the paper.
`:smoke` takes seconds on a CPU.
"""

import ml_collections

from mgen.configs import stems_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return stems_base.slakh(arg, kind="unet")
