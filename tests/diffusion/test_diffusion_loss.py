"""Training times, weights and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mgen.diffusion import loss
from mgen.diffusion.process import (
    PREDICTIONS,
    PROCESSES,
    RECTIFIED_FLOW,
    VARIANCE_EXPLODING,
    VARIANCE_PRESERVING,
    preconditioned,
)

U = np.asarray([1e-6, 0.1, 0.5, 0.75, 1 - 1e-5])


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (loss.LogNormal(-3.0, 1.0), scipy.stats.lognorm(1.0, scale=np.exp(-3.0)).ppf(U)),
        (loss.LogitNormal(0.5, 0.7), 1 / (1 + np.exp(-0.5 - 0.7 * scipy.stats.norm.ppf(U)))),
        (loss.Uniform(0.2, 3.0), scipy.stats.uniform(0.2, 2.8).ppf(U)),
        (loss.ShiftedCosine(1.0), U),
    ],
    ids=lambda x: type(x).__name__,
)
def test_quantiles(times, expected):
    # float32: the last u is 1 - 1e-5 to 0.6 percent of its distance from 1.
    np.testing.assert_allclose(times.quantile(jnp.asarray(U)), expected, rtol=3e-3)
    assert np.isfinite(times.quantile(jnp.asarray([2.0**-24, 1 - 2.0**-24]))).all()


def test_the_cosine_shift_is_that_of_the_log_signal_to_noise_ratio():
    process, u = VARIANCE_PRESERVING, jnp.asarray([0.1, 0.5, 0.9])

    def log_snr(t):
        return 2 * jnp.log(process.alpha(t) / process.sigma(t))

    moved = log_snr(loss.ShiftedCosine(0.25).quantile(u)) - log_snr(u)
    np.testing.assert_allclose(moved, 2 * np.log(0.25), rtol=1e-4)


def test_each_example_and_stem_draws_its_own_time(gaussian):
    keys = gaussian.keys(4000)
    t = np.asarray(loss.draw_times(loss.LogNormal(-3.0, 1.0), keys, (3, 1, 1)))
    assert t.shape == (4000, 3, 1, 1) and len(np.unique(t)) > 11900
    rows = np.asarray([7, 0])
    alone = loss.draw_times(loss.LogNormal(-3.0, 1.0), keys[rows], (3, 1, 1))
    np.testing.assert_array_equal(alone, t[rows])
    # Four standard errors of 12000 draws.
    np.testing.assert_allclose(np.log(t).mean(), -3, atol=4 / np.sqrt(12000))
    np.testing.assert_allclose(np.log(t).var(), 1, atol=4 * np.sqrt(2 / 12000))


def test_an_untrained_edm_network_has_the_loss_one_at_every_noise_level(gaussian):
    """Karras et al. 2022, table 1: with F = 0 and data of variance sigma_data^2 the weighted loss
    is 1. Four standard errors of chi-square from 20000 values."""
    rng = np.random.default_rng(0)
    x0, eps = jnp.asarray(rng.standard_normal((2, 4, 5000)), jnp.float32)
    sigma = jnp.asarray([[0.01], [0.2], [1.0], [20.0]])
    denoise = preconditioned(lambda x, c: jnp.zeros_like(x), 0.2)
    found = loss.denoising_loss(denoise, 0.2 * x0, eps, sigma, weight=loss.edm_weight(0.2))
    np.testing.assert_allclose(found, 1, atol=4 * np.sqrt(2 / 5000))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_signal_to_noise_weight_makes_an_error_of_x0_one_of_eps(process):
    x0, eps = jnp.asarray([[0.4], [-1.2]]), jnp.asarray([[0.7], [0.1]])
    t = jnp.asarray([[0.2], [0.7]])

    def estimate(x, t):
        return x0 + 0.3

    def noise(x, t):
        return process.convert(estimate(x, t), x, t, "x0", "eps")

    snr = loss.snr_weight(process)
    found = loss.denoising_loss(estimate, x0, eps, t, weight=snr, process=process)
    expected = loss.denoising_loss(
        noise, x0, eps, t, weight=loss.uniform_weight, process=process, kind="eps"
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(loss.snr_weight(process, 0.5)(t), jnp.minimum(snr(t), 0.5))


def test_late_weight_runs_from_one_at_noise_to_two_at_data():
    np.testing.assert_array_equal(loss.late_weight(jnp.asarray([1.0, 0.25, 0.0])), [1, 1.75, 2])


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_conditional_mean_minimises_the_loss(process, kind, gaussian):
    """Of predictions (1 + a) p* + b x + c around the ideal one, the mean gradient over 20000
    examples is 0 within four standard errors, and it points back from elsewhere."""
    x0 = jnp.asarray(np.random.default_rng(0).standard_normal((20000, 1)), jnp.float32)
    x0, keys = gaussian.mean + gaussian.std * x0, gaussian.keys(20000)
    eps = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), (1,)))(keys)
    t = loss.draw_times(loss.Uniform(0.2, 0.8), keys, (1,))
    ideal = gaussian.ideal(process)

    def example(theta, x0, eps, t):
        def predict(x, t):
            best = process.convert(ideal(x, t), x, t, "x0", kind)
            return (1 + theta[0]) * best + theta[1] * x + theta[2]

        options = dict(weight=loss.late_weight, process=process, kind=kind)
        return loss.denoising_loss(predict, x0[None], eps[None], t[None], **options)[0]

    gradients = jax.jit(jax.vmap(jax.grad(example), in_axes=(None, 0, 0, 0)))
    at_best = np.asarray(gradients(jnp.zeros(3), x0, eps, t))
    error = at_best.std(axis=0) / np.sqrt(20000)
    assert np.all(np.abs(at_best.mean(axis=0)) < 4 * error)
    away = np.asarray([0.2, 0.1, 0.1])
    assert np.asarray(gradients(jnp.asarray(away), x0, eps, t)).mean(axis=0) @ away > 0.01


def test_loss_and_gradient_are_the_weighted_squares():
    """One number theta for a network: 2 w (theta x - target) x, by hand."""
    x0, eps = jnp.asarray([[0.5, -0.25]]), jnp.asarray([[1.0, 2.0]])
    t = jnp.asarray([[0.5, 0.25]])  # each element its own

    def of(theta):
        options = dict(weight=loss.late_weight, process=RECTIFIED_FLOW, kind="velocity")
        return loss.denoising_loss(lambda x, t: theta * x, x0, eps, t, **options)[0]

    value, gradient = jax.value_and_grad(of)(2.0)
    x, target, weight = np.asarray([0.75, 0.3125]), np.asarray([0.5, 2.25]), np.asarray([1.5, 1.75])
    np.testing.assert_allclose(value, np.mean(weight * (2 * x - target) ** 2), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.mean(2 * weight * (2 * x - target) * x), rtol=1e-6)


def test_masked_stems_count_for_nothing(gaussian):
    rng = np.random.default_rng(0)
    x0, eps = jnp.asarray(rng.standard_normal((2, 3, 2, 5, 1)), jnp.float32)
    t = loss.draw_times(loss.LogNormal(), gaussian.keys(3), (2, 1, 1))
    mask = jnp.asarray([[1, 1], [1, 0], [0, 0]], bool).reshape(3, 2, 1, 1)
    denoise = gaussian.ideal(VARIANCE_EXPLODING)

    def of(x0, mask=None, rows=slice(None), stems=slice(None)):
        parts = (y[rows, stems] for y in (x0, eps, t))
        return loss.denoising_loss(denoise, *parts, weight=loss.edm_weight(0.5), mask=mask)

    found = of(x0, mask)
    np.testing.assert_allclose(found[0], of(x0)[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], of(x0, rows=slice(1, 2), stems=slice(0, 1))[0], rtol=1e-6)
    assert found[2] == 0
    np.testing.assert_array_equal(of(jnp.where(mask, x0, jnp.nan), mask), found)
    np.testing.assert_allclose(of(x0, mask[:1], rows=slice(0, 1))[0], found[0], rtol=1e-6)
