"""The codec's training step: who learns from what, when, and what is reported."""

import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from numpy.testing import assert_allclose

from mgen import tree
from mgen.codec import discriminators, loss
from mgen.codec.task import Task
from mgen.configs.codec import tiny_16khz, tiny_vae
from mgen.errors import UserError
from mgen.train import optim

RATE, SAMPLES, BATCH, START = 8000, 512, 4, 3


def make_config(adversarial: bool = False, balanced: bool = False, **model):
    losses = loss.default_config(
        time_l1=dict(weight=1.0),
        mel=dict(weight=0.1, windows=(128,), n_mels=(8,), log_l1=1.0),
        balancer=dict(enabled=balanced, decay=0.9),
    )
    gan = discriminators.default_config(start=START, update_every=2)
    if adversarial:
        losses.adversarial.update(weight=0.5, ramp=4)
        losses.features.weight = 1.0
        gan.update(stft_windows=(64,), stft_filters=2)
    fields = dict(
        sample_rate=RATE,
        filters=4,
        strides=(4, 4),
        latent_dim=8,
        num_codebooks=2,
        codebook_size=16,
        norm="none",
        causal=True,
    )
    return ml_collections.ConfigDict(
        dict(
            family="codec",
            seed=0,
            model=fields | model,
            loss=losses,
            discriminator=gan,
            optim=optim.default_config(name="adam", learning_rate=3e-3, ema=0.9),
            optim_d=optim.default_config(name="adam", learning_rate=1e-3),
            data=dict(seconds=SAMPLES / RATE, batch_size=BATCH),
            train=dict(steps=100),
        )
    )


def tones(seed: int, batch: int = BATCH) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    hz, phase = rng.uniform(100, 1000, (batch, 1)), rng.uniform(0, 6, (batch, 1))
    audio = 0.5 * np.sin(2 * np.pi * hz * np.arange(SAMPLES) / RATE + phase)
    return {"audio": jnp.asarray(audio[..., None], jnp.float32)}


def same(a, b) -> bool:
    return tree.fingerprint(a) == tree.fingerprint(b)


@pytest.fixture(scope="module")
def run():
    """A balanced GAN task with its states and metrics over 30 steps on one batch."""
    task = Task(make_config(adversarial=True, balanced=True))
    step = jax.jit(task.train_step)
    state, batch = jax.jit(task.init)(jax.random.key(0)), tones(0)
    states, metrics = [state], []
    for i in range(30):
        state, values = step(state, batch, jax.random.key(i))
        states.append(state)
        metrics.append(jax.device_get(values))
    return task, states, metrics


def test_loss_falls_on_one_batch(run):
    _, _, metrics = run
    assert metrics[-1]["time_l1"] < 0.8 * metrics[1]["time_l1"]
    assert all(np.isfinite(value) for values in metrics for value in values.values())
    assert {np.asarray(value).dtype for value in metrics[-1].values()} == {np.dtype("float32")}
    assert {np.shape(value) for value in metrics[-1].values()} == {()}


def test_discriminator_starts_and_rests_as_configured(run):
    """It moves from step START on, on even steps only; its optimiser too."""
    _, states, metrics = run
    for step, (before, after) in enumerate(itertools.pairwise(states[:9])):
        due = step >= START and step % 2 == 0
        for field in ("params", "opt_state"):
            old, new = (getattr(s, field)["discriminator"] for s in (before, after))
            assert same(old, new) != due, (field, step)
        assert metrics[step]["gan_active"] == float(step >= START)
        assert (metrics[step]["discriminator"] > 0) == (step >= START)


def test_codebooks_and_balancer_travel_in_the_state(run):
    task, states, _ = run
    assert set(states[0].variables) == {"codebook", "balancer"} == set(states[-1].variables)
    assert not states[0].variables["codebook"]["quantizer"]["initialized"]
    assert states[1].variables["codebook"]["quantizer"]["initialized"]
    weight = {name: value["weight"] for name, value in states[START].variables["balancer"].items()}
    assert weight["time_l1"] == pytest.approx(1 - 0.9**START, rel=1e-4)
    assert weight["adversarial"] == 0
    assert same(task.generator_params(states[-1]), states[-1].ema)
    assert not same(states[-1].ema, states[-1].params["generator"])


def test_gradients_are_those_of_each_sides_own_loss():
    """One forward pass gives what two textbook gradients give, each side's for itself."""
    config = make_config(adversarial=True)
    config.optim.ema = 0.0
    task = Task(config)
    state, batch, key = jax.jit(task.init)(jax.random.key(1)), tones(1), jax.random.key(2)
    target, step = batch["audio"], START + 2  # odd: 3 of 4 ramp steps, discriminator rests

    def estimate(generator):
        output, _ = task._apply(generator, state.variables, target, key, train=True)
        return output.audio, output.commitment

    def generator_loss(generator):
        audio, commitment = estimate(generator)
        real, fake = (
            task.discriminator.apply({"params": state.params["discriminator"]}, x)
            for x in (target, audio)
        )
        terms = loss.reconstruction(config.loss, RATE, target)
        total = terms["time_l1"](audio) + 0.1 * terms["mel"](audio) + commitment
        total += 0.5 * 0.75 * loss.generator_loss(fake)
        return total + loss.feature_matching(real, fake)

    def discriminator_loss(params):
        audio = estimate(state.params["generator"])[0]
        sides = [task.discriminator.apply({"params": params}, x) for x in (target, audio)]
        return loss.discriminator_loss(*sides)

    @jax.jit
    def both(params):
        return (
            jax.grad(generator_loss)(params["generator"]),
            jax.grad(discriminator_loss)(params["discriminator"]),
        )

    @jax.jit
    def ours(params, step):
        return task.micro_gradients(params, {**state.variables, "step": step}, batch, key)[0]

    expected_generator, expected_discriminator = both(state.params)
    at_odd, at_even = ours(state.params, step), ours(state.params, step + 1)
    before = ours(state.params, START - 1)

    def close(a, b):
        assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # float32 sums in another order

    jax.tree.map(close, at_odd["generator"], expected_generator)
    jax.tree.map(close, at_even["discriminator"], expected_discriminator)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(at_even["discriminator"]))
    for resting in (at_odd, before):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(resting["discriminator"]))


@pytest.fixture(scope="module")
def plain():
    """A task without discriminator or quantiser, so that a batch is the sum of its parts."""
    config = make_config(bottleneck="none")
    config.optim.ema = 0.0
    task = Task(config)
    return task, jax.jit(task.init)(jax.random.key(3)), jax.jit(task.eval_step)


def test_without_discriminator_there_is_no_gan(plain):
    task, state, _ = plain
    assert set(state.params) == set(state.opt_state) == {"generator"}
    _, metrics = jax.eval_shape(task.train_step, state, tones(0), jax.random.key(0))
    assert set(metrics) == {"loss", "time_l1", "mel", "grad_norm"}


def test_accumulated_gradients_are_the_batch_gradients(plain):
    task, state, _ = plain
    accumulating = Task(make_config(bottleneck="none"))
    accumulating.config.optim.accumulate = 2
    variables = {"step": jnp.zeros((), jnp.int32)}
    inputs = (state.params, variables, tones(5), jax.random.key(0))
    whole, halves = (jax.jit(t.gradients)(*inputs)[0] for t in (task, accumulating))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-3, atol=1e-5), whole, halves)


def test_evaluation_is_the_mean_over_examples_and_skips_silence(plain):
    _, state, evaluate = plain
    batch, key = tones(6, 2), jax.random.key(0)
    together = evaluate(state, batch, key)
    alone = [evaluate(state, {"audio": batch["audio"][i : i + 1]}, key) for i in range(2)]
    for name in ("si_sdr", "mel_distance", "loss"):
        assert_allclose(together[name], np.mean([m[name] for m in alone]), rtol=1e-4)
    silenced = {"audio": batch["audio"].at[1].set(0.0)}
    assert_allclose(evaluate(state, silenced, key)["si_sdr"], alone[0]["si_sdr"], rtol=1e-4)


def test_summaries_show_target_and_reconstruction(plain):
    task, state, _ = plain
    shown = task.summaries(state, tones(7), jax.random.key(0))
    audio, rate = shown["audio/reconstruction"]
    assert audio.shape == (4, SAMPLES, 1) and rate == RATE
    picture = shown["image/target_over_reconstruction"]
    assert picture.ndim == 3 and picture.shape[-1] == 3
    assert picture.min() >= 0 and picture.max() == 1


def test_manifest_and_batch_spec():
    task = Task(make_config())
    assert task.manifest() == {
        "sample_rate": RATE,
        "channels": 1,
        "hop": 16,
        "frame_rate": 500.0,
        "bottleneck": "rvq",
        "latent_dim": 8,
        "codebooks": 2,
        "codebook_size": 16,
    }
    assert task.batch_spec(3)["audio"].shape == (3, SAMPLES, 1)
    assert "codebooks" not in Task(make_config(bottleneck="vae")).manifest()


def test_warnings_say_what_to_do():
    task = Task(make_config(adversarial=True))
    fine = {"codebook_perplexity_min": 12.0, "discriminator": 1.5, "gan_active": 1.0}
    assert task.warnings(fine) == []
    (collapse,) = task.warnings(fine | {"codebook_perplexity_min": 0.5})
    assert "collapsed" in collapse and "optim.learning_rate" in collapse
    (won,) = task.warnings(fine | {"discriminator": 1e-3})
    assert "optim_d.learning_rate" in won
    assert task.warnings(fine | {"discriminator": 0.0, "gan_active": 0.0}) == []


def test_adversarial_weights_need_a_discriminator():
    config = make_config(adversarial=True)
    config.discriminator.stft_windows = ()
    with pytest.raises(UserError, match="both or neither"):
        Task(config)


@pytest.mark.parametrize("module", [tiny_16khz, tiny_vae])
def test_tiny_configs_train_a_step(module):
    """The shipped size is built abstractly, the smoke size takes a step; both stream."""
    full = Task(module.get_config())
    state = jax.eval_shape(full.init, jax.random.key(0))
    assert 3e5 < tree.size(state.params) < 1e6
    assert full.codec_config.causal and full.codec_config.pad_mode == "constant"
    assert full.manifest()["frame_rate"] == 50.0

    task = Task(module.get_config("smoke"))
    audio = 0.1 * jax.random.normal(jax.random.key(1), task.batch_spec(2)["audio"].shape)
    state = jax.jit(task.init)(jax.random.key(0))
    _, metrics = jax.jit(task.train_step)(state, {"audio": audio}, jax.random.key(2))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
