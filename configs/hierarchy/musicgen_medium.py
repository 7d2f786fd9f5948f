"""MusicGen medium (Copet et al. 2023): 48 layers of 1536; 1,838,737,920 parameters.

  mgen train --config=hierarchy/musicgen_medium --workdir=out/musicgen_medium \\
      --config.data.dataset=TOKENS

Hardware: a pod slice or a cluster of GPUs. Everything else as configs/hierarchy/musicgen_small.py.
"""

import ml_collections

from mgen.configs.hierarchy import musicgen_small


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return musicgen_small.get_config(arg, dim=1536, heads=24, layers=48)
