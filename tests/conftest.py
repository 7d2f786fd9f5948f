"""Settings of the whole test suite."""

import os
import tempfile
from pathlib import Path

# Before jax is imported: tests share compiled programs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MGEN_NO_PROGRESS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "mgen-test-compilation-cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
