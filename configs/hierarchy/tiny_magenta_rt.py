"""A depth decoder over the tokens of `make demo-tokens`: one step a frame, then its 4 codebooks.

  mgen train --config=hierarchy/tiny_magenta_rt --workdir=out/depth_lm \\
      --config.data.dataset=TOKENS --config.stage.joint_codebook=CODEBOOK

Hardware: 2 CPU cores, minutes. Expected: see `make demo-hierarchy` in BENCHMARKS.md.
`:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.tiny(
        arg,
        streams=hierarchy_base.TINY,
        stage=dict(target=("acoustic",), aligned=("joint",)),
        model=dict(layout="parallel", depth_layers=2, depth_dim=128, depth_heads=2, depth_ff=512),
        data=dict(seconds=6.0, batch_size=4),
        train={},
    )
