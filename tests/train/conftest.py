"""A task small enough to train in a test: linear regression on data that Grain draws."""

import grain.python as grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mgen.train import loop, optim
from mgen.train.task import Task

WIDTH, BATCH = 4, 8


class LinearTask(Task):
    family = "linear"

    def batch_spec(self, batch_size):
        return {"x": jax.ShapeDtypeStruct((batch_size, WIDTH), np.float32)}

    def init_variables(self, key):
        weights = jax.random.normal(key, (WIDTH, WIDTH))
        return {"params": {"weights": weights}, "stats": {"seen": jnp.zeros(())}}

    def loss(self, params, variables, batch, key, train):
        noise = 0.1 * jax.random.normal(key, batch["x"].shape)
        target = jnp.flip(batch["x"], -1)
        error = (batch["x"] + noise) @ params["weights"] - target
        seen = variables["stats"]["seen"] + batch["x"].shape[0] * train
        return jnp.mean(error**2), ({"abs": jnp.mean(jnp.abs(error))}, {"stats": {"seen": seen}})


def _draw(element, rng):
    return {"x": rng.normal(size=WIDTH).astype(np.float32), "index": np.int64(element)}


def make_data(train: bool, process_index: int = 0, process_count: int = 1):
    source = grain.MapDataset.range(64).seed(0)
    if train:
        source = source.shuffle().repeat()
    source = source[process_index::process_count].random_map(_draw)
    return iter(source.to_iter_dataset().batch(BATCH // process_count, drop_remainder=True))


def make_config(**train) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            family="linear",
            seed=1,
            model=dict(width=WIDTH),
            optim=optim.default_config(learning_rate=0.05, ema=0.9, clip=1.0),
            data=dict(batch_size=BATCH, workers=0),
            train=loop.default_config(**dict(steps=12, log_every=4, save_every=5) | train),
        )
    )


@pytest.fixture
def linear():
    """(task class, make_config, make_data) of the toy task."""
    return LinearTask, make_config, make_data
