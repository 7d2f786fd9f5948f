"""Self-supervised music encoders: features of any layer, for semantic tokens and probes.

`config`, `frontend` (audio to frames), `model` (front end, trunk, heads), `targets` (what masked
frames must tell), `masking`, `loss`, `task` (training), `sample` (features of audio of any length).
May import mgen.nn, mgen.audio, mgen.kmeans, in `task` mgen.train.task; no other family imports this
one.
"""
