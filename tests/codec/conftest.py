"""Codec weights without compiling their initialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.codec.model import Codec, init_codec


@functools.cache
def _random_variables(config, gain):
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if "kernel" in name:
            std = gain * np.prod(leaf.shape[:-1] if leaf.ndim == 3 else leaf.shape[:1]) ** -0.5
            return jnp.asarray(std * rng.standard_normal(leaf.shape), jnp.float32)
        if "bias" in name or "log" in name:
            return jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32)
        if "scale" in name or name in ("alpha", "cluster_size"):
            return jnp.asarray(gain * rng.uniform(0.7, 1.4, leaf.shape), jnp.float32)
        if name == "initialized":
            return jnp.zeros((), jnp.bool_)
        return jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)

    shapes = jax.eval_shape(lambda key: init_codec(config, key), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, dict(shapes))


@pytest.fixture(scope="session")
def random_variables():
    """(config, gain=1) -> variables that keep signals of order one; the same on each call."""
    return lambda config, gain=1.0: _random_variables(config, gain)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(config, method, static, variables, *args):
    return Codec(config).apply(variables, *args, *static, method=method)


@pytest.fixture(scope="session")
def run():
    """(config, variables, *arrays, method="__call__") -> the method of the codec, jitted; a pass is
    in evaluation mode.
    """

    def call(config, variables, *args, method="__call__"):
        static = (False,) if method == "__call__" else ()
        return _run(config, method, static, variables, *args)

    return call
