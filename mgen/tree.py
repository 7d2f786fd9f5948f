"""Small pytree helpers."""

import hashlib
import math
from typing import Any

import jax
import numpy as np

from mgen.typing import Params


def size(tree: Params) -> int:
    """Number of scalars in `tree`; works on arrays and on the ShapeDtypeStructs of
    `jax.eval_shape`."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def fingerprint(tree: Any) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of every leaf: equal exactly when the
    trees are bit-identical."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
