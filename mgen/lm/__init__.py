"""Token language models: a decoder-only Transformer over the K codebook streams of a codec.

`layouts` (codes to sequence and back), `model` (training), `decode` (weights and cache for
inference), `sample` (generation), `loss`, `task`. May import mgen.nn, mgen.train.task and what lies
below them; no other family imports this one.
"""
