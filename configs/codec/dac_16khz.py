"""Descript Audio Codec at 16 kHz: 50 Hz, 12 codebooks of 1024 in 8 dimensions, snake, hop 320.

  mgen train --config=codec/dac_16khz --workdir=out/dac_16khz --config.data.dataset=PATH

Hardware: 8 accelerators of 40 GB (batch 72 of 0.38 s). A run of two steps on a CPU: `:smoke`.
Source: Kumar et al. 2023 (arXiv:2306.06546) and its released settings: AdamW 1e-4 (0.8, 0.99), 400k
updates. 74,141,697 parameters once weight norm is folded, as released; `mgen.interop.dac` reads
those weights.
"""

import ml_collections

from mgen.configs.codec import dac_44khz


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return dac_44khz.get_config(arg, sample_rate=16000, strides=(2, 4, 5, 8), num_codebooks=12)
