"""Small models of every kind, with weights that make history and conditions count."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.lm.condition import Condition, complete
from mgen.lm.config import LMConfig
from mgen.lm.model import LM

B, F = 3, 5
BASE = LMConfig(
    sizes=(11, 11, 11),
    dim=16,
    heads=4,
    layers=2,
    ff=24,
    condition_width=6,
    attribute_sizes=(3, 5),
    scan=False,
)
VARIANTS = {
    "musicgen": BASE,
    "musiclm": dataclasses.replace(
        BASE,
        layout="flatten",
        sizes=(11, 9, 5),
        prefix=((7, 7), (5,)),
        aligned=((5,),),
        condition_width=0,
        positions="relative",
        gated=True,
        norm="rms",
    ),
    "llama-like": dataclasses.replace(
        BASE,
        positions="rope",
        norm="rms",
        kv_heads=2,
        activation="silu",
        gated=True,
        window=5,
        sink=2,
        aligned=((5, 5),),
        front=(16, 4),
    ),
    "post-norm": dataclasses.replace(
        BASE,
        layout="parallel",
        aligned=((5,),),
        norm_position="post",
        positions="none",
        bias=True,
        activation="relu",
    ),
    "depth": dataclasses.replace(
        BASE,
        layout="parallel",
        condition_width=0,
        attribute_sizes=(),
        positions="rope",
        depth_layers=1,
        depth_dim=8,
        depth_heads=2,
        depth_ff=16,
    ),
}


def condition_of(config, batch=B, frames=F, seed=0):
    """A condition of everything that a model reads."""
    rng = np.random.default_rng(seed)
    mask = np.arange(4)[None] < rng.integers(1, 5, batch)[:, None]
    vectors = rng.normal(size=(batch, 4, 6)).astype(np.float32)
    front = tuple(
        rng.normal(size=(batch, 2 + i, w)).astype("f") for i, w in enumerate(config.front)
    )
    given = Condition(
        attributes=rng.integers(0, 3, (batch, 2)) if config.attribute_sizes else None,
        vectors=vectors if config.condition_width else None,
        mask=mask if config.condition_width else None,
        front=front,
        prefix=tuple(
            rng.integers(0, 5, (batch, 2 + i, len(s))) for i, s in enumerate(config.prefix)
        ),
        aligned=tuple(rng.integers(0, 5, (batch, frames, len(s))) for s in config.aligned),
    )
    return complete(config, given, batch, frames)


def codes_of(config, frames=F, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, config.sizes, (B, frames, len(config.sizes))), jnp.int32)


def random_params(config, scale=0.2):
    """Away from the initial ones and zeros of norms and biases. Drawn by NumPy: XLA would compile
    the initialisers for longer than most tests take."""
    inputs = codes_of(config), condition_of(config)
    params = jax.eval_shape(LM(config).init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(1)

    def draw(path, spec):
        start = 1.5 * (path[-1].key == "scale")
        width = spec.shape[0] if spec.ndim > 1 else 1
        spread = np.hypot(scale, 1.5 / np.sqrt(width)) if spec.ndim > 1 else scale
        return jnp.asarray(start + spread * rng.normal(size=spec.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, params)


@pytest.fixture(scope="session", params=VARIANTS)
def case(request):
    """(config, params) of each kind of model."""
    config = VARIANTS[request.param]
    return config, random_params(config)


@pytest.fixture(scope="session")
def small():
    """The helpers above, for tests that build models of their own."""
    names = dict(BASE=BASE, VARIANTS=VARIANTS, codes_of=codes_of, condition_of=condition_of)
    return types.SimpleNamespace(**names, random_params=random_params, B=B, F=F)
