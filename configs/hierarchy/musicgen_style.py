"""MusicGen-Style (Rouard et al. 2024) at medium size: a text, and the style of an excerpt.

  mgen fit_codebook --encoder=MERT --layer=7 --rate=5 --levels=6 --dataset=DATA --out=BOOK
  mgen tokenize --codec=... --text_encoder=T5_BASE --style=MERT --style_codebook=BOOK ...
  mgen train --config=hierarchy/musicgen_style --workdir=out/style --config.data.dataset=TOKENS
  mgen generate --lm=out/style --style=clip.wav --style_model=MERT --style_codebook=BOOK \\
      --prompt="a slow waltz" --guidance_by=text=3,style=2 ...

1.5 to 4.5 s of residual tokens at 5 Hz stand before the codes; a random number of their 6 levels is
known in training, 3 in generation: few levels carry the style and not the notes. The paper learns
the quantiser with the language model, here it is k-means on the encoder's features.
1,838,737,920 + 9,446,400 parameters.
Hardware: a pod slice or a cluster of GPUs. Everything else as configs/hierarchy/musicgen_small.py.
"""

import ml_collections

from mgen.configs.hierarchy import musicgen_small


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return musicgen_small.get_config(arg, dim=1536, heads=24, layers=48, kind="style")
