"""MusicGen large (Copet et al. 2023): 48 layers of 2048; 3,256,956,928 parameters.

  mgen train --config=hierarchy/musicgen_large --workdir=out/musicgen_large \\
      --config.data.dataset=TOKENS

Hardware: a pod slice or a cluster of GPUs. Everything else as configs/hierarchy/musicgen_small.py.
"""

import ml_collections

from mgen.configs.hierarchy import musicgen_small


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return musicgen_small.get_config(arg, dim=2048, heads=32, layers=48)
