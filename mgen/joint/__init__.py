"""Joint embedding of music and text: MuLan, CLAP, MusicCoCa, SLAP; and of melodies, as MusicLM.

`text`, `vit`, `resnet`, `htsat` (towers, which share `towers`), `config`, `model` (front end,
towers, projections, captioning decoder), `loss`, `task` (training), `sample` (embeddings of long
audio and of text). May import mgen.nn, mgen.audio, and in `task.py` mgen.train; no other family.
"""
