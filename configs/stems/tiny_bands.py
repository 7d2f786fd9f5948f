"""One model of bass, drums, guitar and piano that generates, fills in and separates, and trains
on a laptop: a denoiser in frequency bands that also reads the mix.

  mgen prepare_data --dataset=corpus_scores/band --out=out/data
  mgen train --config=stems/tiny_bands --workdir=out/bands --config.data.dataset=out/data

60% of the examples have their mix beside them as a clean track, and 15% of all stems are given
clean; those that are not have one noise level. So it separates as the separator of
configs/stems/tiny_separator.py does, by the same network, and fills in as
configs/stems/tiny_msdm.py.

6,211,616 parameters. Hardware: 2 CPU cores; a step takes 1.1 s of one.
Expected: see `make demo-stems` in BENCHMARKS.md.
`:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import stems_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return stems_base.tiny(
        arg,
        model=dict(kind="bands", per_track=True, **stems_base.TINY_BANDS),
        batch_size=4,
        learning_rate=2e-3,
        steps=stems_base.TINY_STEPS,
        diffusion=dict(beside_mix=0.6, given=0.15, one_level=True) | stems_base.TINY_NOISE,
    )
