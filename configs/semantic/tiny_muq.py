"""A MuQ-like encoder that trains in minutes on a laptop: Conformer, mel-RVQ targets, 25 Hz.

  mgen fit_codebook --features=mel --config=semantic/tiny_muq --dataset=DATASET --out=out/mel_rvq \\
    --levels=8 --size=256
  mgen train --config=semantic/tiny_muq --workdir=out/semantic --config.data.dataset=DATASET \\
    --config.targets.codebook=out/mel_rvq

1.4M parameters. Targets: 8 residual codebooks of 256, and MERT's constant-Q spectrum; visible
frames count too, or the upper layers forget what sounds at the moment (beats, timbre).
Hardware: 2 CPU cores, 7 minutes (2.3 steps a second, one worker renders).
Expected: see the table of `make demo-tokens` in BENCHMARKS.md. `:smoke` takes seconds and needs a
codebook too.
"""

import ml_collections

from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.train import loop, optim


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    smoke = variants.check(arg) == "smoke"
    # Windows of 128 ms tell semitones apart from 200 Hz; mean and deviation are those of the
    # rendered scores.
    mel = dict(n_fft=2048, hop=640, n_mels=16 if smoke else 128, mean=-5.4, std=3.3)
    config = ml_collections.ConfigDict(
        dict(
            family="semantic",
            seed=0,
            model=dict(
                sample_rate=16000,
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
                # From C2, as configs/semantic/tiny_mert.py has it.
                cqt_bins=12 if smoke else 72,
                cqt_bins_per_octave=12,
                cqt_fmin=440.0 if smoke else 65.41,
                cqt_gain=10.0,
            ),
            masking=dict(
                probability=0.4, span=0.4, fill="noise", noise_mix=0.0, noise_snr=(-5.0, 5.0)
            ),
            loss=dict(cqt=4.0, visible=1.0),
            data=pipeline.default_config(
                source="mix",
                sample_rate=16000,
                seconds=1.0 if smoke else 4.0,
                batch_size=2 if smoke else 16,
                render=dict(instruments="free"),
                workers=0 if smoke else 1,
            ),
            optim=optim.default_config(
                name="adamw",
                learning_rate=1.5e-3,
                b2=0.98,
                weight_decay=0.01,
                schedule="cosine",
                warmup=2 if smoke else 100,
                end_factor=0.05,
                clip=1.0,
            ),
            train=loop.default_config(
                steps=4 if smoke else 1000,
                eval_every=4 if smoke else 500,
                eval_batches=1 if smoke else 4,
                save_every=4 if smoke else 250,
                log_every=2 if smoke else 50,
            ),
        )
    )
    return variants.finish(config, arg)
