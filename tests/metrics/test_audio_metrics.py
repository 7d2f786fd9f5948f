"""SI-SDR and mel distance where their values are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.metrics.audio import mel_distance, si_sdr


def orthogonal(samples: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Two zero-mean signals of equal energy, orthogonal to each other."""
    time = 2 * np.pi * np.arange(samples) / samples
    return np.sin(5 * time).astype(np.float32), np.cos(5 * time).astype(np.float32)


@pytest.mark.parametrize("db", [-20.0, 0.0, 12.5, 60.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, -40.0])
def test_known_ratio_at_any_scale(db, scale):
    signal, noise = orthogonal()
    estimate = scale * (signal + 10 ** (-db / 20) * noise)
    # float32: the distortion is known to 1e-6 of the signal.
    assert float(si_sdr(signal, estimate)) == pytest.approx(db, abs=0.01)


def test_mean_option():
    signal, noise = orthogonal()
    estimate = signal + 0.1 * noise + 5.0
    assert float(si_sdr(signal, estimate)) == pytest.approx(20.0, abs=0.01)
    expected = 10 * np.log10(0.5 / (0.01 * 0.5 + 25.0))
    assert float(si_sdr(signal, estimate, zero_mean=False)) == pytest.approx(expected, abs=0.01)


def test_limits_are_finite_and_so_is_the_gradient():
    signal, noise = orthogonal()
    silence = np.zeros_like(signal)
    reference = np.stack([signal, signal, signal, silence, silence])
    estimate = np.stack([signal, noise, silence, signal, silence])
    np.testing.assert_allclose(si_sdr(reference, estimate), [80, -80, -80, -80, -80], atol=1e-3)
    gradient = jax.grad(lambda x: si_sdr(reference, x).sum())(jnp.asarray(estimate))
    assert jnp.isfinite(gradient).all()


def test_mel_distance_of_a_gain():
    """A factor of 10 is 1 in log10, at each of the seven scales, in every band above the floor."""
    noise = np.random.default_rng(0).standard_normal((2, 8000)).astype(np.float32)
    distance = jax.jit(mel_distance, static_argnums=2)
    np.testing.assert_allclose(distance(noise, 0.1 * noise, 16000), [7.0, 7.0], atol=1e-3)
    np.testing.assert_array_equal(distance(noise, noise, 16000), [0.0, 0.0])
    one = mel_distance(noise, 0.1 * noise, 16000, windows=(512,), bands=(40,))
    np.testing.assert_allclose(one, [1.0, 1.0], atol=1e-3)


def test_mel_distance_clamps_silence():
    quiet = np.full((1, 4000), 1e-9, np.float32)
    options = {"windows": (256,), "bands": (20,)}
    distance = mel_distance(quiet, np.zeros_like(quiet), 16000, **options)
    np.testing.assert_array_equal(distance, [0.0])
