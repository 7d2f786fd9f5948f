"""YuE's shape (Yuan et al. 2025): Llama decoders over a vocal and an accompaniment track.

  mgen train --config=hierarchy/yue_7b:tracks --workdir=out/tracks --config.data.dataset=TOKENS
  mgen train --config=hierarchy/yue_7b:residual --workdir=out/residual --config.data.dataset=TOKENS

tracks    codebook 0 of both tracks in turn, 100 tokens a second, crops of 80 s: 32 layers of 4096,
          Llama 2's 7B; 6,493,057,024 parameters
residual  codebook 0 -> codebooks 1-7 of one track, 6 s: 22 layers of 2048; 1,000,450,048

The released model has text in the same vocabulary (lyrics, tags), which is not here: tracks follow
nothing but what was played. Llama 2 has 32,000 rows of text in and out, here are codes only. The
width of the smaller model is ours, as large as the paper says (1B).
Sampling: top-p 0.93. Streams "vocals" and "accompaniment" are codes of separated tracks, which
`mgen tokenize` does not write yet: the config serves data of one's own.
Hardware: a pod slice; bfloat16 with float32 loss.
"""

import ml_collections

from mgen.configs import hierarchy_base, variants

TRACK = dict(codebooks=8, codebook_size=1024, frame_rate=50.0, sample_rate=16000)
STREAMS = dict(vocals=TRACK, accompaniment=TRACK, acoustic=TRACK)
LLAMA = dict(
    layout="flatten",
    activation="silu",
    gated=True,
    norm="rms",
    norm_epsilon=1e-5,
    positions="rope",
    dropout=0.0,
)
STAGES = {
    "tracks": (
        dict(target=("vocals[0:1]", "accompaniment[0:1]")),
        dict(dim=4096, heads=32, layers=32, ff=11008),
        80.0,
    ),
    "residual": (
        dict(target=("acoustic[1:8]",), prefix=("acoustic[0:1]",)),
        dict(dim=2048, heads=32, kv_heads=4, layers=22, ff=5632),
        6.0,
    ),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    name, variant = variants.split(arg, tuple(STAGES))
    stage, shape, seconds = STAGES[name]
    return hierarchy_base.published(
        variant,
        streams=STREAMS,
        stage=stage,
        model=LLAMA | shape,
        loss=dict(condition_dropout=0.0, attribute_dropout=0.0, chunk=1024),
        data=dict(sample_rate=16000, seconds=seconds, batch_size=256),
        optimizer=dict(learning_rate=3e-4, b1=0.9, b2=0.95, warmup=2000, weight_decay=0.1),
        train=dict(steps=500_000),
    )
