"""SoundStorm over the tokens of `make demo-tokens`: semantic tokens to all levels of the codec.

  mgen train --config=hierarchy/tiny_soundstorm --workdir=out/soundstorm \\
      --config.data.dataset=TOKENS

Hardware: 2 CPU cores, minutes. Expected: see `make demo-hierarchy` in BENCHMARKS.md.
`:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.tiny(
        arg,
        streams=hierarchy_base.TINY,
        stage=dict(target=("acoustic",), aligned=("semantic",)),
        model=dict(objective="masked", layout="parallel", positions="none", conv_kernel=5),
        masking=dict(steps=(8, 1), finer=True),
        data=dict(seconds=5.0, batch_size=4),
        optimizer=dict(learning_rate=1e-3),
        train={},
    )
