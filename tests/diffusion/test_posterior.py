"""Conditioned priors against closed-form posteriors of normal data.

Monte Carlo: 2048 samples with fixed keys, everything within four standard errors (of a mean
sqrt(v / n), of a covariance sqrt((v_i v_j + c_ij^2) / n)).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.diffusion import posterior
from mgen.diffusion.process import RECTIFIED_FLOW, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from mgen.diffusion.samplers import SAMPLERS, initial_noise, named, sample
from mgen.diffusion.schedules import karras

COUNT = 2048
# Of bass, drums, guitar and piano.
VARIANCES = np.asarray([0.04, 0.01, 0.0225, 0.0025])
MIX = 0.35
# Langevin dynamics at each noise level: likelihoods that hold only where sigma vanishes need it.
CORRECTED = named("heun", churn=50.0, repeats=10)


def stems(x, t):
    """E[x_0 | x_t] of independent stems x [B, S, 1, 1]."""
    variances = jnp.asarray(VARIANCES, x.dtype).reshape(1, -1, 1, 1)
    return variances / (variances + t**2) * x


def draw(denoise, constrain, sampler, keys, times, shape):
    x = initial_noise(keys, shape, times[0], VARIANCE_EXPLODING)

    @jax.jit
    def run(x, keys):
        return sample(denoise, x, times, sampler=sampler, noise=keys, constrain=constrain)

    return np.asarray(run(x, keys)).reshape(len(x), -1)


def assert_posterior(samples, mean, covariance):
    variances, count = np.diag(covariance), len(samples)
    error = np.sqrt(variances / count)
    assert np.all(np.abs(samples.mean(axis=0) - mean) < 4 * error)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / count)
    assert np.all(np.abs(np.cov(samples.T) - covariance) < 4 * error)


def separation_posterior(variances, mix, noise=0.0):
    """Of independent stems given their sum plus noise of a variance."""
    total = variances.sum() + noise
    return variances / total * mix, np.diag(variances) - np.outer(variances, variances) / total


@pytest.mark.parametrize("derived", [0, 3, None])
def test_dirac_separation_draws_from_the_posterior(derived, gaussian):
    mix = jnp.full((1, 1, 1, 1), MIX)
    denoise, constrain = posterior.dirac_separation(stems, mix, derived)
    times = karras(100, 1e-3, 1.0)
    found = draw(denoise, constrain, CORRECTED, gaussian.keys(COUNT), times, (4, 1, 1))
    np.testing.assert_allclose(found.sum(axis=1), MIX, atol=1e-6)
    assert_posterior(found, *separation_posterior(VARIANCES, MIX))


def test_a_derived_stem_collapses_without_fresh_noise(gaussian):
    """Why churn and repeats belong to it: the variance of the derived stem falls below a third."""
    denoise, constrain = posterior.dirac_separation(stems, jnp.full((1, 1, 1, 1), MIX))
    times = karras(100, 1e-3, 1.0)
    plain = draw(denoise, constrain, SAMPLERS["euler"], gaussian.keys(COUNT), times, (4, 1, 1))
    _, covariance = separation_posterior(VARIANCES, MIX)
    assert plain[:, 0].var() < covariance[0, 0] / 3


def test_gaussian_separation_draws_from_the_posterior(gaussian):
    mix = jnp.full((1, 1, 1, 1), MIX)
    # Any gamma that vanishes with sigma would do; smaller ones need smaller steps.
    denoise = posterior.gaussian_separation(stems, mix, lambda t: 2.0 * t)
    sampler, times = named("heun", churn=50.0, repeats=20), karras(100, 1e-3, 1.0)
    found = draw(denoise, None, sampler, gaussian.keys(COUNT), times, (4, 1, 1))
    assert_posterior(found, *separation_posterior(VARIANCES, MIX))


def test_separation_is_msdms_in_its_own_notation():
    """d = (x - D) / sigma; Gaussian as in the paper and as in the released code, Dirac for either
    choice of the derived stem."""
    rng = np.random.default_rng(0)
    x, sigma = jnp.asarray(rng.standard_normal((2, 4, 3, 1)), jnp.float32), 0.3
    mix = jnp.asarray(rng.standard_normal((2, 1, 3, 1)), jnp.float32)
    t = jnp.full((1, 1, 1, 1), sigma)

    def direction(denoise, x):
        return np.asarray(x - denoise(x, t)) / sigma

    d, off = direction(stems, x), np.asarray(mix - x.sum(axis=1, keepdims=True))
    gamma = 0.75 * sigma
    exact = posterior.gaussian_separation(stems, mix, lambda t: 0.75 * t)
    np.testing.assert_allclose(direction(exact, x), d - sigma / gamma**2 * off, rtol=1e-4)
    released = posterior.gaussian_separation(stems, mix, lambda t: posterior.MSDM_GAMMA * t)
    expected = d - sigma / (2 * gamma**2) * off
    np.testing.assert_allclose(direction(released, x), expected, rtol=1e-4)
    for k in (0, 3):
        denoise, constrain = posterior.dirac_separation(stems, mix, k)
        others = [j for j in range(4) if j != k]
        y = constrain(x, t, 0)
        np.testing.assert_array_equal(y[:, others], x[:, others])
        np.testing.assert_allclose(y[:, k], mix[:, 0] - x[:, others].sum(axis=1), rtol=1e-5)
        d = direction(stems, y)
        expected = d[:, others] - d[:, k : k + 1]
        np.testing.assert_allclose(direction(denoise, y)[:, others], expected, atol=1e-5)
        np.testing.assert_allclose(denoise(y, t).sum(axis=1, keepdims=True), mix, atol=1e-5)


def test_without_a_derived_stem_all_of_them_are_averaged():
    """The constraint and the direction of None are means over k."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 4, 3, 1)), jnp.float32)
    mix, t = jnp.asarray(rng.standard_normal((2, 1, 3, 1)), jnp.float32), jnp.full((1,) * 4, 0.3)
    make = functools.partial(posterior.dirac_separation, stems, mix)
    denoise, constrain = make(None)
    y = constrain(x, t, 0)
    np.testing.assert_allclose(
        y, np.mean([make(k)[1](x, t, 0) for k in range(4)], axis=0), atol=1e-6
    )
    d = np.asarray(y - stems(y, t)) / 0.3
    expected = np.mean([d - d[:, k : k + 1] for k in range(4)], axis=0)
    np.testing.assert_allclose(np.asarray(y - denoise(y, t)) / 0.3, expected, atol=1e-5)


COVARIANCE = np.asarray([[0.09, 0.06], [0.06, 0.0625]])


def pair(x, t):
    """E[x_0 | x_t] of two correlated numbers [B, 2] at one noise level t [1, 1]."""
    gain = COVARIANCE @ jnp.linalg.inv(COVARIANCE + t**2 * jnp.eye(2))
    return jnp.einsum("ij,bj->bi", gain, x)


def test_inpainting_draws_from_the_conditional_distribution(gaussian):
    known, steps = jnp.full((COUNT, 2), 0.2), 50
    keys, other = gaussian.keys(COUNT), gaussian.keys(COUNT, 1)
    constrain = posterior.inpainting(known, jnp.asarray([[True, False]]), other, steps)
    found = draw(pair, constrain, CORRECTED, keys, karras(steps, 1e-3, 2.0), (2,))
    np.testing.assert_array_equal(found[:, 0], np.float32(0.2))
    mean = 0.2 * COVARIANCE[0, 1] / COVARIANCE[0, 0]
    variance = COVARIANCE[1, 1] - COVARIANCE[0, 1] ** 2 / COVARIANCE[0, 0]
    assert abs(found[:, 1].mean() - mean) < 4 * np.sqrt(variance / COUNT)
    assert abs(found[:, 1].var() / variance - 1) < 4 * np.sqrt(2 / COUNT)


def test_inpainting_noises_what_is_known_once_a_step(gaussian):
    known, mask = jnp.asarray([[0.5, 0.1], [0.7, 0.2]]), jnp.asarray([[True, False]])
    x, t, keys = jnp.asarray([[9.0, 8.0], [7.0, 6.0]]), jnp.full((1, 1), 0.3), gaussian.keys(2)
    process = VARIANCE_PRESERVING
    constrain = posterior.inpainting(known, mask, keys, 4, process)
    first, again, later = (constrain(x, t, i) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[:, 1], x[:, 1])
    assert np.all(first[:, 0] != later[:, 0])
    np.testing.assert_array_equal(constrain(x, jnp.zeros((1, 1)), 4)[:, 0], known[:, 0])
    noise = np.random.default_rng(0).standard_normal((5, 1, 2, 2)).astype(np.float32)
    found = posterior.inpainting(known, mask, jnp.asarray(noise), 4, process)(x, t, 2)
    expected = process.noised(known, noise[2, 0], t)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-6)


def total(x):
    return x.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m_sde"])
def test_pigdm_is_exact_for_equal_stems(name, gaussian):
    """Four stems of one variance, of which the noisy sum is known: its assumption is true, so any
    sampler draws from the posterior."""
    variances, std = np.full(4, 0.09), 0.1

    def equal(x, t):
        return 0.09 / (0.09 + t**2) * x

    variance = posterior.pigdm_variance(0.3, std, gram=4.0)
    denoise = posterior.measured(equal, total, jnp.full((1,) * 4, MIX), variance)
    times = karras(64, 1e-3, 5.0)
    found = draw(denoise, None, SAMPLERS[name], gaussian.keys(COUNT), times, (4, 1, 1))
    assert_posterior(found, *separation_posterior(variances, MIX, std**2))


def test_measured_adds_the_gradient_of_the_likelihood():
    """DPS of a nonlinear measurement of a nonlinear denoiser, by differences in float64."""
    with jax.enable_x64(True):
        x, t, y = jnp.asarray([[[0.3], [-0.8]]]), jnp.full((1, 1, 1), 0.4), jnp.asarray([[[0.5]]])
        process = RECTIFIED_FLOW

        def denoise(x, t):
            return jnp.tanh(x) * (1 - t)

        def measure(x):
            return jnp.sum(x**3, axis=1, keepdims=True)

        def log_likelihood(x):
            return -((y - measure(denoise(x, t))) ** 2).sum() / (2 * 0.2**2)

        dps = posterior.measured(denoise, measure, y, lambda t: 0.2**2, process)
        found = np.asarray(dps(x, t) - denoise(x, t)).ravel()
        for i, step in enumerate(1e-6 * np.eye(2).reshape(2, 1, 2, 1)):
            slope = (log_likelihood(x + step) - log_likelihood(x - step)) / 2e-6
            np.testing.assert_allclose(found[i], 0.4**2 / 0.6 * slope, rtol=1e-6)


WRAPPERS = {
    "dirac": lambda d, mix, p: posterior.dirac_separation(d, mix, 1, p)[0],
    "average": lambda d, mix, p: posterior.dirac_separation(d, mix, None, p)[0],
    "gaussian": lambda d, mix, p: posterior.gaussian_separation(
        d, mix, lambda t: 0.7 * p.sigma(t), p
    ),
    "pigdm": lambda d, mix, p: posterior.measured(
        d, total, mix, posterior.pigdm_variance(0.2, 0.05, 4.0, p), p
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("process", [VARIANCE_PRESERVING, RECTIFIED_FLOW], ids=["vp", "flow"])
def test_processes_differ_by_a_change_of_variables(process, name):
    """The estimate from alpha x at t is that of the variance exploding process from x at
    sigma / alpha; float32."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 4, 3, 1)), jnp.float32)
    mix, t = jnp.asarray(rng.standard_normal((2, 1, 3, 1)), jnp.float32), jnp.full((1,) * 4, 0.3)
    alpha, level = process.alpha(t), process.noise_to_signal(t)

    def other(x, t):
        return stems(x / process.alpha(t), process.noise_to_signal(t))

    expected = WRAPPERS[name](stems, mix, VARIANCE_EXPLODING)(x, level)
    found = WRAPPERS[name](other, mix, process)(alpha * x, t)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
