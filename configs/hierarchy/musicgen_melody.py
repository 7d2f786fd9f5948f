"""MusicGen melody (Copet et al. 2023): 48 layers of 1536; 1,385,625,600 parameters.

  mgen train --config=hierarchy/musicgen_melody --workdir=out/musicgen_melody \\
      --config.data.dataset=TOKENS

Chroma of the clip (`mgen tokenize --chroma`) and text stand before the codes; no cross-attention.
Half of the examples train without their melody. The paper removes drums and bass before the chroma
is taken; `mgen tokenize` does not.
Hardware: a pod slice or a cluster of GPUs. Everything else as configs/hierarchy/musicgen_small.py.
"""

import ml_collections

from mgen.configs.hierarchy import musicgen_small


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return musicgen_small.get_config(arg, dim=1536, heads=24, layers=48, kind="melody")
