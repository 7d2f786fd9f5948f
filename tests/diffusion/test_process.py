"""The processes, the table of predictions, preconditioning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.diffusion.process import (
    PREDICTIONS,
    PROCESSES,
    RECTIFIED_FLOW,
    SIGMA_FLOOR,
    VARIANCE_EXPLODING,
    VARIANCE_PRESERVING,
    denoiser,
    preconditioned,
)

EACH = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
VALUES = st.floats(-3, 3, width=32)
# float32, divided by alpha or sigma of at least 1 / 16.
TOLERANCE = dict(rtol=1e-4, atol=1e-4)


def test_the_three_processes_are_the_published_ones():
    t = jnp.asarray([0.0, 0.2, 0.5, 1.0])
    np.testing.assert_array_equal(VARIANCE_EXPLODING.alpha(t), np.ones(4))
    np.testing.assert_array_equal(VARIANCE_EXPLODING.sigma(t), t)
    np.testing.assert_allclose(VARIANCE_PRESERVING.alpha(t), np.cos(np.pi / 2 * t), atol=1e-6)
    np.testing.assert_allclose(
        VARIANCE_PRESERVING.alpha(t) ** 2 + VARIANCE_PRESERVING.sigma(t) ** 2, 1, rtol=1e-6
    )
    np.testing.assert_array_equal(RECTIFIED_FLOW.alpha(t) + RECTIFIED_FLOW.sigma(t), np.ones(4))
    for process in PROCESSES.values():
        assert process.sigma(t)[0] == 0 and process.alpha(t)[0] == 1
    for process in (VARIANCE_PRESERVING, RECTIFIED_FLOW):  # nothing of the data is left, exactly
        assert process.alpha(t)[-1] == 0 and process.sigma(t)[-1] == 1


@EACH
def test_time_is_the_inverse_of_the_noise_to_signal_ratio(process):
    t = jnp.asarray([0.0, 0.01, 0.3, 0.97])
    np.testing.assert_allclose(process.time(process.noise_to_signal(t)), t, rtol=1e-5, atol=1e-7)
    if process is not VARIANCE_EXPLODING:
        assert process.time(jnp.inf) == 1


@functools.partial(jax.jit, static_argnames="process")
def conversions(process, x0, eps, t):
    """Of every prediction to every other and back: (found, expected) of both."""
    x = process.noised(x0, eps, t)
    targets = {kind: process.target(kind, x0, eps, t) for kind in PREDICTIONS}
    found = []
    for kind, prediction in targets.items():
        for other, expected in targets.items():
            there = process.convert(prediction, x, t, kind, other)
            back = process.convert(there, x, t, other, kind)
            found += [(there, expected), (back, prediction)]
    return targets, jnp.asarray(found)


@EACH
@settings(max_examples=100, deadline=None)
@given(x0=VALUES, eps=VALUES, t=st.floats(1 / 16, 15 / 16, width=32))
def test_every_prediction_gives_every_other(process, x0, eps, t):
    """The targets of one pair (x_0, eps) are conversions of each other, there and back."""
    targets, pairs = conversions(process, *(jnp.asarray(y, jnp.float32) for y in (x0, eps, t)))
    assert targets["x0"] == np.float32(x0) and targets["eps"] == np.float32(eps)
    np.testing.assert_allclose(pairs[:, 0], pairs[:, 1], **TOLERANCE)


@EACH
def test_velocity_is_the_derivative_of_the_path(process):
    x0, eps = jnp.asarray([0.4, -1.2, 0.0]), jnp.asarray([0.7, 0.1, -2.0])
    for t in (0.0, 0.3, 0.9):
        t = jnp.full(3, t)
        path, slope = jax.jvp(lambda t: process.noised(x0, eps, t), (t,), (jnp.ones(3),))
        found = process.target("velocity", x0, eps, t)
        np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-6)
        if t[0] > 0:
            found = process.convert(x0, path, t, "x0", "velocity")
            np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)


def test_v_is_that_of_salimans_and_ho():
    """v = alpha eps - sigma x_0, and x_0 = alpha x - sigma v where alpha^2 + sigma^2 = 1."""
    process, t = VARIANCE_PRESERVING, jnp.asarray(0.3)
    alpha, sigma = np.cos(0.15 * np.pi), np.sin(0.15 * np.pi)
    v = process.target("v", jnp.asarray(0.5), jnp.asarray(-2.0), t)
    np.testing.assert_allclose(v, -2 * alpha - 0.5 * sigma, rtol=1e-6)
    found = process.convert(v, jnp.asarray(1.1), t, "v", "x0")
    np.testing.assert_allclose(found, alpha * 1.1 - sigma * v, rtol=1e-5)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'noise'"):
        VARIANCE_EXPLODING.coefficients("noise", jnp.zeros(()))


@EACH
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_network_of_any_prediction_is_a_denoiser(process, kind, gaussian):
    ideal = gaussian.ideal(process)
    x, t = jnp.asarray([[0.3, -2.0]]), jnp.asarray([[0.4, 0.6]])

    def predict(x, t):
        return process.convert(ideal(x, t), x, t, "x0", kind)

    found = denoiser(predict, kind, process)(x, t)
    np.testing.assert_allclose(found, ideal(x, t), **TOLERANCE)


@EACH
def test_steps_stay_on_the_path(process):
    """Denoised with the true x_0, x_t becomes x_u of the same noise; renoised, its noise has the
    variance of the later time. Each element has its own times."""
    x0, eps = jnp.asarray([[0.4, -1.2, 0.9]]), jnp.asarray([[0.7, 0.1, -2.0]])
    t, u = jnp.asarray([[0.9, 0.5, 0.3]]), jnp.asarray([[0.2, 0.4, 0.0]])
    found = process.denoised(process.noised(x0, eps, t), x0, t, u)
    np.testing.assert_allclose(found, process.noised(x0, eps, u), rtol=1e-5, atol=1e-6)
    signal = process.renoised(process.alpha(u) * x0, jnp.zeros((1, 3)), u, t)
    np.testing.assert_allclose(signal, process.alpha(t) * x0, rtol=1e-5)
    fresh = process.renoised(jnp.zeros((1, 3)), jnp.ones((1, 3)), u, t)
    kept = process.renoised(process.sigma(u), jnp.zeros((1, 3)), u, t)
    np.testing.assert_allclose(fresh**2 + kept**2, process.sigma(t) ** 2, rtol=1e-5)
    np.testing.assert_allclose(
        process.decay(t, u), process.noise_to_signal(u) / process.noise_to_signal(t), rtol=1e-5
    )


@EACH
def test_nothing_moves_between_equal_times_and_the_ends_are_finite(process):
    x, x0, z = jnp.asarray([1.5, -0.3]), jnp.asarray([9.0, 9.0]), jnp.asarray([1.0, 1.0])
    t, zero = jnp.asarray([0.0, 1.0]), jnp.zeros(2)  # alpha or sigma is 0
    np.testing.assert_array_equal(process.denoised(x, x0, t, t), x)
    np.testing.assert_array_equal(process.renoised(x, z, t, t), x)
    np.testing.assert_array_equal(process.denoised(x, x0, jnp.ones(2), zero), x0)
    for kind in PREDICTIONS:
        for other in PREDICTIONS:
            assert np.isfinite(process.convert(x, x, t, kind, other)).all()


def test_preconditioning_gives_the_network_unit_inputs_and_targets():
    """Karras et al. 2022, appendix B.6: for data of variance sigma_data^2 the input of F and what
    it should say have variance 1, and are uncorrelated. Four standard errors of 20000 draws."""
    count, sigma_data = 20000, 0.2
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, count)).astype(np.float32)
    x0 *= sigma_data
    for sigma in (0.02, 0.2, 3.0):
        seen = []

        def network(x, c_noise, seen=seen):
            seen.append((x, c_noise))
            return jnp.zeros_like(x)

        x, t = x0 + sigma * eps, jnp.asarray(sigma)
        skip = preconditioned(network, sigma_data)(x, t)
        out = preconditioned(lambda x, c: jnp.ones_like(x), sigma_data)(x, t) - skip
        (inputs, c_noise), target = seen[0], (x0 - skip) / out
        np.testing.assert_allclose(c_noise, np.log(sigma) / 4, rtol=1e-6)
        error = 4 * np.sqrt(2 / count)
        np.testing.assert_allclose(np.var(inputs), 1, atol=error)
        np.testing.assert_allclose(np.var(target), 1, atol=error)
        np.testing.assert_allclose(np.mean(inputs * target), 0, atol=4 / np.sqrt(count))


def test_preconditioned_is_the_identity_without_noise_and_can_be_bounded():
    x = jnp.asarray([[0.5, -3.0], [0.7, 2.0]])
    sigma = jnp.asarray([[0.0], [1.0]])

    def network(x, c_noise):
        assert c_noise[0, 0] == np.float32(np.log(SIGMA_FLOOR) / 4)
        return 100 * jnp.ones_like(x)

    np.testing.assert_array_equal(preconditioned(network, 0.2)(x, sigma)[0], x[0])
    np.testing.assert_array_equal(
        preconditioned(network, 0.2, clip=1.0)(x, sigma), [[0.5, -1.0], [1.0, 1.0]]
    )
