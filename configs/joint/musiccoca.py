r"""MusicCoCa (Lyria Team 2025, Magenta RealTime): 12-layer ViT and text tower, 3-layer captioner.

  mgen train --config=joint/musiccoca --workdir=out/musiccoca --config.data.dataset=DATA \
    --config.data.vocabulary=VOCABULARY

As published: 10 s at 16 kHz, 768 dimensions, 12-layer ViT, 12-layer text tower on at most 128
tokens, 3-layer text decoder that attends to the audio, contrastive and captioning loss (Yu et al.
2022, which weighs captioning with 2 and contrast with 1). Patches of 16 x 16, the vocabulary's
size, batch and schedule are this repository's.
Hardware: a TPU pod or tens of GPUs; `:smoke` seconds on a CPU.
"""

import ml_collections

from mgen.configs import joint_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return joint_base.published(
        arg,
        model=dict(
            embed_dim=768,
            decoder_layers=3,
            audio_kind="vit",
            audio=dict(
                stride=(16, 16),
                class_tokens=1,
                norm_epsilon=1e-6,
                dtype="bfloat16",
                remat="dots",
            ),
            text=dict(
                vocab_size=32000,
                norm_position="pre",
                norm_epsilon=1e-6,
                token_types=0,
                embedding_norm=False,
                max_length=128,
                pooling="cls",
                dtype="bfloat16",
                remat="dots",
            ),
            mel=dict(mean=-4.0, std=4.0),
        ),
        data=dict(sample_rate=16000, seconds=10.0, batch_size=4096, text_length=128, workers=8),
        loss=dict(chunk=512, caption_weight=2.0),
        optimizer=dict(learning_rate=2e-4, b2=0.98, warmup=5000, weight_decay=0.01),
        train=dict(steps=100_000),
    )
