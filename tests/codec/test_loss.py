"""Codec losses against closed forms, librosa, and their own laws."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.codec import balancer, loss
from mgen.codec.discriminators import Verdict

RATE = 16000


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=shape).astype(np.float32)


def verdicts(*logits: float, features: tuple[float, ...] = (1.0,)) -> list[Verdict]:
    maps = tuple(jnp.full((2, 5, 3), value) for value in features)
    return [Verdict(jnp.full((2, 5), value), maps) for value in logits]


def test_time_l1_is_the_mean_absolute_difference():
    x = noise(0, 2, 100, 1)
    assert loss.time_l1(x, x + 0.25) == pytest.approx(0.25, rel=1e-5)


def test_log_stft_of_a_gain_is_its_log():
    """log|S| moves by log(g) at every bin that is not clamped."""
    x = noise(1, 1, 4096, 1)
    value = loss.multi_resolution_stft(
        x, 2 * x, windows=(256, 512), sample_rate=RATE, log=1.0, convergence=0.0, floor=1e-8
    )
    assert value == pytest.approx(np.log(2), rel=1e-5)


def test_spectral_convergence_of_a_gain():
    """||S - gS|| / ||S|| = |1 - g|, whatever the signal and the window."""
    x = noise(2, 2, 4096, 2)
    value = loss.multi_resolution_stft(
        x, 3 * x, windows=(128, 1024), sample_rate=RATE, log=0.0, convergence=1.0, floor=1e-8
    )
    assert value == pytest.approx(2.0, rel=1e-5)


def test_stft_terms_equal_librosa():
    x, y = noise(3, 4096), noise(4, 4096)
    expected = []
    for window in (512, 128):
        a, b = (
            np.maximum(
                np.abs(librosa.stft(s, n_fft=window, hop_length=window // 4, pad_mode="reflect")),
                1e-4,
            )
            for s in (x, y)
        )
        expected.append(
            0.5 * np.abs(a - b).mean()
            + np.abs(np.log(a) - np.log(b)).mean()
            + np.linalg.norm(a - b) / np.linalg.norm(a)
        )
    value = loss.multi_resolution_stft(
        x[None, :, None], y[None, :, None], windows=(512, 128), sample_rate=RATE, linear=0.5
    )
    # float32 FFTs of two libraries.
    assert value == pytest.approx(np.mean(expected), rel=1e-4)


def test_mid_side_sees_what_left_and_right_do_not():
    """A sign flip of one channel leaves all magnitudes of L and R, and swaps those of mid and
    side.
    """
    x = noise(5, 1, 4096, 2)
    flipped = x * np.array([1.0, -1.0], np.float32)
    options = dict(windows=(512,), sample_rate=RATE)
    assert loss.multi_resolution_stft(x, flipped, **options) == pytest.approx(0.0, abs=1e-6)
    assert loss.multi_resolution_stft(x, flipped, mid_side=True, **options) > 0.1
    assert loss.add_mid_side(jnp.array([[[3.0, 1.0]]])).tolist() == [[[3.0, 1.0, 4.0, 2.0]]]


def test_a_weight_at_standard_frequencies():
    """IEC 61672-1, table 3: nominal A-weighting in dB, given to 0.1 dB."""
    hz = 10.0 ** np.array([1.5, 2.0, 3.0, 3.6, 4.0])
    decibels = 20 * np.log10(loss.a_weight(hz))
    np.testing.assert_allclose(decibels, [-39.4, -19.1, 0.0, 1.0, -2.5], atol=0.1)


def test_mel_equals_librosa_for_every_term():
    x, y = noise(6, 8192), noise(7, 8192)
    expected = {"linear_l1": 0.0, "log_l1": 0.0, "log_l2": 0.0, "log_mse": 0.0}
    for window, bands in ((1024, 64), (256, 20)):
        a, b = (
            librosa.feature.melspectrogram(
                y=s,
                sr=RATE,
                n_fft=window,
                hop_length=window // 4,
                n_mels=bands,
                power=1.0,
                pad_mode="reflect",
            )
            for s in (x, y)
        )
        log = np.log10(np.maximum(a, 1e-5)) - np.log10(np.maximum(b, 1e-5))
        alpha = np.sqrt(window / 2)
        expected["linear_l1"] += np.abs(a - b).mean()
        expected["log_l1"] += np.abs(log).mean()
        expected["log_l2"] += alpha * np.linalg.norm(log, axis=0).mean()
        expected["log_mse"] += alpha * np.square(log).mean()
    for term, want in expected.items():
        weights = {name: float(name == term) for name in expected}
        value = loss.multi_scale_mel(
            x[None, :, None],
            y[None, :, None],
            windows=(1024, 256),
            n_mels=(64, 20),
            sample_rate=RATE,
            alpha="sqrt_half_window",
            **weights,
        )
        assert value == pytest.approx(want, rel=1e-4), term


def test_adversarial_values():
    real, fake = verdicts(0.5, 2.0), verdicts(-0.5, 3.0)
    # Hinge: mean of (0.5 + 0.5) and (0 + 4); squares: sum of (0.25 + 0.25) and (1 + 9).
    assert loss.discriminator_loss(real, fake, "hinge") == pytest.approx(2.5)
    assert loss.discriminator_loss(real, fake, "least_squares") == pytest.approx(10.5)
    assert loss.generator_loss(fake, "hinge") == pytest.approx(0.75)
    assert loss.generator_loss(fake, "hinge_linear") == pytest.approx(-1.25)
    assert loss.generator_loss(fake, "least_squares") == pytest.approx(2.25 + 4.0)


def test_feature_matching_values():
    real, fake = verdicts(0.0, 0.0, features=(2.0, 4.0)), verdicts(0.0, 0.0, features=(3.0, 4.0))
    assert loss.feature_matching(real, fake, "sum") == pytest.approx(2.0)
    assert loss.feature_matching(real, fake, "mean") == pytest.approx(0.5)
    assert loss.feature_matching(real, fake, "relative") == pytest.approx(0.25)
    gradient = jax.grad(lambda r: loss.feature_matching(r, fake))(real)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("call", ["hinge?", "wrong"])
def test_unknown_forms_are_named(call):
    with pytest.raises(ValueError, match=f"form is '{call[:5]}"):
        loss.generator_loss(verdicts(0.0), call)
    with pytest.raises(ValueError, match="expected one of"):
        loss.feature_matching(verdicts(0.0), verdicts(0.0), call)


RECIPES = ("soundstream", "encodec_24khz", "encodec_48khz", "encodec_32khz", "dac", "oobleck")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_zero_at_the_target_and_finite_at_silence(name):
    config = loss.recipe(name)
    for term in (config.stft, config.mel):
        term.windows = (512, 64)
    config.mel.n_mels = config.mel.n_mels[:2]
    target = jnp.asarray(noise(8, 1, 1024, 2))

    @jax.jit
    def value_and_gradient(target, estimate):
        def total(y):
            return sum(term(y) for term in loss.reconstruction(config, RATE, target).values())

        return jax.value_and_grad(total)(estimate)

    silence = jnp.zeros_like(target)
    value, gradient = value_and_gradient(target, target)
    # SoundStream's norms are clamped at 1e-6, times the sum of its weights of about 20.
    assert float(value) < 1e-4 and np.all(np.isfinite(gradient))
    for x, y in ((target, silence), (silence, silence), (silence, target)):
        value, gradient = value_and_gradient(x, y)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_balancer_makes_shares_of_the_gradient():
    """Losses whose scales differ by 1e6 still make up 3/4 and 1/4 of the gradient at the audio."""
    a, b = (jnp.asarray(noise(seed, 3, 50, 1)) for seed in (9, 10))
    state = balancer.init(("a", "b"))
    weights = {"a": 3.0, "b": 1.0}
    total, state, norms = balancer.balance({"a": 1e3 * a, "b": 1e-3 * b}, weights, state)
    unit = {name: g / np.linalg.norm(g, axis=(1, 2)).mean() for name, g in (("a", a), ("b", b))}
    np.testing.assert_allclose(total, 0.75 * unit["a"] + 0.25 * unit["b"], rtol=1e-4, atol=1e-7)
    assert norms["a"] / norms["b"] == pytest.approx(
        1e6 * np.linalg.norm(a, axis=(1, 2)).mean() / np.linalg.norm(b, axis=(1, 2)).mean(),
        rel=1e-4,
    )


def test_balancer_averages_and_leaves_out_absent_losses():
    g = jnp.ones((1, 4, 1))  # norm 2
    state = balancer.init(("a", "b"))
    weights = {"a": 1.0, "b": 1.0}
    total, state, _ = balancer.balance({"a": g, "b": 0 * g}, weights, state, decay=0.5)
    np.testing.assert_allclose(total, g / 2)
    assert state["b"]["weight"] == 0
    _, state, norms = balancer.balance({"a": 4 * g, "b": g}, weights, state, decay=0.5)
    # (0.5 * 0.5 * 2 + 0.5 * 8) / 0.75, and the first value of b alone.
    assert norms["a"] == pytest.approx(4.5 / 0.75) and norms["b"] == pytest.approx(2.0)


CONFIG = loss.default_config(
    time_l1=dict(weight=1.0),
    stft=dict(weight=1.0, windows=(256,)),
    mel=dict(weight=1.0, windows=(256,), log_l2=1.0),
)


@jax.jit
def all_terms(x, y):
    return sum(term(y) for term in loss.reconstruction(CONFIG, RATE, x).values())


@settings(deadline=None, max_examples=10)
@given(st.floats(0.1, 10.0), st.integers(0, 1000))
def test_losses_do_not_mix_examples(gain, seed):
    """The loss of a batch is the mean of the losses of its examples."""
    x, y = noise(seed, 2, 1024, 1), np.float32(gain) * noise(seed + 1, 2, 1024, 1)
    each = [all_terms(x[i : i + 1], y[i : i + 1]) for i in range(2)]
    assert all_terms(x, y) == pytest.approx(np.mean(each), rel=1e-4)
