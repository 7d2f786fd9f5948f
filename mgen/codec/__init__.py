"""Neural audio codecs: one SEANet-type family by config, with RVQ, factorised RVQ, VAE or no
bottleneck.

`config.py` (what a codec is), `blocks.py` (encoder, decoder), `quantize.py` and `vae.py`
(bottlenecks), `model.py` (the codec), `loss.py`, `discriminators.py`, `task.py` (training),
`sample.py` (inference: whole, in chunks, as a stream). May import `mgen.nn`, `mgen.audio`,
`mgen.typing`, and in `task.py` `mgen.train`; no other family, which gets a codec passed in.
"""
