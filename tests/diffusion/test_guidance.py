"""Guidance: identities that the formulas imply, and each written out for two numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from mgen.diffusion.guidance import guided, projected, rescaled, stacked, within

X = jnp.asarray([[[0.3], [-1.2]], [[2.0], [0.7]], [[0.0], [0.0]]])  # [B, T, C]
T = jnp.full((3, 1, 1), 0.5)
# Float32; estimates of order 1 to 10.
TOLERANCE = dict(rtol=0, atol=1e-5)


def unconditional(x, t):
    return 0.5 * x * t


def conditional(x, t):
    return jnp.sin(x) + t


def other(x, t):
    return -(x**2)


BOTH, THREE = stacked(unconditional, conditional), stacked(unconditional, conditional, other)
U, C, D = (np.asarray(denoise(X, T)) for denoise in (unconditional, conditional, other))


def test_weight_one_is_the_conditional_estimate_and_zero_the_unconditional():
    assert BOTH(X, T).shape == (2, 3, 2, 1)
    for denoise in (guided(BOTH, 1.0), rescaled(BOTH, 1.0, 0.7), projected(BOTH, 1.0, limit=0.1)):
        np.testing.assert_allclose(denoise(X, T), C, **TOLERANCE)
    np.testing.assert_allclose(guided(BOTH, 0.0)(X, T), U, **TOLERANCE)
    np.testing.assert_allclose(guided(BOTH, 3.0)(X, T), U + 3 * (C - U), **TOLERANCE)


def test_two_equal_conditions_are_one_of_their_summed_weight():
    twice = guided(stacked(unconditional, conditional, conditional), 1.5, 2.0)
    np.testing.assert_allclose(twice(X, T), guided(BOTH, 3.5)(X, T), **TOLERANCE)
    found = guided(THREE, 1.5, 0.5)(X, T)
    np.testing.assert_allclose(found, U + 1.5 * (C - U) + 0.5 * (D - U), **TOLERANCE)


def test_an_interval_guides_within_its_times_only():
    """(low, high], each example by its own time."""
    times = jnp.asarray([0.2, 0.6, 0.6001]).reshape(3, 1, 1)
    found = guided(BOTH, within(4.0, 0.2, 0.6))(X, times)
    strong = guided(BOTH, 4.0)(X, times)
    plain = conditional(X, times)
    np.testing.assert_allclose(found[1], strong[1], **TOLERANCE)
    np.testing.assert_allclose(found[::2], plain[::2], **TOLERANCE)
    assert np.abs(strong - plain).min() > 0.01
    projected_too = projected(BOTH, within(4.0, 0.2, 0.6))(X, times)
    np.testing.assert_allclose(projected_too[::2], plain[::2], **TOLERANCE)


def test_rescaling_gives_back_the_standard_deviation_of_the_conditional_estimate():
    strong = np.asarray(guided(BOTH, 5.0)(X, T))
    np.testing.assert_allclose(rescaled(BOTH, 5.0, 0.0)(X, T), strong, **TOLERANCE)
    whole = np.asarray(rescaled(BOTH, 5.0, 1.0)(X, T))
    np.testing.assert_allclose(whole[:2].std(axis=(1, 2)), C[:2].std(axis=(1, 2)), **TOLERANCE)
    found = rescaled(BOTH, 5.0, 0.7)(X, T)
    np.testing.assert_allclose(found, 0.7 * whole + 0.3 * strong, **TOLERANCE)
    assert np.isfinite(found).all()  # example 2 is constant: nothing to scale


def test_projection_takes_the_parallel_part_away():
    """With all of it and no limit this is plain guidance; with none of it what is added is at right
    angles to the conditional estimate; the limit bounds its length."""
    np.testing.assert_allclose(
        projected(BOTH, 4.0, parallel=1.0)(X, T), guided(BOTH, 4.0)(X, T), rtol=1e-5
    )
    added = np.asarray(projected(BOTH, 4.0)(X, T)) - C
    np.testing.assert_allclose((added * C).sum(axis=(1, 2)), 0, atol=1e-5)
    assert np.abs(added[:2]).max() > 0.5
    # What is parallel already has no other part (example 2: both estimates are constant).
    np.testing.assert_allclose(added[2], 0, atol=1e-6)
    short = np.asarray(projected(BOTH, 4.0, parallel=1.0, limit=0.1)(X, T)) - C
    np.testing.assert_allclose(np.sqrt((short**2).sum(axis=(1, 2))), 3 * 0.1, **TOLERANCE)
    long = projected(BOTH, 4.0, limit=100.0)(X, T)
    np.testing.assert_allclose(long, projected(BOTH, 4.0)(X, T), **TOLERANCE)


def test_autoguidance_of_normal_data_sharpens_it():
    """A worse model that believes in twice the variance: the guided estimate of N(0, s^2) is that
    of a narrower prior, and by the formula exactly."""
    good, bad = (lambda x, t, s=s: x * s / (s + t**2) for s in (0.25, 0.5))
    found = guided(stacked(bad, good), 2.0)(X, T)
    expected = X * (2 * 0.25 / 0.5 - 0.5 / 0.75)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert np.all(np.abs(found) <= np.abs(good(X, T)))


def test_an_example_is_guided_alone():
    for denoise in (rescaled(BOTH, 5.0, 0.7), projected(BOTH, 4.0, limit=0.5)):
        np.testing.assert_allclose(denoise(X, T)[1:2], denoise(X[1:2], T[1:2]), **TOLERANCE)


def test_estimates_without_a_weight_are_refused():
    with pytest.raises(ValueError, match="3 estimates"):
        guided(THREE, 2.0)(X, T)
