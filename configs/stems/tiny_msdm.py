"""Multi-source diffusion that trains on a laptop: bass, drums, guitar and piano at 16 kHz.

  mgen prepare_data --dataset=corpus_scores/band --out=out/data
  mgen train --config=stems/tiny_msdm --workdir=out/msdm --config.data.dataset=out/data

PARAMETERS parameters. Hardware: 2 CPU cores, MINUTES minutes.
`:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import stems_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return stems_base.tiny_diffusion(arg, steps=2500)
