"""MuQ 300M (Zhu et al. 2025): Conformer on log-mel, told by residual codes of the mel spectrogram.

  mgen fit_codebook --features=mel --config=semantic/muq_300m --dataset=DATASET --out=out/mel_rvq \\
    --levels=8 --size=1024
  mgen train --config=semantic/muq_300m --workdir=out/muq --config.data.dataset=DATASET \\
    --config.targets.codebook=out/mel_rvq

316,344,320 parameters in the encoder: 128 log-mel bins every 10 ms, two residual convolution blocks
to 25 Hz, 12 Conformer blocks of 1024 with rotary positions. As published: 30 s crops, 60% of the
frames hidden by noise in spans of 0.4 s, 8 x 1024 residual codebooks. Norms take the place of
batch norms, so that no example depends on its batch mates, and noise that of mel frames instead of
samples.
Hardware: 32 GPUs in the paper.
Expected: no published loss. `:smoke` takes seconds on a CPU and needs a codebook too.
"""

import ml_collections

from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.train import loop, optim


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    smoke = variants.check(arg) == "smoke"
    # Mean and deviation of rendered scores; measure those of other data.
    mel = dict(n_fft=2048, hop=240, n_mels=16 if smoke else 128, floor=1e-5, mean=-5.4, std=3.3)
    config = ml_collections.ConfigDict(
        dict(
            family="semantic",
            seed=0,
            model=dict(
                sample_rate=24000,
                front=dict(
                    kind="mel", mel=mel, stack=4, channels=4 if smoke else 512, residual=True
                ),
                trunk=dict(
                    kind="conformer",
                    dim=32 if smoke else 1024,
                    heads=2 if smoke else 16,
                    layers=2 if smoke else 12,
                    ff=64 if smoke else 4096,
                    positions="rotary",
                    kernel_size=31,
                    final_norm=True,
                    dropout=0.1,
                    remat="none" if smoke else "dots",
                    dtype="float32" if smoke else "bfloat16",
                ),
                dropout=0.1,
            ),
            targets=dict(
                kind="mel_rvq",
                codebooks=2 if smoke else 8,
                codebook_size=16 if smoke else 1024,
                codebook="",
                mel=mel,
            ),
            masking=dict(
                probability=0.6, span=0.4, fill="noise", noise_mix=0.0, noise_snr=(-5.0, 5.0)
            ),
            loss=dict(cqt=0.0, visible=0.0),
            data=pipeline.default_config(
                sample_rate=24000,
                seconds=1.0 if smoke else 30.0,
                batch_size=2 if smoke else 192,
            ),
            optim=optim.default_config(
                name="adamw",
                learning_rate=1e-4,
                b2=0.98,
                weight_decay=0.01,
                schedule="cosine",
                warmup=2 if smoke else 10000,
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
