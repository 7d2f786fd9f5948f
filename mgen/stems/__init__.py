"""Diffusion over the waveforms of a song's stems: one network generates all of them, the missing
ones, or takes a mix apart.

`config` and `unet` (the network). May import mgen.nn, mgen.train.task and what lies below them; no
other family imports this one.
"""
