"""Diffusion over the waveforms of a song's stems: one network generates all of them, the missing
ones, or takes a mix apart; and a separator by regression to compare with.

`config` and `unet` (the denoiser's network), `separator`, `model`, `loss`, `task`. May import
mgen.nn, mgen.diffusion, mgen.metrics, mgen.train.task and what lies below them; no other family
imports this one.
"""
