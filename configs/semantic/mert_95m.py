"""MERT 95M (Li et al. 2023): HuBERT base on 24 kHz waveforms, told by codec codes and a CQT.

  mgen train --config=semantic/mert_95m --workdir=out/mert --config.data.dataset=TOKENS \\
    --config.data.audio=DATASET

94,371,712 parameters in the encoder: seven convolutions to 75 Hz, 12 post-norm blocks of 768.
Targets: the 8 codebooks of configs/codec/encodec_24khz.py as `mgen tokenize` writes them, and 336
bins of a constant-Q transform. As published: 5 s crops, batches of 1.5 h, masks of 5 frames with
fairseq's probability 0.8 (58% of the frames), music of another crop over half of the crops.
Hardware: 64 GPUs in the paper.
Expected: no published loss. `:smoke` takes seconds on a CPU.
"""

import ml_collections

from mgen.configs import variants
from mgen.inputs import pipeline
from mgen.train import loop, optim


def get_config(
    arg: str = "",
    dim: int = 768,
    heads: int = 12,
    layers: int = 12,
    large: bool = False,
    batch_size: int = 1080,
    learning_rate: float = 5e-4,
) -> ml_collections.ConfigDict:
    """mert_330m calls this with its widths; `large` is HuBERT large's way of normalising."""
    smoke = variants.check(arg) == "smoke"
    dropout = 0.0 if large else 0.1
    config = ml_collections.ConfigDict(
        dict(
            family="semantic",
            seed=0,
            codec=dict(
                codebooks=8,
                codebook_size=16 if smoke else 1024,
                frame_rate=75.0,
                sample_rate=24000,
            ),
            model=dict(
                sample_rate=24000,
                front=dict(
                    kind="conv",
                    dims=(8 if smoke else 512,) * 7,
                    kernels=(10, 3, 3, 3, 3, 2, 2),
                    strides=(5, 2, 2, 2, 2, 2, 2),
                    bias=large,
                    norm="layer" if large else "group",
                    normalize=large,
                ),
                trunk=dict(
                    kind="transformer",
                    dim=32 if smoke else dim,
                    heads=2 if smoke else heads,
                    layers=2 if smoke else layers,
                    ff=64 if smoke else 4 * dim,
                    norm_position="pre" if large else "post",
                    bias=True,
                    causal=False,
                    dropout=dropout,
                    remat="none" if smoke else "dots",
                    dtype="float32" if smoke else "bfloat16",
                ),
                feature_norm=True,
                position_kernel=8 if smoke else 128,
                position_groups=4 if smoke else 16,
                dropout=dropout,
            ),
            targets=dict(
                kind="codes",
                codebooks=8,
                codebook_size=16 if smoke else 1024,
                head="cosine",
                head_dim=128 if large else 64,
                temperature=0.1,
                cqt_bins=12 if smoke else 336,
                cqt_bins_per_octave=12 if smoke else 48,
                cqt_fmin=440.0 if smoke else 32.7,
            ),
            masking=dict(
                probability=0.58,
                span=5 / 75,
                fill="embedding",
                noise_mix=0.5,
                noise_snr=(-5.0, 5.0),
            ),
            loss=dict(cqt=1.0, visible=0.0),
            data=pipeline.default_config(
                view="audio_codes",
                sample_rate=24000,
                seconds=1.0 if smoke else 5.0,
                batch_size=2 if smoke else batch_size,
            ),
            optim=optim.default_config(
                name="adamw",
                learning_rate=learning_rate,
                b2=0.98,
                weight_decay=0.01,
                schedule="linear",
                warmup=2 if smoke else 32000,
                clip=10.0,
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
