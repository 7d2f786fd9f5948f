"""StemGen over the stems of a band: the bass, drums, guitar or piano for a mix of the others.

  mgen tokenize --stems --codec=CODEC --dataset=BAND --out=TOKENS
  mgen train --config=hierarchy/tiny_stemgen --workdir=out/stemgen --config.data.dataset=TOKENS

Hardware: 2 CPU cores, minutes. Expected: see `make demo-hierarchy` in BENCHMARKS.md.
`:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import hierarchy_base
from mgen.configs.hierarchy import stemgen_250m


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    acoustic = hierarchy_base.TINY["acoustic"]
    return hierarchy_base.tiny(
        arg,
        streams=dict(stemgen_250m.STREAMS, acoustic=acoustic, context=acoustic),
        stage=stemgen_250m.STAGE,
        model=dict(objective="masked", layout="parallel"),
        loss=dict(source_dropout=dict(context=0.2, category=0.2)),
        masking=dict(steps=(8, 4, 2, 1), causal_bias=0.1),
        data=dict(seconds=5.0, batch_size=4),
        train={},
    )
