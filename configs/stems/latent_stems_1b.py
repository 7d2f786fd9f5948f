"""Stems in the latents of Oobleck: one diffusion Transformer that generates bass, drums, guitar and
piano, fills in any of them and takes mixes apart; 44.1 kHz stereo, 23.8 s.

  mgen train --config=codec/oobleck_44khz --workdir=out/oobleck --config.data.dataset=PATH
  mgen measure_latents --codec=out/oobleck --dataset=PATH --out=out/scale
  mgen train --config=stems/latent_stems_1b --workdir=out/latent --config.data.dataset=PATH \\
    --config.latents.codec=out/oobleck --config.latents.scale=out/scale

1,055,739,072 parameters. From Stable Audio Open (Evans et al. 2024): 24 blocks of width 1536 with
24 heads, latents of 64 channels at 21.5 Hz, AdamW at 5e-5, averaged weights (0.9999). Ours:
attention over tracks and over all of them every 8 frames in place of attention to text,
one modulation for all blocks, a feed-forward of half its width, EDM in place of v. A flow:

  --config.diffusion.objective=flow --config.diffusion.noise_mean=0 --config.diffusion.noise_std=1

Most of a step's bytes are Oobleck's, which encodes in float32. Accelerators are faster, and latents
less exact, with --config.latents.dtype=bfloat16 (BENCHMARKS.md).

Hardware: 8 accelerators of 80 GB (batch 32). `:smoke` takes seconds on a CPU.
"""

import ml_collections

from mgen.configs import stems_base
from mgen.configs.codec import oobleck_44khz


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return stems_base.latent(
        arg,
        samples=2**20,
        codec=oobleck_44khz.get_config(arg),
        model=dict(ff=3072, global_frames=8, dtype="bfloat16", remat="dots"),
        data=dict(batch_size=32, workers=8),
        optimizer=dict(
            name="adamw", learning_rate=5e-5, weight_decay=1e-3, warmup=1000, clip=1.0, ema=0.9999
        ),
        train=dict(steps=500_000, eval_every=5000, summary_every=25000, save_every=5000),
    )
