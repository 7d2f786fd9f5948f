"""mgen: hierarchical and multi-track music generation in JAX.

`mgen.codec`, `mgen.lm`, ... are model families with the same four files each: `model.py`,
`loss.py`, `task.py`, `sample.py`. `mgen.audio`, `mgen.nn`, `mgen.inputs` and `mgen.train` are what
they stand on. Nothing here imports TensorFlow or PyTorch at import time.
"""

import importlib.metadata
import os

__version__ = "0.1.0"

# The CPU runtime of jax 0.11 runs independent operations at once and can then wait for ever for a
# thread: the training step of configs/codec/tiny_16khz.py stops on two cores (0.11.2). Read when
# jax first looks for devices, so it must be set before; other releases may not know the flag.
_SCHEDULER = "--xla_cpu_enable_concurrency_optimized_scheduler"
if importlib.metadata.version("jax").startswith("0.11."):
    _flags = os.environ.get("XLA_FLAGS", "")
    if _SCHEDULER not in _flags:
        os.environ["XLA_FLAGS"] = f"{_flags} {_SCHEDULER}=false".strip()
