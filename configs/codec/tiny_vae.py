"""The tiny codec with a Gaussian bottleneck: 16 kHz mono, 50 latents of 32 channels a second.

  mgen train --config=codec/tiny_vae --workdir=out/vae --config.data.dataset=PATH

Hardware: 2 CPU cores. Everything else as configs/codec/tiny_16khz.py. `:smoke` takes seconds.
"""

import ml_collections

from mgen.configs.codec import tiny_16khz


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = tiny_16khz.get_config(arg).unlock()
    config.model.bottleneck = "vae"
    config.loss.kl.weight = 1e-3
    return config.lock()
