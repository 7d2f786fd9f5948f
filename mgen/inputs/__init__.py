"""Input pipelines: what turns a prepared dataset into numpy batches on the host.

`record` is the one record type, `render` plays scores, `transforms` augments, `tokens` stores
codes, `pipeline` is Grain. Imports `mgen.audio` and the top-level helpers only; no family is
imported here, and no TensorFlow or PyTorch. Imported by `mgen.train`, the families' tasks,
`launch/` and `data/`.
"""
