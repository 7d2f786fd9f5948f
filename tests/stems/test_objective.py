"""Objectives: a perfect network has no loss and denoises; times are of the distribution named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.diffusion.loss import draw_times
from mgen.errors import UserError
from mgen.stems.objective import OBJECTIVES, Objective

SETTINGS = dict(sigma_data=0.5, noise_mean=-0.4, noise_std=0.8)
X0 = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 1)), jnp.float32)
EPS = jnp.asarray(np.random.default_rng(1).standard_normal(X0.shape), jnp.float32)
T = jnp.asarray([0.2, 0.5, 0.8]).reshape(1, 3, 1, 1).repeat(2, 0)


def perfect(objective):
    """The network that knows `X0`, as a function of what the objective lets it read."""

    def network(x, level):
        if objective.name != "edm":
            np.testing.assert_allclose(level, T, rtol=1e-5)
            np.testing.assert_allclose(x, objective.process.noised(X0, EPS, T), atol=1e-5)
            return objective.process.target(objective.kind, X0, EPS, T)
        total = jnp.sqrt(T**2 + 0.25)
        np.testing.assert_allclose(level, jnp.log(T) / 4, rtol=1e-5)
        return (X0 - 0.25 / total**2 * (x * total)) / (T * 0.5 / total)

    return network


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_perfect_network_denoises_without_loss(name):
    objective = Objective(name=name, **SETTINGS)
    network = perfect(objective)
    sigma = objective.process.noise_to_signal(T)
    found = objective.denoiser(network)(X0 + sigma * EPS, sigma)
    np.testing.assert_allclose(found, X0, atol=1e-5)
    np.testing.assert_allclose(objective.loss(network, X0, EPS, T), 0, atol=1e-9)

    def wrong(x, level):
        return network(x, level) + jnp.asarray([0.3, 0.3, 9.0]).reshape(1, 3, 1, 1)

    # Squared errors of the network's own output, whose weight is 1; masked ones do not count.
    mask = jnp.asarray([True, True, False]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(objective.loss(wrong, X0, EPS, T, mask), 0.09, rtol=1e-4)


def test_only_edm_clips():
    objective = Objective(name="edm", sigma_data=0.5, clip=0.1)
    out = objective.denoiser(lambda x, level: x)(X0, T)
    assert np.abs(out).max() == np.float32(0.1)


@pytest.mark.parametrize(
    ("name", "median", "share"),
    [("edm", np.exp(-0.4), np.exp(0.4)), ("flow", 1 / (1 + np.exp(0.4)), 1 / (1 + np.exp(-0.4)))],
)
def test_times_have_the_median_and_the_spread_named(name, median, share):
    """`share` is one deviation above the mean: 84.1 %; four standard errors of 4000 draws."""
    keys = jax.random.split(jax.random.key(0), 4000)
    times = np.asarray(draw_times(Objective(name=name, **SETTINGS).times, keys, ()))
    assert abs((times < median).mean() - 0.5) < 4 * 0.5 / 4000**0.5
    assert abs((times < share).mean() - 0.8413) < 4 * 0.37 / 4000**0.5


def test_uniform_times_of_v():
    keys = jax.random.split(jax.random.key(0), 4000)
    times = np.asarray(draw_times(Objective(name="v").times, keys, ()))
    assert abs(times.mean() - 0.5) < 4 * 12**-0.5 / 4000**0.5 and 0 < times.min() < times.max() < 1


def test_unknown_objectives_are_refused():
    with pytest.raises(UserError, match=r"diffusion\.objective is 'ddpm', expected one of"):
        Objective(name="ddpm")
