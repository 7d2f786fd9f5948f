"""StemGen (Parker et al. 2024): a stem for the mix that it hears, 20 layers of 1024, 16 heads.

  mgen tokenize --stems --codec=CODEC --dataset=STEMS --out=TOKENS
  mgen train --config=hierarchy/stemgen_250m --workdir=out/stemgen --config.data.dataset=TOKENS

A Llama-shaped Transformer without a causal mask over the frames of the stem; codes of the mix lie
beside them (their embeddings are added, which is a projection of both laid side by side), the slot
of the stem stands before them. The sources are dropped one by one, so that each can be guided by
its own scale (`mgen generate --guidance_by=context=3,category=3`). Crop length, passes and the
feed-forward width, with which it counts 250,664,960 parameters, are ours.
Hardware: 8 GPUs; batches of 64 crops.
"""

import ml_collections

from mgen.configs import hierarchy_base

ENCODEC: dict[str, object] = dict(
    codebooks=4, codebook_size=2048, frame_rate=50.0, sample_rate=32000
)
STREAMS = dict(
    acoustic=ENCODEC,
    context=ENCODEC,
    category=dict(
        codebooks=1, codebook_size=4, frame_rate=0.0, names=("bass", "drums", "guitar", "piano")
    ),
)
STAGE = dict(target=("acoustic",), prefix=("category",), aligned=("context",))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return hierarchy_base.published(
        arg,
        streams=STREAMS,
        stage=STAGE,
        model=dict(
            objective="masked",
            layout="parallel",
            positions="rope",
            norm="rms",
            activation="silu",
            gated=True,
            dim=1024,
            heads=16,
            layers=20,
            ff=2304,
        ),
        loss=dict(source_dropout=dict(context=0.2, category=0.2), attribute_dropout=0.0),
        masking=dict(steps=(128, 64, 32, 32), causal_bias=0.1),
        data=dict(sample_rate=32000, seconds=20.0, batch_size=64),
        optimizer=dict(learning_rate=3e-4, warmup=4000, weight_decay=0.01),
        train=dict(steps=500_000),
    )
