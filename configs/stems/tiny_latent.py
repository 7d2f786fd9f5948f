"""Stems in the latents of codec/tiny_vae, on a laptop: bass, drums, guitar and piano at 16 kHz.

  mgen prepare_data --dataset=corpus_scores/band --out=out/data
  mgen train --config=codec/tiny_vae --workdir=out/vae --config.data.dataset=out/data \\
    --config.data.source=any
  mgen measure_latents --codec=out/vae --dataset=out/data --out=out/scale
  mgen train --config=stems/tiny_latent --workdir=out/latent --config.data.dataset=out/data \\
    --config.latents.codec=out/vae --config.latents.scale=out/scale

Hardware: 2 CPU cores. `:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import stems_base
from mgen.configs.codec import tiny_vae


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return stems_base.latent(
        arg,
        samples=40960,
        codec=tiny_vae.get_config(arg),
        model=dict(dim=192, heads=3, layers=6, ff=384, global_frames=8),
        data=dict(batch_size=8),
        optimizer=dict(
            name="adam",
            learning_rate=1e-3,
            schedule="cosine",
            warmup=100,
            end_factor=0.05,
            clip=1.0,
            ema=0.999,
        ),
        train=dict(steps=2500, eval_every=500, eval_batches=8, save_every=100),
    )
