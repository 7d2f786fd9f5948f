"""VampNet (Garcia et al. 2023): bidirectional Transformers of T5's kind, d 1280, 20 heads.

  mgen train --config=hierarchy/vampnet:coarse --workdir=out/vampnet_coarse \\
      --config.data.dataset=TOKENS
  mgen train --config=hierarchy/vampnet:fine --workdir=out/vampnet_fine \\
      --config.data.dataset=TOKENS

coarse  levels 1-4 of 14, 20 layers, crops of 10 s; 338,224,000 parameters
fine    levels 1-4 -> levels 5-14, 16 layers, 3 s; 293,662,080

Any code of any level is hidden, and 36 passes make all of them; `known` of `FrozenMasked.generate`
takes the paper's prompts (prefix, periodic, inpainting, compression). The paper embeds codes by the
codec's own vectors, here their embeddings are learned. Its codec is a DAC with hop 768.
Hardware: one large GPU for `:coarse`; batches of 25 crops.
"""

import ml_collections

from mgen.configs import hierarchy_base, variants

STREAMS = dict(
    acoustic=dict(
        codebooks=14, codebook_size=1024, frame_rate=44100 / 768, sample_rate=44100, channels=1
    ),
)
STAGES = {
    "coarse": (dict(target=("acoustic[0:4]",)), 20, 10.0),
    "fine": (dict(target=("acoustic[4:14]",), aligned=("acoustic[0:4]",)), 16, 3.0),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    name, variant = variants.split(arg, tuple(STAGES))
    stage, layers, seconds = STAGES[name]
    return hierarchy_base.published(
        variant,
        streams=STREAMS,
        stage=stage,
        model=hierarchy_base.T5
        | dict(objective="masked", layout="parallel", dim=1280, heads=20, layers=layers, ff=2560),
        masking=dict(hide="all", steps=(36,)),
        loss=dict(condition_dropout=0.0, attribute_dropout=0.0),
        data=dict(sample_rate=44100, seconds=seconds, batch_size=25),
        optimizer=dict(learning_rate=3e-4, b1=0.9, b2=0.999, warmup=10_000, weight_decay=0.01),
        train=dict(steps=1_000_000),
    )
