"""A MERT-like encoder that trains in minutes on a laptop: Transformer on log-mel, told by the codes
of configs/codec/tiny_16khz.py and by a constant-Q transform, 25 Hz.

  mgen train --config=semantic/tiny_mert --workdir=out/semantic --config.data.dataset=TOKENS \\
    --config.data.audio=DATASET

Two frames of the codec (50 Hz) are one of the trunk. Log-mel takes the place of MERT's waveform
convolutions, which hear no pitch before days of training.
1.4M parameters.
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
        codec=dict(codebooks=4, codebook_size=512, frame_rate=50.0, sample_rate=16000),
        model=dict(
            front=dict(kind="mel", mel=mel, stack=2),
            trunk=dict(
                kind="transformer",
                dim=32 if smoke else 128,
                heads=2 if smoke else 4,
                layers=2 if smoke else 4,
                ff=64 if smoke else 512,
                norm_position="pre",
                bias=True,
                causal=False,
                scan=False,
            ),
            position_kernel=8 if smoke else 16,
            position_groups=4,
        ),
        targets=dict(
            kind="codes",
            codebooks=8,
            codebook_size=512,
            head="linear",
            **(semantic_base.SMOKE_CQT if smoke else semantic_base.CQT),
        ),
        loss=dict(cqt=4.0, visible=0.0),
        data=dict(view="audio_codes"),
        fill="embedding",
    )
