"""mgen: hierarchical and multi-track music generation in JAX.

`mgen.codec`, `mgen.lm`, ... are model families with the same four files each: `model.py`,
`loss.py`, `task.py`, `sample.py`. `mgen.audio`, `mgen.nn`, `mgen.inputs` and `mgen.train` are what
they stand on. Nothing here imports TensorFlow or PyTorch at import time.
"""

__version__ = "0.1.0"
