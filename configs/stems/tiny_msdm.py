"""Multi-source diffusion that trains on a laptop: bass, drums, guitar and piano at 16 kHz, by a
denoiser of a few million parameters with a bottleneck of 31 frames a second.

  mgen prepare_data --dataset=corpus_scores/band --out=out/data
  mgen train --config=stems/tiny_msdm --workdir=out/msdm --config.data.dataset=out/data

6,344,572 parameters. Hardware: 2 CPU cores; a step takes 0.9 s of one.
`:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import stems_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    model = dict(
        kind="unet",
        width=64,
        patch=8,
        multipliers=(1, 2, 2, 3, 3),
        factors=(4, 4, 2, 2),
        blocks=(1, 1, 1, 1),
        attentions=(False, False, True, True),
        heads=4,
        head_dim=32,
    )
    return stems_base.tiny(arg, model=model, batch_size=4, learning_rate=1e-3, steps=3000)
