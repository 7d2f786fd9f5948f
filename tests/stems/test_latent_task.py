"""Training in latents: the codec and the scale in their place, what the loss sees, objectives."""

import dataclasses
import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import manifest, tree
from mgen.errors import UserError
from mgen.stems.latents import Scale, measure_scale
from mgen.stems.model import StemsConfig, denoiser
from mgen.stems.task import Task
from mgen.train import checkpoint, loop

FRAMES = 8


def experiment(**changes):
    config = importlib.import_module("mgen.configs.stems.tiny_latent").get_config("smoke")
    config.data.update(seconds=FRAMES * 320 / 16000, batch_size=3)
    config.model.update(layers=1)
    config.optim.update(learning_rate=1e-2, schedule="constant", warmup=0, ema=0.0)
    for path, value in changes.items():
        config.update_from_flattened_dict({path.replace("__", "."): value})
    return config


def tones(batch=3, seed=0):
    """Stems of a tone each, the third one missing in example 1; C major, unknown beats."""
    rng, time = np.random.default_rng(seed), np.arange(FRAMES * 320) / 16000
    hz, phase = rng.uniform(100, 2000, (batch, 4, 1)), rng.uniform(0, 6, (batch, 1, 1))
    stems = 0.2 * np.sin(2 * np.pi * hz * time + phase)[..., None].astype(np.float32)
    mask = np.ones((batch, 4), bool)
    mask[1, 2] = False
    stems = stems * mask[..., None, None]
    known = dict(beats_mask=np.zeros((batch, FRAMES), bool), stem_mask=mask, stems=stems)
    known |= dict(beats=np.zeros((batch, FRAMES, 2), np.float32), mix=stems.sum(axis=1))
    known |= dict(chords=np.zeros((batch, FRAMES), np.int32))
    melody = np.eye(12, dtype=np.float32)[rng.integers(0, 12, (batch, FRAMES))]
    known |= dict(melody=melody, melody_mask=np.ones((batch, FRAMES), bool))
    return jax.tree.map(jnp.asarray, known)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """Workdir of tiny_vae as `mgen train` leaves it after no step."""
    workdir = tmp_path_factory.mktemp("codec")
    config = importlib.import_module("mgen.configs.codec.tiny_vae").get_config("smoke")
    task = checkpoint.make_task(config)
    state = jax.jit(task.init)(jax.random.key(0))
    loop.claim_workdir(workdir, task, config, {}, False)
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(0, state, SimpleNamespace(get_state=dict), config.to_dict())
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def made(codec, tmp_path_factory):
    """Settings that name the codec and the scale of its latents of `tones`."""
    folder = tmp_path_factory.mktemp("scale")
    trained = checkpoint.load_trained(codec, "codec")
    module = checkpoint.make_task(trained.config).autoencoder()
    variables = {"params": trained.params}
    measure_scale(module, variables, [tones()], trained.fingerprint).save(folder)
    return dict(latents__codec=str(codec), latents__scale=str(folder))


@pytest.fixture(scope="module")
def states(made):
    """Objective -> task, state after 40 steps on one batch, losses, jitted evaluation."""
    found = {}
    for name in ("edm", "flow"):
        task = Task(experiment(**made, diffusion__objective=name))
        state = task.warm_start(jax.jit(task.init)(jax.random.key(0)))
        step, losses = jax.jit(task.train_step), []
        for _ in range(40):
            # One draw of levels and noise: what is to be learned stays.
            state, metrics = step(state, tones(), jax.random.key(1))
            losses.append(float(metrics["loss"]))
        found[name] = task, state, losses, jax.jit(task.eval_step)
    return found


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_both_objectives_learn_a_batch(states, name):
    _, _, losses, _ = states[name]
    # An untrained network of zeros: 1 of the preconditioned one, 2 of a velocity.
    assert abs(losses[0] / {"edm": 1.0, "flow": 2.0}[name] - 1) < 0.3
    assert np.isfinite(losses).all() and losses[-1] < 0.6 * losses[0]


def test_codec_and_scale_stay_as_they_were_trained(states, codec):
    task, state, _, _ = states["edm"]
    trained = checkpoint.load_trained(codec, "codec")
    assert tree.fingerprint(state.variables["codec"]) == tree.fingerprint(
        {"params": jax.tree.map(np.asarray, trained.params)}
    )
    assert task.parents() == {"codec": trained.fingerprint}
    batch = tones()
    z = np.asarray(jax.jit(lambda v, x: task.latents(v).encode(x))(state.variables, batch["stems"]))
    assert z.shape == (3, 4, FRAMES, 32)
    rows = z[np.asarray(batch["stem_mask"])].reshape(-1, 32)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(rows.std(axis=0), 1, atol=1e-3)


def test_missing_stems_do_not_count_and_what_is_known_does(states):
    _, state, _, evaluate = states["edm"]
    batch, key = tones(), jax.random.key(2)
    before = evaluate(state, batch, key)
    noise = batch["stems"].at[1, 2].set(0.5)
    after = evaluate(state, batch | {"stems": noise}, key)
    np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-6)
    for name, other in (
        ("mix", -batch["mix"]),
        ("chords", batch["chords"] + 5),
        ("melody", 1 - batch["melody"]),
        ("beats_mask", ~batch["beats_mask"]),
    ):
        after = evaluate(state, batch | {name: other}, key)
        assert abs(after["loss"] / before["loss"] - 1) > 1e-5, name


def test_a_mix_that_is_not_known_is_no_track(states):
    task, state, _, _ = states["edm"]
    config, width = task.stems_config, (3, 4, FRAMES, 32)
    x, mix = (jnp.asarray(np.random.default_rng(i).standard_normal(width), "f") for i in range(2))
    t = jnp.full((1, 1, 1, 1), 0.7)
    run = jax.jit(lambda params, mix: denoiser(config, params, mix=mix)(x, t))
    alone, beside = run(state.params, None), run(state.params, mix[:, :1])
    assert alone.shape == width and np.abs(alone - beside).max() > 1e-3
    assert np.abs(run(state.params, mix[:, 1:2]) - beside).max() > 1e-3


def test_summaries_are_of_audio(states):
    task, state, _, _ = states["flow"]
    sounds = task.summaries(state, tones(), jax.random.key(0))
    audio, rate = sounds["audio/drums_estimate"]
    assert audio.shape == (3, FRAMES * 320, 1) and rate == 16000 and np.isfinite(audio).all()


def test_training_encodes_in_half_precision_where_asked(states, made):
    """Eight bits of mantissa: what is noised is off by a few hundredths of its deviation, the loss
    by less; the codec that decodes is the one that was trained."""
    whole, state, _, evaluate = states["edm"]
    half = Task(experiment(**made, latents__dtype="bfloat16"))
    with pytest.raises(UserError, match="dtype is 'float16'"):
        Task(experiment(**made, latents__dtype="float16"))
    assert half.encoder.config.dtype == "bfloat16" and half.codec.codec_config.dtype == "float32"
    latents = whole.latents(state.variables)
    stems = tones()["stems"]
    expected = latents.encode(stems)
    found = dataclasses.replace(latents, codec=half.encoder).encode(stems)
    error = float(jnp.sqrt(jnp.mean((found - expected) ** 2)))
    assert 0 < error < 0.05
    losses = [float(f(state, tones(), jax.random.key(2))["loss"])
              for f in (evaluate, jax.jit(half.eval_step))]  # fmt: skip
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)


def test_others_are_refused(made, codec, tmp_path):
    with pytest.raises(UserError, match=r"latents\.codec is empty"):
        Task(experiment()).parents()
    other = Task(experiment(**made, codec__model__filters=5))
    with pytest.raises(UserError, match=r"model\.filters is 4, expected 5"):
        other.parents()
    with pytest.raises(UserError, match=r"config\.codec: latent_dim is 32, expected 31"):
        Task(experiment(**made, model__latent_dim=31))
    with pytest.raises(UserError, match=r"expected one without codes"):
        Task(experiment(codec__model__bottleneck="rvq")).latents({"codec": {}, "scale": {}})
    Scale(np.zeros(32, "f"), np.ones(32, "f"), "another").save(tmp_path)
    task = Task(experiment(**made | dict(latents__scale=str(tmp_path))))
    state = jax.eval_shape(task.init, jax.random.key(0))
    with pytest.raises(UserError, match=r"parents\.codec is 'another', expected '"):
        task.warm_start(state)


def test_a_workdir_of_another_codec_is_refused(made, tmp_path):
    """The manifest names the codec's fingerprint, and training goes on with no other one."""
    task = Task(experiment(**made))
    loop.claim_workdir(tmp_path, task, task.config, task.parents(), False)
    assert manifest.read(tmp_path)["parents"] == task.parents()
    with pytest.raises(UserError, match=r"parents\.codec was '.*', is 'another'"):
        loop.claim_workdir(tmp_path, task, task.config, {"codec": "another"}, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(diffusion__beside_mix=1.5), r"diffusion\.beside_mix is 1.5"),
        (dict(model__per_track=False, diffusion__given=0.0), r"diffusion\.beside_mix is 0.5"),
        (dict(latents__hop=0), r"latents\.hop is 0, expected the samples a frame"),
        (dict(data__seconds=0.5), r"expected a multiple of 2560"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        StemsConfig.from_experiment(experiment(**change))


def test_full_size():
    """About as many parameters as Stable Audio Open's 1,056,939,136."""
    config = importlib.import_module("mgen.configs.stems.latent_stems_1b").get_config()
    task = Task(config)
    state = jax.eval_shape(task.init, jax.random.key(0))
    assert tree.size(state.params) == 1_055_739_072
    assert task.stems_config.shape == (4, 512, 64)
    assert task.batch_spec(2)["stems"].shape == (2, 4, 2**20, 2)
    assert task.batch_spec(2)["chords"].shape == (2, 512)
