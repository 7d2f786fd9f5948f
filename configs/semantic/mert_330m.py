"""MERT 330M (Li et al. 2023): HuBERT large, 24 pre-norm blocks of 1024; 315,438,720 parameters.

  mgen train --config=semantic/mert_330m --workdir=out/mert --config.data.dataset=TOKENS \\
    --config.data.audio=DATASET

Batches of 5.5 h. Hardware: 64 GPUs in the paper. Everything else as configs/semantic/mert_95m.py.
"""

import ml_collections

from mgen.configs.semantic import mert_95m


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return mert_95m.get_config(
        arg, dim=1024, heads=16, layers=24, large=True, batch_size=3960, learning_rate=1.5e-3
    )
