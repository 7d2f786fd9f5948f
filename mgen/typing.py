"""The tensor alphabet: one letter for each axis, used in every public signature.

  B  batch            S  stems              C  audio channels (1 or 2)
  T  audio samples    F  frames (of a codec, an STFT, a token stream)
  K  codebooks        V  codebook size or vocabulary
  D  model width      H  attention heads    M  mel or frequency bins
  N  notes or other ragged items            L  sequence positions of a language model

Audio is channels-last everywhere: `[T, C]` on the host, `[B, T, C]` in models, `[B, S, T, C]` for
stems; float32 in [-1, 1].
"""

from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Bool, Complex, Float, Int, PyTree, UInt8
from numpy import ndarray

Key: TypeAlias = jax.Array
Params: TypeAlias = PyTree[Array]
Batch: TypeAlias = dict[str, Any]
Metrics: TypeAlias = dict[str, Array]

__all__ = [
    "Array",
    "Batch",
    "Bool",
    "Complex",
    "Float",
    "Int",
    "Key",
    "Metrics",
    "Params",
    "PyTree",
    "UInt8",
    "ndarray",
]
