"""Tasks over stems against closed-form posteriors of normal data.

Monte Carlo: samples of one example that are independent of each other, or examples, all with fixed
seeds; everything within four standard errors (of a mean sqrt(v / n), of a covariance
sqrt((v_i v_j + c_ij^2) / n)).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.stems.sample import FrozenStems, Span, fill_in
from mgen.stems.settings import Dirac, Gaussian, SamplingConfig

COUNT = 2048
NAMES = ("bass", "drums", "guitar", "piano")
VARIANCES = np.asarray([0.04, 0.01, 0.0225, 0.0025])
MIX = 0.35
# Langevin dynamics at each noise level: likelihoods that hold only where sigma vanishes need it.
CORRECTED = SamplingConfig(
    steps=100, sigma_min=1e-3, sigma_max=1.0, sampler="heun", churn=50.0, repeats=10
)
# What is given without noise needs none: any solver of the probability flow is exact.
FLOW = SamplingConfig(steps=64, sigma_min=1e-3, sampler="heun")
CORRELATED = np.asarray([[0.09, 0.05, 0.02], [0.05, 0.0625, -0.01], [0.02, -0.01, 0.04]])


def over_stems(covariance):
    """E[x_0 | x_t] of stems [B, S, T, C] that are correlated in each sample."""

    def denoise(x, t):
        noise = jnp.square(jnp.broadcast_to(t, (t.shape[0], x.shape[1], 1, 1)))[:, :, 0, 0]
        inverse = jnp.linalg.inv(covariance[None] + jax.vmap(jnp.diag)(noise))
        return x - noise[:, :, None, None] * jnp.einsum("brs,bstc->brtc", inverse, x)

    return denoise


def over_time(covariance):
    """The same of one stem [B, 1, T, 1] whose samples are correlated."""

    def denoise(x, t):
        noise = jnp.square(jnp.broadcast_to(t, (t.shape[0], 1, 1, 1)))[:, 0]
        inverse = jnp.linalg.inv(covariance[None] + noise * jnp.eye(x.shape[2])[None])
        return x - noise[:, None] * jnp.einsum("btu,bsuc->bstc", inverse, x)

    return denoise


def model(covariance, samples=COUNT, *, estimate=over_stems, **fields):
    covariance = jnp.asarray(covariance, jnp.float32)
    stems = len(covariance) if estimate is over_stems else 1
    settings = dict(
        names=NAMES[:stems], sample_rate=100, channels=1, samples=samples, hop=256, per_track=False
    )
    return FrozenStems(**(settings | fields), estimate=estimate, params=covariance)


INDEPENDENT = model(np.diag(VARIANCES))
MIXES = np.full((1, COUNT, 1), MIX, np.float32)


def conditional(covariance, given, values):
    """Mean and covariance of what is not given."""
    rest = [i for i in range(len(covariance)) if i not in given]
    own, cross = covariance[np.ix_(rest, rest)], covariance[np.ix_(rest, given)]
    gain = cross @ np.linalg.inv(covariance[np.ix_(given, given)])
    return gain @ np.asarray(values), own - gain @ cross.T


def given_mix(covariance, mix):
    """Of stems given their sum."""
    column = covariance.sum(axis=1)
    return column / column.sum() * mix, covariance - np.outer(column, column) / column.sum()


def assert_posterior(samples, mean, covariance):
    """samples [n, S]."""
    variances, count = np.diag(covariance), len(samples)
    assert np.all(np.abs(samples.mean(axis=0) - mean) < 4 * np.sqrt(variances / count))
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / count)
    assert np.all(np.abs(np.cov(samples.T) - covariance) < 4 * error)


@pytest.mark.parametrize("derived", [0, None])
def test_separation_by_any_derived_stem_draws_from_the_posterior(derived):
    stems = INDEPENDENT.separate(MIXES, seeds=[0], likelihood=Dirac(derived), sampling=CORRECTED)
    np.testing.assert_allclose(stems.sum(axis=1), MIXES, atol=1e-6)
    assert_posterior(stems[0, :, :, 0].T, *given_mix(np.diag(VARIANCES), MIX))


def test_msdms_settings_keep_most_of_the_variance():
    """First-order steps with little fresh noise: 0.8 to 0.95 of it, and means to a hundredth."""
    stems = INDEPENDENT.separate(MIXES, seeds=[0])[0, :, :, 0]
    mean, covariance = given_mix(np.diag(VARIANCES), MIX)
    share = stems.var(axis=1) / np.diag(covariance)
    assert np.all((share > 0.8) & (share < 0.95)), share
    np.testing.assert_allclose(stems.mean(axis=1), mean, atol=0.01)


def test_gaussian_separation_draws_from_the_posterior():
    # Any gamma that vanishes with sigma would do; smaller ones need smaller steps.
    sampling = dataclasses.replace(CORRECTED, repeats=20)
    stems = INDEPENDENT.separate(MIXES, seeds=[0], likelihood=Gaussian(2.0), sampling=sampling)
    assert_posterior(stems[0, :, :, 0].T, *given_mix(np.diag(VARIANCES), MIX))


def test_msdms_gamma_is_stable_in_msdms_schedule_and_a_smaller_one_is_not():
    def off(likelihood):
        stems = INDEPENDENT.separate(MIXES, seeds=[0], likelihood=likelihood)
        return np.abs(stems.sum(axis=1) - MIXES).max()

    assert off(Gaussian()) < 0.05
    assert off(Gaussian(0.75)) > 0.2


@pytest.mark.parametrize("per_track", [False, True])
def test_arranging_draws_from_the_conditional_distribution(per_track):
    own = model(CORRELATED, per_track=per_track)
    given = {"guitar": np.full((1, COUNT, 1), 0.3, np.float32)}
    settings = dict(seeds=[0], sampling=FLOW if per_track else CORRECTED)
    made = own.arrange(given, ["drums", "bass"], **settings)
    mean, covariance = conditional(CORRELATED, [2], [0.3])
    assert_posterior(made[0, ::-1, :, 0].T, mean, covariance)
    # A stem that is neither given nor wanted tells nothing.
    (alone,) = own.arrange(given, ["drums"], **settings)[0]
    np.testing.assert_array_equal(alone, made[0, 0])


def test_inpainting_some_stems_draws_given_the_others():
    """Of drums a span is missing; there they follow from bass and guitar."""
    own = model(CORRELATED, per_track=True)
    stems = np.broadcast_to(np.float32([0.2, 9.0, -0.1])[None, :, None, None], (1, 3, COUNT, 1))
    spans = [Span(1.0, 20.0, ["drums"])]
    made = own.inpaint(stems, spans, seeds=[0], sampling=CORRECTED)
    hole = np.zeros(stems.shape, bool)
    hole[:, 1, 100:2000] = True
    np.testing.assert_array_equal(made[~hole], stems[~hole])
    mean, covariance = conditional(CORRELATED, [0, 2], [0.2, -0.1])
    assert abs(made[hole].mean() - mean[0]) < 4 * np.sqrt(covariance[0, 0] / 1900)
    assert abs(made[hole].var() / covariance[0, 0] - 1) < 4 * np.sqrt(2 / 1900)


def test_extending_draws_given_the_beginning():
    """Two samples that are correlated, 2048 times."""
    covariance = CORRELATED[:2, :2]
    fields = dict(estimate=over_time, hop=2, sample_rate=1, per_track=True)
    own = model(covariance, samples=2, **fields)
    first = np.full((COUNT, 1, 1, 1), 0.3, np.float32)
    made = own.extend(first, 1.0, seeds=np.arange(COUNT), sampling=CORRECTED)
    np.testing.assert_array_equal(made[:, :, :1], first)
    mean, variance = conditional(covariance, [0], [0.3])
    assert abs(made[:, 0, 1].mean() - mean[0]) < 4 * np.sqrt(variance[0, 0] / COUNT)
    assert abs(made[:, 0, 1].var() / variance[0, 0] - 1) < 4 * np.sqrt(2 / COUNT)


@pytest.mark.parametrize("likelihood", [Dirac(0), Gaussian(2.0)], ids=["dirac", "gaussian"])
def test_a_mix_of_which_a_stem_is_known(likelihood):
    """The mix, less what is known of it, is the sum of the others."""
    own = dataclasses.replace(INDEPENDENT, per_track=True)
    known = np.zeros((1, 4, COUNT, 1), np.float32)
    known[:, 1] = 0.1
    mask = np.zeros(known.shape[:3], bool)
    mask[:, 1] = True
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    made = np.asarray(
        fill_in(
            own, known, mask, keys, np.zeros(1, int), mix=MIXES[:, None], likelihood=likelihood,
            sampling=dataclasses.replace(CORRECTED, repeats=20),
        )
    )  # fmt: skip
    np.testing.assert_array_equal(made[:, 1], known[:, 1])
    rest = [0, 2, 3]
    mean, covariance = given_mix(np.diag(VARIANCES[rest]), MIX - 0.1)
    assert_posterior(made[0, rest, :, 0].T, mean, covariance)


def test_independent_models_are_a_joint_one_without_correlations():
    alone = [
        dataclasses.replace(model(np.diag(VARIANCES[i : i + 1])), names=(name,))
        for i, name in enumerate(NAMES)
    ]
    together = FrozenStems.independent(alone)
    assert together.names == NAMES
    settings = dict(seeds=[0], sampling=CORRECTED)
    found, expected = (m.separate(MIXES, **settings) for m in (together, INDEPENDENT))
    # Langevin dynamics forgets roundings.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(UserError, match="sample_rate 200, not 100"):
        FrozenStems.independent([alone[0], dataclasses.replace(alone[1], sample_rate=200)])
    with pytest.raises(UserError, match="expected one stem"):
        FrozenStems.independent([INDEPENDENT])
