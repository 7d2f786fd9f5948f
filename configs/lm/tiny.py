"""Tiny language model over the tokens of configs/codec/tiny_16khz.py, guided by classes.

  mgen train --config=lm/tiny --workdir=out/lm --config.data.dataset=TOKENS

Hardware: 2 CPU cores, minutes. `:smoke` takes seconds.
"""

import ml_collections

from mgen.configs import variants
from mgen.inputs import attributes, pipeline
from mgen.train import loop, optim


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    smoke = variants.check(arg) == "smoke"
    config = ml_collections.ConfigDict(
        dict(
            family="lm",
            seed=0,
            codec=dict(codebooks=4, codebook_size=512, frame_rate=50.0, sample_rate=16000),
            model=dict(
                layout="delay",
                dim=32 if smoke else 192,
                heads=2 if smoke else 3,
                layers=2 if smoke else 4,
                ff=64 if smoke else 768,
                activation="silu",
                positions="rope",
                attribute_sizes=attributes.sizes(),
                scan=False,
            ),
            loss=dict(
                z_loss=1e-4, label_smoothing=0.0, condition_dropout=0.1, attribute_dropout=0.1
            ),
            data=pipeline.default_config(
                view="codes",
                seconds=1.0 if smoke else 6.0,
                batch_size=2 if smoke else 4,
            ),
            optim=optim.default_config(
                learning_rate=2e-3,
                schedule="cosine",
                warmup=2 if smoke else 100,
                weight_decay=0.05,
                end_factor=0.05,
                clip=1.0,
            ),
            train=loop.default_config(
                steps=4 if smoke else 1500,
                eval_every=4 if smoke else 500,
                save_every=2 if smoke else 250,
                log_every=2 if smoke else 50,
                eval_batches=2 if smoke else 16,
            ),
        )
    )
    return variants.finish(config, arg)
