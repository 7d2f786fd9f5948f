"""Data of which everything is known: one normal distribution, for all processes."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

MEAN, STD = 0.3, 0.5


@functools.cache
def ideal(process):
    """E[x_0 | x_t] of x_0 ~ N(MEAN, STD^2)."""

    def denoise(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    return denoise


def marginal(process, t):
    """Mean and standard deviation of x_t, float64."""
    alpha, sigma = (float(f(jnp.asarray(t))) for f in (process.alpha, process.sigma))
    return alpha * MEAN, np.sqrt(alpha**2 * STD**2 + sigma**2)


def flow(process, x, t, u):
    """The probability flow from x at t to u: the same quantile of the other marginal."""
    (mean, std), (mean_u, std_u) = marginal(process, t), marginal(process, u)
    return mean_u + (np.asarray(x) - mean) * std_u / std


def keys(count, seed=0):
    """One key an example."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


def start(process, t, count, shape=()):
    """`count` draws of x_t and their keys."""
    mean, std = marginal(process, t)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys(count, 1))
    return mean + std * noise, keys(count, 2)


@pytest.fixture(scope="session")
def gaussian():
    return types.SimpleNamespace(
        mean=MEAN, std=STD, ideal=ideal, marginal=marginal, flow=flow, keys=keys, start=start
    )
