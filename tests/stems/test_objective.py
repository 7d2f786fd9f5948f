"""Objectives: told in noise levels they are what their papers have; levels are as named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.diffusion.loss import denoising_loss, draw_times, uniform_weight
from mgen.errors import UserError
from mgen.stems.objective import OBJECTIVES, Objective

SETTINGS = dict(sigma_data=0.5, noise_mean=-0.4, noise_std=0.8)
X0 = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 1)), jnp.float32)
EPS = jnp.asarray(np.random.default_rng(1).standard_normal(X0.shape), jnp.float32)
T = jnp.asarray([0.2, 0.5, 0.8]).reshape(1, 3, 1, 1).repeat(2, 0)


def network(x, level):
    return jnp.tanh(x + level)


@pytest.mark.parametrize("name", ["v", "flow"])
def test_loss_and_estimate_are_those_of_the_process(name):
    """Also where a stem is given: it has no loss and no gradient."""
    objective = Objective(name=name, **SETTINGS)
    process, kind = objective.process, objective.kind
    sigma = process.noise_to_signal(T)
    noised = process.noised(X0, EPS, T)
    expected = process.convert(network(noised, T), noised, T, kind, "x0")
    denoise = objective.denoiser(network)
    np.testing.assert_allclose(denoise(X0 + sigma * EPS, sigma), expected, atol=1e-5)
    options = dict(process=process, kind=kind, weight=uniform_weight)
    expected = denoising_loss(network, X0, EPS, T, **options)
    found = denoising_loss(denoise, X0, EPS, sigma, weight=objective.weight)
    np.testing.assert_allclose(found, expected, rtol=1e-4)

    def some(scale):
        levels, mask = sigma.at[:, 1].set(0.0), jnp.asarray([True, False, True])
        given = objective.denoiser(lambda x, t: scale * network(x, t))
        options = dict(weight=objective.weight, mask=mask.reshape(1, 3, 1, 1))
        return denoising_loss(given, X0, EPS, levels, **options).sum()

    assert np.isfinite(jax.grad(some)(1.0)) and jax.grad(some)(1.0) != 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_given_stems_stay_as_they_are(name):
    """At noise level 0, beside noised ones."""
    denoise = Objective(name=name, **SETTINGS).denoiser(network)
    sigma = jnp.asarray([0.0, 0.5, 0.0]).reshape(1, 3, 1, 1)
    out = denoise(X0, sigma)
    np.testing.assert_allclose(out[:, ::2], X0[:, ::2], atol=1e-6)
    assert np.abs(out[:, 1] - X0[:, 1]).min() > 1e-3


def test_edm_is_preconditioned_and_weighs_errors_of_the_network_alike():
    objective = Objective(name="edm", **SETTINGS)
    total = jnp.sqrt(T**2 + 0.25)
    inner = network(X0 / total, jnp.log(T) / 4)
    expected = 0.25 / total**2 * X0 + T * 0.5 / total * inner
    np.testing.assert_allclose(objective.denoiser(network)(X0, T), expected, atol=1e-5)
    np.testing.assert_allclose(objective.weight(T), (total / (T * 0.5)) ** 2, rtol=1e-5)
    clipped = Objective(name="edm", sigma_data=0.5, clip=0.1).denoiser(network)
    assert np.abs(clipped(X0, T)).max() == np.float32(0.1)


@pytest.mark.parametrize(
    ("name", "median", "share"),
    [("edm", np.exp(-0.4), np.exp(0.4)), ("flow", np.exp(-0.4), np.exp(0.4)), ("v", 1.0, 1.0)],
)
def test_levels_have_the_median_and_the_spread_named(name, median, share):
    """`share` is one deviation above the mean of the logarithm: 84.1 %. Of the quarter turn of "v"
    the half is at level 1. Four standard errors of 4000 draws."""
    keys = jax.random.split(jax.random.key(0), 4000)
    levels = np.asarray(draw_times(Objective(name=name, **SETTINGS).levels, keys, ()))
    assert abs((levels < median).mean() - 0.5) < 4 * 0.5 / 4000**0.5
    if name == "v":
        share, below = np.tan(np.pi / 2 * 0.9), 0.9
    else:
        below = 0.8413
    assert abs((levels < share).mean() - below) < 4 * 0.37 / 4000**0.5


def test_unknown_objectives_are_refused():
    with pytest.raises(UserError, match=r"diffusion\.objective is 'ddpm', expected one of"):
        Objective(name="ddpm")
