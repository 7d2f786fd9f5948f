"""The task: learning a batch, metrics, what counts, baselines, bad configs."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.metrics.audio import si_sdr
from mgen.stems import loss as stems_loss
from mgen.stems.task import BANDS, Task, separation_scores


def experiment(name, **changes):
    config = importlib.import_module(f"mgen.configs.stems.{name}").get_config("smoke")
    config.data.update(seconds=512 / 16000, batch_size=3)
    if config.model.kind == "unet":
        config.model.update(multipliers=(1, 2), factors=(4,), blocks=(1,), attentions=(False,))
    config.optim.update(learning_rate=3e-3, schedule="constant", warmup=0, ema=0.0)
    for path, value in changes.items():
        config.update_from_flattened_dict({path.replace("__", "."): value})
    return config


TRACKS = dict(model__per_track=True, diffusion__given=0.5, diffusion__count_missing=False)


@pytest.fixture(scope="module")
def denoising():
    """A denoiser of tracks with levels of their own, its jitted step and evaluation, a state."""
    return compiled(Task(experiment("tiny_msdm", **TRACKS)))


@pytest.fixture(scope="module")
def separating():
    return compiled(Task(experiment("tiny_separator")))


def compiled(task):
    state = jax.jit(task.init)(jax.random.key(0))
    return task, state, jax.jit(task.train_step), jax.jit(task.eval_step)


def tones(task, batch=3, seed=0):
    """Stems of a tone each, the third one missing in example 1."""
    config = task.stems_config
    rng, time = np.random.default_rng(seed), np.arange(config.samples) / config.sample_rate
    hz, phase = rng.uniform(100, 2000, (batch, config.stems, 1)), rng.uniform(0, 6, (batch, 1, 1))
    stems = 0.2 * np.sin(2 * np.pi * hz * time + phase)[..., None]
    mask = np.ones((batch, config.stems), bool)
    mask[1, 2] = False
    stems = stems * mask[..., None, None]
    data = {"stems": stems, "mix": stems.sum(axis=1)}
    return {n: jnp.asarray(x, jnp.float32) for n, x in data.items()} | {"stem_mask": mask}


def train(step, state, batch, steps=60):
    losses = []
    for _ in range(steps):
        # One draw of levels and noise: what is to be learned stays.
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    return state, losses, metrics


def test_a_denoiser_learns_a_batch(denoising):
    task, state, step, _ = denoising
    _, losses, metrics = train(step, state, tones(task))
    assert losses[-1] < 0.5 * losses[0]
    assert np.isfinite(losses).all() and np.isfinite(metrics["grad_norm"])
    assert set(metrics) == {"loss", "grad_norm"}


def test_a_denoiser_beside_the_mix_learns_to_take_it_apart():
    """The network in bands, told the mix of all examples: what it expects of them gains decibels,
    without the mix none."""
    config = experiment("tiny_bands", diffusion__beside_mix=1.0, diffusion__given=0.0)
    config.model.update(n_fft=128, hop=32, bands=8)
    task, state, step, evaluate = compiled(Task(config))
    batch = tones(task)
    before = evaluate(state, batch, jax.random.key(2))
    assert before["loss"] > 0.9  # F is 0
    state, losses, _ = train(step, state, batch, steps=120)
    after = evaluate(state, batch, jax.random.key(2))
    assert losses[-1] < 0.5 * losses[0] and after["si_sdri"] > 3.0
    hidden = batch | {"mix": jnp.zeros_like(batch["mix"])}
    assert evaluate(state, hidden, jax.random.key(2))["si_sdr"] < after["si_sdr"] - 3.0


def test_evaluation_has_a_level_in_each_band(denoising):
    task, state, _, evaluate = denoising
    batch = tones(task)
    metrics = evaluate(state, batch, jax.random.key(2))
    bands = [float(metrics[f"loss_{name}"]) for name in BANDS]
    assert set(metrics) == {"loss", *(f"loss_{name}" for name in BANDS)}
    np.testing.assert_allclose(metrics["loss"], np.mean(bands), rtol=1e-5)
    again = evaluate(state, batch, jax.random.key(2))
    jax.tree.map(np.testing.assert_array_equal, metrics, again)
    assert len(set(bands)) == 3 and min(bands) > 0


def test_an_example_is_its_own(denoising):
    """The loss of a batch is the mean of what its examples have with other batch mates."""
    task, state, _, evaluate = denoising
    one, other = tones(task), tones(task, seed=1)
    key = jax.random.key(3)

    def of(rows):
        parts = [(one if row else other) for row in rows]
        mixed = {
            name: jnp.stack([part[name][i] for i, part in enumerate(parts)])
            for name in ("stems", "mix", "stem_mask")
        }
        return float(evaluate(state, mixed, key)["loss"])

    # The first example's share changes by the same amount whatever stands behind it.
    change = of([1, 0, 0]) - of([0, 0, 0])
    np.testing.assert_allclose(of([1, 1, 1]) - of([0, 1, 1]), change, rtol=1e-3)
    assert abs(change) > 1e-3


def test_a_missing_stem_counts_as_silence_or_not_at_all(denoising):
    task, state, _, evaluate = denoising
    batch = tones(task)
    assert set(task.batch_spec(3)) == {"stems", "stem_mask"}
    silence = Task(experiment("tiny_msdm", **TRACKS | dict(diffusion__count_missing=True)))
    assert set(silence.batch_spec(3)) == {"stems"}
    whole = evaluate(state, batch | {"stem_mask": np.ones((3, 4), bool)}, jax.random.key(0))
    np.testing.assert_allclose(
        jax.jit(silence.eval_step)(state, batch, jax.random.key(0))["loss"],
        whole["loss"],
        rtol=1e-5,
    )
    assert abs(whole["loss"] - evaluate(state, batch, jax.random.key(0))["loss"]) > 1e-4


def test_a_separator_learns_a_batch(separating):
    task, state, step, evaluate = separating
    batch = tones(task)
    assert set(task.batch_spec(3)) == {"stems", "mix"}
    before = evaluate(state, batch, jax.random.key(0))
    state, losses, _ = train(step, state, batch)
    after = evaluate(state, batch, jax.random.key(0))
    assert losses[-1] < 0.5 * losses[0]
    assert after["si_sdr"] > before["si_sdr"] + 5
    mix = separation_scores(batch["stems"], batch["stems"], batch["mix"])[1]
    np.testing.assert_allclose(after["si_sdri"], after["si_sdr"] - mix, rtol=1e-4)


def test_scores_are_of_stems_that_sound_together():
    rng = np.random.default_rng(0)
    stems, estimate = (rng.standard_normal((3, 2, 50, 1)).astype(np.float32) for _ in range(2))
    stems[1, 0] = 0  # alone: its mix is perfect
    stems[2] *= 1e-4  # silent
    mix = stems.sum(axis=1)
    found, of_mix = separation_scores(stems, estimate, mix)
    flat = (x[0].reshape(2, -1) for x in (estimate, np.stack([mix, mix], axis=1)))
    expected = [si_sdr(stems[0].reshape(2, -1), x, zero_mean=False).mean() for x in flat]
    np.testing.assert_allclose([found, of_mix], expected, rtol=1e-5)
    nothing = separation_scores(stems[1:], estimate[1:], mix[1:])
    assert nothing == (0, 0)


def test_baseline_of_a_denoiser(denoising):
    """The mean over its bands is the mean over the training levels of the filter's loss."""
    task, _, _, _ = denoising
    batches = [tones(task, seed=seed) for seed in (0, 1)]
    found = task.baseline(iter(batches), iter(batches[1:]))
    assert set(found) == {"wiener_loss", *(f"wiener_loss_{name}" for name in BANDS)}
    spectra = [stems_loss.power_spectrum(np.asarray(b["stems"]), b["stem_mask"]) for b in batches]
    count = np.asarray([3, 3, 2, 3])[:, None]
    known, power = (spectra[0] + spectra[1]) / (2 * count), spectra[1] / count
    own = task.stems_config
    sigma = np.exp(np.random.default_rng(0).normal(own.noise_mean, own.noise_std, 20000))
    losses = stems_loss.wiener_loss(known, power, sigma, own.sigma_data) @ (count[:, 0] / 11)
    assert abs(losses.mean() - found["wiener_loss"]) < 4 * losses.std() / np.sqrt(20000)
    low = losses[np.argsort(sigma)[: 20000 // 3]]
    assert abs(low.mean() - found["wiener_loss_low"]) < 4 * low.std() / np.sqrt(len(low))


def test_baseline_of_a_separator(separating):
    task, _, _, _ = separating
    batch = tones(task)
    found = task.baseline(iter([]), iter([batch, batch]))
    share = np.repeat(np.asarray(batch["mix"])[:, None] / 4, 4, axis=1)
    expected = stems_loss.separation(batch["stems"], share, spectral=1.0, windows=(256, 128))
    np.testing.assert_allclose(found["share_loss"], np.mean(expected), rtol=1e-5)
    mix = separation_scores(batch["stems"], share, batch["mix"])[1]
    np.testing.assert_allclose(found["mix_si_sdr"], mix, rtol=1e-5)


def test_summaries_are_audio_of_each_stem(denoising, separating):
    for task, state, _, _ in (denoising, separating):
        found = task.summaries(state, tones(task), jax.random.key(0))
        names = task.stems_config.names
        assert set(found) == {f"audio/{n}_{k}" for n in names for k in ("target", "estimate")}
        for audio, rate in found.values():
            assert audio.shape == (3, 512, 1) and rate == 16000
    bass, _ = found["audio/bass_target"]
    np.testing.assert_array_equal(bass, tones(task)["stems"][:, 0])


def test_manifest(denoising):
    assert denoising[0].manifest() == dict(
        stems=["bass", "drums", "guitar", "piano"],
        sample_rate=16000,
        channels=1,
        samples=512,
        hop=16,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(data__view="audio"), "data.view is 'audio', expected the model's 'stems'"),
        (dict(data__sample_rate=8000), "data.sample_rate is 8000, expected the model's 16000"),
        (dict(data__channels=2), "data.channels is 2, expected the model's 1"),
        (
            dict(data__stems=("bass",)),
            r"data.stems is \('bass',\), expected the model's",
        ),
        (dict(data__seconds=0.03125), "500 samples, expected a multiple of 16"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Task(experiment("tiny_msdm", **change))
