"""The task: loss and metrics of a batch, joint tokens, learning, configs of full size."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.kmeans import Codebook
from mgen.lm.stages import FrozenStage
from mgen.lm.task import Task


def config_of(name, arg="smoke"):
    return importlib.import_module(f"configs.hierarchy.{name}").get_config(arg)


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


def learned(config, **optimizer):
    """What 40 steps on one batch lead to: task, batch, state, losses, last metrics."""
    fields = dict(learning_rate=3e-3, schedule="constant", warmup=0, ema=0.0) | optimizer
    config.optim.update(fields)
    task = Task(config)
    batch = random_batch(task)
    state = jax.jit(task.init)(jax.random.key(0))
    step = jax.jit(task.train_step)
    losses = []
    for i in range(40):
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(float(metrics["cross_entropy"]))
    return task, batch, state, losses, metrics


def test_parameters_of_bfloat16_learn_and_their_average_is_finer():
    _, _, state, losses, _ = learned(config_of("tiny_musicgen"), params="bfloat16", ema=0.9)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    moments = jax.tree.leaves(state.opt_state.inner)
    assert {x.dtype for x in moments + jax.tree.leaves(state.ema)} == {
        jnp.dtype(jnp.float32),
        jnp.dtype(jnp.int32),
    }
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "name, arg",
    [
        ("tiny_musicgen", "smoke"),
        ("musicgen_small", "smoke"),
        ("tiny_musicgen_melody", "smoke"),
        ("tiny_tune", "smoke"),
        ("tiny_musiclm", "semantic_melody,smoke"),
        ("tiny_musiclm", "coarse,smoke"),
        ("tiny_magenta_rt", "smoke"),
        ("tiny_soundstorm", "smoke"),
        ("tiny_magnet", "smoke"),
        ("tiny_musicrl", "smoke"),
    ],
)
def test_smoke_config_learns_a_batch(name, arg):
    task, batch, state, losses, metrics = learned(config_of(name, arg))
    # At first near ln V, then towards the ln 3 of the three codes that occur.
    assert abs(losses[0] - np.log(task.lm_config.codebook_size)) < 1.0
    assert losses[-1] < 0.5 * losses[0]
    assert set(metrics) >= {"loss", "accuracy", "grad_norm"}
    evaluate = jax.jit(task.eval_step)
    held_out, again = (evaluate(state, batch, jax.random.key(i)) for i in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, held_out, again)
    np.testing.assert_allclose(held_out["loss"], held_out["cross_entropy"])
    # What the model says without its condition is another thing.
    assert abs(held_out.pop("cross_entropy_alone") - held_out["cross_entropy"]) > 1e-4
    means = [v for name, v in held_out.items() if name.startswith("cross_entropy_")]
    if task.lm_config.objective == "next":
        assert len(means) == task.lm_config.num_codebooks
        np.testing.assert_allclose(held_out["cross_entropy"], np.mean(means), rtol=1e-5)


def test_baseline_is_the_unigram_loss():
    task = Task(config_of("tiny_musicgen"))
    batches = [random_batch(task, seed) for seed in (0, 1)]
    score = task.baseline(iter(batches), iter(batches))["unigram_cross_entropy"]
    # Three codes evenly; the other 509 counted once each take a share of the mass.
    tokens = 2 * np.prod(batches[0]["acoustic"].shape[:2])
    expected = -np.log((tokens / 3 + 1) / (tokens + 512))
    assert abs(score - expected) < 0.1


def book(task, seed=0):
    about = task.config.streams.joint
    shape = (about.codebooks, about.codebook_size, about.embed_dim)
    return Codebook(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_joint_tokens_are_those_of_the_codebook(tmp_path):
    task = Task(config_of("tiny_musiclm", "coarse,smoke"))
    own = book(task)
    own.save(tmp_path)
    task.config.stage.joint_codebook = str(tmp_path)
    assert task.requires()["parents"] == {"joint_codebook": own.fingerprint}
    state = task.warm_start(jax.jit(task.init)(jax.random.key(0)))
    batch = random_batch(task)
    codes, condition = task.inputs(state.variables, batch)
    joint, semantic = condition.aligned
    np.testing.assert_array_equal(joint[:, 0], own.encode(np.asarray(batch["joint_embedding"])))
    assert (joint == joint[:, :1]).all()
    np.testing.assert_array_equal(semantic, np.repeat(batch["semantic"], 2, axis=1))
    np.testing.assert_array_equal(codes, batch["acoustic"][..., :2])


def test_a_codebook_of_another_shape_is_refused(tmp_path):
    task = Task(config_of("tiny_musiclm", "coarse,smoke"))
    with pytest.raises(UserError, match=r"stage.joint_codebook is empty"):
        task.warm_start(None)
    Codebook(np.zeros((2, 3, 64), np.float32)).save(tmp_path)
    task.config.stage.joint_codebook = str(tmp_path)
    with pytest.raises(UserError, match=r"shape is \(2, 3, 64\), expected \(2, 32, 64\)"):
        task.requires()


def test_manifest_names_the_streams():
    task = Task(config_of("tiny_musiclm", "fine"))
    assert task.requires() == {"streams": {"acoustic": task.config.streams.acoustic.to_dict()}}
    assert task.manifest()["streams"] == task.requires()["streams"]
    assert task.stage.frames(task.config.data.seconds) == 2 * 50 and task.lm_config.sizes == (
        512,
        512,
    )


FULL_SIZE = pytest.mark.parametrize(
    "name, arg, parameters, frames",
    [
        ("musicgen_small", "", 420_371_456, 1500),
        ("musicgen_medium", "", 1_838_737_920, 1500),
        ("musicgen_large", "", 3_256_956_928, 1500),
        ("musicgen_melody", "", 1_385_625_600, 1500),
        ("musiclm_430m", "semantic", 417_397_248, 750),
        ("musiclm_430m", "semantic_melody", 430_004_736, 750),
        ("musiclm_430m", "coarse", 424_741_376, 500),
        ("musiclm_430m", "fine", 423_687_680, 150),
        ("magenta_rt_base", "", 200_398_848, 300),
        ("soundstorm_350m", "", 316_015_616, 1500),
        ("stemgen_250m", "", 250_664_960, 1000),
        ("musicgen_style", "", 1_848_184_320, 1500),
        ("magnet_small", "", 420_371_456, 1500),
        ("vampnet", "coarse", 338_224_000, 574),
        ("vampnet", "fine", 293_662_080, 172),
        ("musicrl", "", 434_182_656, 250),
        ("yue_7b", "tracks", 6_493_057_024, 4000),
        ("yue_7b", "residual", 1_000_450_048, 300),
    ],
)


@FULL_SIZE
def test_full_size_configs(name, arg, parameters, frames):
    task = Task(config_of(name, arg))
    state = jax.eval_shape(task.init, jax.random.key(0))
    assert tree.size(state.params) == parameters
    assert task.stage.frames(task.config.data.seconds) == frames
    batch = task.batch_spec(task.config.data.batch_size)
    new_state, metrics = jax.eval_shape(task.train_step, state, batch, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, new_state) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["loss"].shape == ()


@FULL_SIZE
def test_full_size_sampling_has_a_shape(name, arg, parameters, frames):
    task = Task(config_of(name, arg))
    state = jax.eval_shape(task.init, jax.random.key(0))
    assert tree.size(state.params) == parameters
    _, condition = jax.eval_shape(task.inputs, state.variables, task.batch_spec(2))
    condition = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), condition)

    def generate(params, seeds):
        lm = FrozenStage.from_trained(task.config, params, {}).lm
        return lm.generate(frames=frames, seeds=seeds, condition=condition)

    codes = jax.eval_shape(generate, state.params, jnp.zeros(2, jnp.int32))
    assert codes.shape == (2, frames, task.lm_config.num_codebooks)
