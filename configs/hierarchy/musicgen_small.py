"""MusicGen small (Copet et al. 2023): 24 layers of 1024, 4 x 2048 codes at 50 Hz, T5-base text.

  mgen train --config=hierarchy/musicgen_small --workdir=out/musicgen_small \\
      --config.data.dataset=TOKENS      # of mgen tokenize --codec=... --text_encoder=T5_BASE

420,371,456 parameters. As published: batches of 192 x 30 s, AdamW, cosine with 4000 warm-up steps,
a moving average of the weights, no condition for a fifth of the examples.
Hardware: 32 GPUs in the paper. Released weights: `mgen.interop.musicgen`.
"""

from typing import Any

import ml_collections

from mgen.configs import hierarchy_base

STREAMS = dict(
    acoustic=dict(codebooks=4, codebook_size=2048, frame_rate=50.0, sample_rate=32000),
    chroma=hierarchy_base.CHROMA,
    style=dict(codebooks=6, codebook_size=1024, frame_rate=5.0, sample_rate=24000),
)


def get_config(
    arg: str = "", dim: int = 1024, heads: int = 16, layers: int = 24, kind: str = "text"
) -> ml_collections.ConfigDict:
    """The other sizes and kinds call this: "text", "melody" or "style"."""
    stage: dict[str, Any] = dict(vectors="text")
    model, loss = dict[str, Any](condition_width=768), dict[str, Any](condition_dropout=0.2)
    if kind == "melody":
        stage, model = dict(front=("chroma", "text")), dict(front=(12, 768))
    if kind == "style":
        stage["prefix"] = ("style",)
        loss = dict(condition_dropout=0.0, source_dropout=dict(style=0.4, text=0.4))
    return hierarchy_base.published(
        arg,
        streams=STREAMS,
        stage=dict(target=("acoustic",)) | stage,
        model=dict(layout="delay", dim=dim, heads=heads, layers=layers, ff=4 * dim) | model,
        loss=dict(attribute_dropout=0.0) | loss,
        data=dict(sample_rate=32000, seconds=30.0, batch_size=192),
        optimizer=dict(
            learning_rate=1e-4, b1=0.9, b2=0.95, weight_decay=0.1, warmup=4000, ema=0.99
        ),
        train=dict(steps=1_000_000),
    )
