"""A w2v-BERT-like encoder that trains in minutes on a laptop: Conformer, BEST-RQ targets, 25 Hz.

  mgen train --config=semantic/tiny_w2vbert --workdir=out/semantic --config.data.dataset=PATH

1.6M parameters. Targets: 4 codebooks of 512, perplexity 130 and more in a batch.
Hardware: 2 CPU cores, 0.45 s of processor time a step, 0.23 s more for rendering 16 crops.
Expected: cross-entropy under the unigram baseline that `mgen evaluate` prints. `:smoke` takes
seconds.
"""

import ml_collections

from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.train import loop, optim


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    smoke = variants.check(arg) == "smoke"
    # Windows of 128 ms tell semitones apart from 200 Hz; mean and deviation are those of the
    # rendered scores.
    mel = dict(n_fft=2048, hop=320, n_mels=16 if smoke else 128, mean=-5.4, std=3.3)
    config = ml_collections.ConfigDict(
        dict(
            family="semantic",
            seed=0,
            model=dict(
                sample_rate=16000,
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
            masking=dict(
                probability=0.4, span=0.4, fill="noise", noise_mix=0.0, noise_snr=(-5.0, 5.0)
            ),
            loss=dict(cqt=0.0, visible=0.0),
            data=pipeline.default_config(
                source="mix",
                sample_rate=16000,
                seconds=1.0 if smoke else 4.0,
                batch_size=2 if smoke else 16,
                render=dict(instruments="free"),
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
                steps=4 if smoke else 1500,
                eval_every=4 if smoke else 500,
                eval_batches=1 if smoke else 4,
                save_every=4 if smoke else 250,
                log_every=2 if smoke else 50,
            ),
        )
    )
    return variants.finish(config, arg)
