"""Random spans of frames for masked training; each example draws from a key of its own."""

import jax
import jax.numpy as jnp

from mgen.typing import Array, Bool, Key


def example_keys(key: Key, batch: int) -> Key:
    """One key an example, so that what happens to it does not depend on the size of the batch."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))


def covered(begins: Bool[Array, "N *K"], length: int) -> Bool[Array, "F *K"]:
    """Which of F = N - length + 1 frames lie in spans of `length` that begin at the True ones.

    The first length - 1 of `begins` lie before frame 0: all frames are covered equally often.
    """
    edge = jnp.zeros((1, *begins.shape[1:]), jnp.int32)
    count = jnp.cumsum(jnp.concatenate([edge, begins.astype(jnp.int32)]), axis=0)
    return count[length:] > count[:-length]
