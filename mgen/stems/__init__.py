"""Diffusion over a song's stems: one network generates all of them, the missing ones, or takes a
mix apart; and a separator by regression to compare with.

Over waveforms `unet` and `sample`; in the latents of a codec, which comes from outside, `dit`,
`condition`, `latents`, `mixture` and `latent_sample`; `separator`; `config`, `objective`, `model`,
`loss` and `task` of all. May import mgen.nn, mgen.diffusion, mgen.metrics, mgen.train.task and what
lies below them; no other family imports this one.
"""
