"""A MuQ-like encoder that trains in minutes on a laptop: Conformer, mel-RVQ targets, 25 Hz.

  mgen fit_codebook --features=mel --config=semantic/tiny_muq --dataset=DATASET --out=out/mel_rvq \\
    --levels=8 --size=256
  mgen train --config=semantic/tiny_muq --workdir=out/semantic --config.data.dataset=DATASET \\
    --config.targets.codebook=out/mel_rvq

1.4M parameters. Targets: 8 residual codebooks of 256, and MERT's constant-Q spectrum; visible
frames count too, or the upper layers forget what sounds at the moment (beats, timbre).
Hardware: 2 CPU cores, 6 minutes (2 steps a second, one worker renders).
Expected: see the table of `make demo-tokens` in BENCHMARKS.md. `:smoke` takes seconds and needs a
codebook too.
"""

import ml_collections

from mgen.configs import semantic_base, variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    smoke = variants.check(arg) == "smoke"
    mel = semantic_base.mel(smoke, hop=640)
    return semantic_base.tiny(
        arg,
        model=dict(
            front=dict(kind="mel", mel=mel, stack=1),
            trunk=dict(
                kind="conformer",
                dim=32 if smoke else 128,
                heads=2 if smoke else 4,
                layers=2 if smoke else 4,
                ff=64 if smoke else 384,
                positions="rotary",
                kernel_size=7,
                final_norm=True,
                scan=False,
            ),
        ),
        targets=dict(
            kind="mel_rvq",
            codebooks=2 if smoke else 8,
            codebook_size=16 if smoke else 256,
            codebook="",
            mel=mel,
            **(semantic_base.SMOKE_CQT if smoke else semantic_base.CQT),
        ),
        loss=dict(cqt=4.0, visible=1.0),
        data=dict(source="mix", workers=0 if smoke else 1),
        steps=650,
    )
