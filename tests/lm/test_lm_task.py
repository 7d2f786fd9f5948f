"""The task: loss and metrics of a batch, condition dropout, learning, configs of full size."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.lm.task import Task, drop_condition


def config_of(name, arg=""):
    return importlib.import_module(f"configs.lm.{name}").get_config(arg)


def random_batch(task, seed=0):
    rng = np.random.default_rng(seed)
    batch = {}
    for name, spec in task.batch_spec(task.config.data.batch_size).items():
        if spec.dtype == jnp.float32:
            batch[name] = jnp.asarray(rng.normal(size=spec.shape), jnp.float32)
        elif spec.dtype == jnp.bool_:
            batch[name] = jnp.ones(spec.shape, bool)
        else:
            batch[name] = jnp.asarray(rng.integers(0, 3, spec.shape), jnp.int32)
    return batch


@pytest.mark.parametrize("name", ["tiny", "musicgen_small"])
def test_smoke_config_learns_a_batch(name):
    config = config_of(name, "smoke")
    config.optim.update(learning_rate=3e-3, schedule="constant", warmup=0, ema=0.0)
    task = Task(config)
    batch = random_batch(task)
    state = jax.jit(task.init)(jax.random.key(0))
    step = jax.jit(task.train_step)
    losses = []
    for i in range(30):
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(float(metrics["cross_entropy"]))
    # At first near ln V, then towards the ln 3 of the three codes that occur.
    assert abs(losses[0] - np.log(config.codec.codebook_size)) < 1.0
    assert losses[-1] < 0.5 * losses[0]
    assert set(metrics) >= {"loss", "accuracy", "grad_norm", "cross_entropy_0", "cross_entropy_3"}
    evaluate = jax.jit(task.eval_step)
    held_out, again = (evaluate(state, batch, jax.random.key(i)) for i in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, held_out, again)
    np.testing.assert_allclose(held_out["loss"], held_out["cross_entropy"])
    np.testing.assert_allclose(
        held_out["cross_entropy"],
        np.mean([held_out[f"cross_entropy_{k}"] for k in range(4)]),
        rtol=1e-5,
    )


def test_condition_dropout_rates():
    n = 4000
    batch = {
        "attributes": jnp.ones((n, 3), jnp.int32),
        "condition_mask": jnp.ones((n, 2), bool),
    }
    dropped = drop_condition(jax.random.key(0), batch, 0.2, 0.5)
    fields = np.asarray(dropped["attributes"])
    gone = ~np.asarray(dropped["condition_mask"]).any(axis=1)
    # Four standard deviations.
    assert abs(gone.mean() - 0.2) < 4 * np.sqrt(0.16 / n)
    assert abs(fields[~gone].mean() - 0.5) < 4 * np.sqrt(0.25 / (3 * n))
    assert not fields[gone].any()
    same = drop_condition(jax.random.key(0), batch, 0.0, 0.0)
    jax.tree.map(np.testing.assert_array_equal, same, batch)


def test_baseline_is_the_unigram_loss():
    task = Task(config_of("tiny", "smoke"))
    batches = [random_batch(task, seed) for seed in (0, 1)]
    score = task.baseline(iter(batches), iter(batches))["unigram_cross_entropy"]
    # Three codes evenly; the other 509 counted once each take a share of the mass.
    tokens = 2 * np.prod(batches[0]["codes"].shape[:2])
    expected = -np.log((tokens / 3 + 1) / (tokens + 512))
    assert abs(score - expected) < 0.1


def test_manifest_names_the_codec():
    task = Task(config_of("tiny"))
    assert task.requires() == {"streams": {"acoustic": task.manifest()}}
    assert set(task.manifest()) == {"codebooks", "codebook_size", "frame_rate", "sample_rate"}
    assert task.frames == task.config.data.seconds * task.config.codec.frame_rate


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("musicgen_small", 420_371_456),
        ("musicgen_medium", 1_838_737_920),
        ("musicgen_large", 3_256_956_928),
    ],
)
def test_full_size_configs(name, parameters):
    task = Task(config_of(name))
    state = jax.eval_shape(task.init, jax.random.key(0))
    assert tree.size(state.params) == parameters
    batch = task.batch_spec(task.config.data.batch_size)
    assert batch["codes"].shape == (192, 1500, 4)
    new_state, metrics = jax.eval_shape(task.train_step, state, batch, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, new_state) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["loss"].shape == ()
