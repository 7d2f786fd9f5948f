"""Frames of semantic and coarse tokens as in MusicRL, over the tokens of `make demo-tokens`.

  mgen train --config=hierarchy/tiny_musicrl --workdir=out/musicrl \\
      --config.data.dataset=TOKENS --config.stage.joint_codebook=CODEBOOK
  mgen generate --lm=out/musicrl,FINE --codec=CODEC --joint=JOINT --prompt="a slow waltz" \\
      --out=out/clips

12 joint tokens -> 1 semantic token and 2 x 2 codes of the codec, 25 times a second. FINE is
tiny_musiclm:fine.
Hardware: 2 CPU cores, minutes. `:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.tiny(
        arg,
        streams=hierarchy_base.TINY,
        stage=dict(target=("semantic", "acoustic[0:2]"), prefix=("joint",)),
        model=dict(layout="flatten"),
        data=dict(seconds=5.0, batch_size=4),
        train={},
    )
