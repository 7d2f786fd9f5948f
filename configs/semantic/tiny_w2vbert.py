"""A w2v-BERT-like encoder that trains in minutes on a laptop: Conformer, BEST-RQ targets, 25 Hz.

  mgen train --config=semantic/tiny_w2vbert --workdir=out/semantic --config.data.dataset=PATH

1.6M parameters. Targets: 4 codebooks of 512, perplexity 130 and more in a batch.
Hardware: 2 CPU cores, 0.45 s of processor time a step, 0.23 s more for rendering 16 crops.
Expected: cross-entropy under the unigram baseline that `mgen evaluate` prints. `:smoke` takes
seconds.
"""

import ml_collections

from mgen.configs import semantic_base, variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    smoke = variants.check(arg) == "smoke"
    mel = semantic_base.mel(smoke, hop=320)
    return semantic_base.tiny(
        arg,
        model=dict(
            front=dict(kind="mel", mel=mel, stack=2),
            trunk=dict(
                kind="conformer",
                dim=32 if smoke else 128,
                heads=2 if smoke else 4,
                layers=2 if smoke else 4,
                ff=64 if smoke else 384,
                positions="rotary",
                kernel_size=7,
                scan=False,
            ),
        ),
        # Several codebooks: one projection of one spectrum is a noisy teacher.
        targets=dict(
            kind="random_projection",
            codebooks=4,
            codebook_size=32 if smoke else 512,
            codebook_dim=16,
            mel=mel,
        ),
        loss=dict(cqt=0.0, visible=0.0),
        data=dict(source="mix"),
    )
