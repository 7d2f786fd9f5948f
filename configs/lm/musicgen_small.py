"""MusicGen small (Copet et al. 2023): 24 layers of 1024, 4 x 2048 codes at 50 Hz, T5-base text.

  mgen train --config=lm/musicgen_small --workdir=out/musicgen_small --config.data.dataset=TOKENS

420,371,456 parameters. As published: batches of 192 x 30 s, AdamW, cosine with 4000 warm-up steps,
a moving average of the weights, no condition for a fifth of the examples.
Hardware: 32 GPUs in the paper.
A batch also holds T5 vectors ("condition", "condition_mask"), which `mgen tokenize` does not write:
the config serves imported weights (`mgen.interop.musicgen`) and data of one's own.
"""

import ml_collections

from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.train import loop, optim


def get_config(
    arg: str = "", dim: int = 1024, heads: int = 16, layers: int = 24
) -> ml_collections.ConfigDict:
    """musicgen_medium and musicgen_large call this with their widths."""
    smoke = variants.check(arg) == "smoke"
    config = ml_collections.ConfigDict(
        dict(
            family="lm",
            seed=0,
            codec=dict(
                codebooks=4,
                codebook_size=64 if smoke else 2048,
                frame_rate=50.0,
                sample_rate=32000,
            ),
            model=dict(
                layout="delay",
                dim=32 if smoke else dim,
                heads=2 if smoke else heads,
                layers=2 if smoke else layers,
                ff=128 if smoke else 4 * dim,
                activation="gelu",
                norm="layer",
                norm_position="pre",
                bias=False,
                positions="sinusoidal",
                condition_width=48 if smoke else 768,
                dropout=0.1,
                dtype="float32",
                scan=True,
                remat="none" if smoke else "dots",
            ),
            condition=dict(length=4 if smoke else 64),
            loss=dict(
                z_loss=0.0, label_smoothing=0.0, condition_dropout=0.2, attribute_dropout=0.0
            ),
            data=pipeline.default_config(
                view="codes",
                sample_rate=32000,
                seconds=1.0 if smoke else 30.0,
                batch_size=2 if smoke else 192,
            ),
            optim=optim.default_config(
                name="adamw",
                learning_rate=1e-4,
                b1=0.9,
                b2=0.95,
                weight_decay=0.1,
                schedule="cosine",
                warmup=2 if smoke else 4000,
                clip=1.0,
                ema=0.99,
            ),
            train=loop.default_config(
                steps=4 if smoke else 1_000_000,
                eval_every=4 if smoke else 5000,
                save_every=2 if smoke else 5000,
                log_every=2 if smoke else 100,
            ),
        )
    )
    return variants.finish(config, arg)
