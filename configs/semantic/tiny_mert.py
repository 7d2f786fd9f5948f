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
            codec=dict(codebooks=4, codebook_size=512, frame_rate=50.0, sample_rate=16000),
            model=dict(
                sample_rate=16000,
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
                # From C2: a window twice as long for each octave further down.
                cqt_bins=12 if smoke else 72,
                cqt_bins_per_octave=12,
                cqt_fmin=440.0 if smoke else 65.41,
                cqt_gain=10.0,
            ),
            masking=dict(
                probability=0.4, span=0.4, fill="embedding", noise_mix=0.0, noise_snr=(-5.0, 5.0)
            ),
            loss=dict(cqt=4.0, visible=0.0),
            data=pipeline.default_config(
                view="audio_codes",
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
