"""mgen: hierarchical and multi-track music generation in JAX.

`mgen.codec`, `mgen.lm`, ... are model families with the same four files each: `model.py`,
`loss.py`, `task.py`, `sample.py`. `mgen.audio`, `mgen.nn`, `mgen.inputs` and `mgen.train` are what
they stand on. Nothing here imports TensorFlow or PyTorch at import time.
"""

import importlib.metadata
import os

__version__ = "0.1.0"

# The CPU runtime of jax 0.11 has a thread for each core, operations that wait hold theirs, and the
# one they wait for may then get none: the training step of configs/codec/tiny_16khz.py stops for
# ever on two cores, and collectives over virtual devices do (0.11.2). Read when jax first looks for
# devices, so it must be set before. More threads than cores cost nothing measurable.
if importlib.metadata.version("jax").startswith("0.11."):
    os.environ.setdefault("PJRT_NPROC", str(max(32, os.cpu_count() or 1)))
