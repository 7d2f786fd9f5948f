"""w2v-BERT-like encoder, 0.6B (Chung et al. 2021; MusicLM's semantic tokens), with BEST-RQ targets.

  mgen train --config=semantic/w2vbert_600m --workdir=out/w2vbert --config.data.dataset=DATASET

607,563,136 parameters in the encoder: 80 log-mel bins every 10 ms, two convolutions to 25 Hz, 24
Conformer blocks of 1024 with relative positions. The contrastive half of w2v-BERT's loss is left
out: masked prediction of random-projection codes alone (Chiu et al. 2022).
MusicLM clusters layer 7 of the upper 12. Batches, masking and schedule as BEST-RQ has them.
Hardware: a TPU pod slice.
Expected: no published loss; accuracy well above the unigram share, perplexity in the thousands.
`:smoke` takes seconds on a CPU.
"""

import ml_collections

from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.train import loop, optim


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    smoke = variants.check(arg) == "smoke"
    # Mean and deviation of rendered scores; measure those of other data.
    mel = dict(n_fft=1024, hop=160, n_mels=16 if smoke else 80, floor=1e-5, mean=-5.4, std=3.3)
    config = ml_collections.ConfigDict(
        dict(
            family="semantic",
            seed=0,
            model=dict(
                sample_rate=16000,
                front=dict(kind="mel", mel=mel, stack=4, channels=4 if smoke else 128),
                trunk=dict(
                    kind="conformer",
                    dim=32 if smoke else 1024,
                    heads=2 if smoke else 8,
                    layers=2 if smoke else 24,
                    ff=64 if smoke else 4096,
                    positions="relative",
                    kernel_size=5,
                    dropout=0.1,
                    remat="none" if smoke else "dots",
                    dtype="float32" if smoke else "bfloat16",
                ),
                dropout=0.1,
            ),
            targets=dict(
                kind="random_projection",
                codebooks=1,
                codebook_size=64 if smoke else 8192,
                codebook_dim=16,
                mel=mel,
            ),
            # Spans of 0.4 s start at each 10 ms with probability 0.01.
            masking=dict(
                probability=0.33, span=0.4, fill="noise", noise_mix=0.0, noise_snr=(-5.0, 5.0)
            ),
            loss=dict(cqt=0.0, visible=0.0),
            data=pipeline.default_config(
                sample_rate=16000,
                seconds=1.0 if smoke else 10.0,
                batch_size=2 if smoke else 256,
            ),
            optim=optim.default_config(
                name="adamw",
                learning_rate=4e-4,
                b2=0.98,
                weight_decay=0.01,
                schedule="rsqrt",
                warmup=2 if smoke else 25000,
                clip=1.0,
            ),
            train=loop.default_config(
                steps=4 if smoke else 400_000,
                eval_every=4 if smoke else 5000,
                save_every=2 if smoke else 5000,
                log_every=2 if smoke else 100,
            ),
        )
    )
    return variants.finish(config, arg)
