"""Losses over stems: noise levels, what counts, and the baseline against the filter itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.diffusion.loss import LogNormal, edm_weight
from mgen.diffusion.trajectory import draw_noise
from mgen.stems import loss
from mgen.stems.loss import Part, denoising, noise_levels, separation
from mgen.stems.objective import Objective

TIMES = LogNormal(-3.0, 1.0)
WEIGHT = Objective(sigma_data=0.2).weight


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def levels(count=4000, stems=3, counted=None, **options):
    counted = np.ones((count, stems), bool) if counted is None else counted
    return np.asarray(drawn(keys(count), counted, **options))


@functools.partial(jax.jit, static_argnames=("per_track", "one_level"))
def drawn(keys, counted, low=0.0, high=1.0, per_track=True, given=0.0, one_level=False):
    kinds = dict(per_track=per_track, given=given, one_level=one_level)
    return noise_levels(keys, counted, times=Part(TIMES, low, high), **kinds)


def test_one_level_an_example_or_one_a_stem():
    one, each = levels(per_track=False), levels()
    assert one.shape == (4000, 1, 1, 1) and each.shape == (4000, 3, 1, 1)
    assert len(np.unique(one)) > 3990 and len(np.unique(each)) > 11900
    for found in (one, each):  # four standard errors
        np.testing.assert_allclose(np.log(found).mean(), -3, atol=4 / np.sqrt(found.size))


def test_those_that_are_not_given_may_share_a_level():
    found = levels(given=0.4, one_level=True)[..., 0, 0]
    clean = found == 0
    assert clean.any() and not clean.all(axis=1).any()
    own = found.max(axis=1, keepdims=True)
    np.testing.assert_array_equal(found[~clean], np.broadcast_to(own, found.shape)[~clean])
    assert len(np.unique(own)) > 3990


@pytest.mark.parametrize("given", [0.3, 0.7])
def test_given_stems_are_clean_and_one_stays_noised(given):
    clean = levels(given=given)[..., 0, 0] == 0
    assert not clean.all(axis=1).any()
    # Of examples that would be clean altogether one stem is not.
    share = given - given**3 / 3
    error = np.sqrt(given * (1 - given) / 4000)
    np.testing.assert_allclose(clean.mean(axis=0), share, atol=4 * error)
    both = (clean[:, 0] & clean[:, 1]).mean()
    np.testing.assert_allclose(both, given**2 - given**3 * 2 / 3, atol=4 * np.sqrt(0.25 / 4000))


def test_the_one_that_stays_noised_counts():
    counted = np.zeros((4000, 3), bool)
    counted[:2000, 1] = True
    clean = levels(given=0.9, counted=counted)[..., 0, 0] == 0
    assert not clean[:2000, 1].any() and clean[:2000, [0, 2]].all(axis=1).any()
    assert np.isfinite(levels(given=0.9, counted=counted)).all()  # also where nothing counts


def test_levels_of_an_example_are_its_own():
    counted, rows = np.ones((6, 3), bool), np.asarray([4, 1])
    whole = drawn(keys(6), counted, given=0.5)
    part = drawn(keys(6)[rows], counted[rows], given=0.5)
    np.testing.assert_array_equal(part, whole[rows])


def test_parts_lie_between_their_quantiles():
    edges = np.asarray(TIMES.quantile(jnp.asarray([1 / 3, 2 / 3])))
    low, middle, high = (levels(low=k / 3, high=(k + 1) / 3) for k in range(3))
    # float32 at the edges.
    assert low.max() < edges[0] * 1.0001 and high.min() > edges[1] * 0.9999
    assert edges[0] * 0.9999 < middle.min() and middle.max() < edges[1] * 1.0001
    ends = jnp.asarray([0.0, 2.0**-24, 0.3, 1 - 2.0**-24])
    last = Part(TIMES, jnp.float32(2 / 3), jnp.float32(1.0)).quantile(ends)
    assert np.isfinite(last).all()
    np.testing.assert_array_equal(Part(TIMES, 0.0, 1.0).quantile(ends), TIMES.quantile(ends))


@pytest.fixture(scope="module")
def stems():
    return jnp.asarray(0.3 * np.random.default_rng(0).standard_normal((5, 3, 64, 2)), jnp.float32)


def scaled(theta):
    """One number for each stem; a stem without noise comes back as it is."""
    return lambda x, t: jnp.where(t > 0, theta[None, :, None, None] * x, x)


@functools.partial(jax.jit, static_argnames="per_track")
def of_scaled(theta, stems, keys, counted, per_track=True, given=0.0):
    options = dict(times=TIMES, weight=WEIGHT, per_track=per_track, given=given)
    return denoising(scaled(theta), stems, keys, counted, **options)


@pytest.mark.parametrize("per_track", [False, True])
def test_loss_is_the_weighted_error_of_what_is_noised(stems, per_track):
    theta, counted = jnp.asarray([0.2, 0.5, -1.0]), np.ones((5, 3), bool)
    counted[0, 1] = counted[1] = False
    options = dict(per_track=per_track, given=0.6 * per_track)
    found = of_scaled(theta, stems, keys(5), counted, **options)
    pair = jax.vmap(jax.random.split)(keys(5))
    sigma = np.broadcast_to(drawn(pair[:, 0], counted, **options), (5, 3, 1, 1))
    eps = draw_noise(pair[:, 1], (3, 64, 2))
    assert (sigma == 0).any() == per_track
    for i in range(5):
        errors = [
            (sigma[i, s, 0, 0] ** 2 + 0.04)
            / (0.2 * sigma[i, s, 0, 0]) ** 2
            * np.mean((theta[s] * (stems[i, s] + sigma[i, s] * eps[i, s]) - stems[i, s]) ** 2)
            for s in range(3)
            if counted[i, s] and sigma[i, s, 0, 0] > 0
        ]
        # float32 sums of 128 terms
        np.testing.assert_allclose(found[i], np.mean(errors) if errors else 0.0, rtol=1e-4)


def test_gradients_come_from_noised_stems_that_count(stems):
    """theta_s of a stem that is given, or missing and not counted, gets no gradient, and no NaN."""
    counted = np.ones((5, 3), bool)
    counted[:, 2] = False
    pair = jax.vmap(jax.random.split)(keys(5))
    sigma = np.asarray(drawn(pair[:, 0], counted, given=0.5))[..., 0, 0]
    due = (sigma > 0) & counted
    assert due.any() and not due[:, :2].all()
    gradients = jax.jacobian(of_scaled)(jnp.full(3, 0.5), stems, keys(5), counted, given=0.5)
    np.testing.assert_array_equal(gradients != 0, due)
    assert np.isfinite(gradients).all()


def test_separation_loss_by_hand():
    measured = functools.partial(separation, spectral=0.5, windows=(64, 32))
    rng = np.random.default_rng(0)
    target, estimate = (rng.standard_normal((2, 3, 200, 2)).astype(np.float32) for _ in range(2))
    found = jax.jit(measured)(target, estimate)
    error = np.moveaxis(target - estimate, -1, 2)
    expected = np.abs(error).mean(axis=(1, 2, 3))
    for size in (64, 32):
        window = np.hanning(size + 1)[:-1]
        padded = np.pad(error, ((0, 0),) * 3 + ((size // 2, size // 2),), mode="reflect")
        starts = range(0, 200 + 1, size // 4)
        frames = [np.fft.rfft(padded[..., i : i + size] * window) for i in starts]
        magnitude = np.abs(np.stack(frames)) / np.linalg.norm(window)
        expected += 0.25 * magnitude.mean(axis=(0, 2, 3, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # float32 transforms
    # So is the gradient of a perfect estimate.
    at_best = jax.jit(jax.grad(lambda x: measured(x, target).sum()))(target)
    assert np.isfinite(at_best).all()


@pytest.fixture(scope="module")
def coloured():
    """Noise of two spectra, 200 examples of two blocks; the second stem is missing in 50."""
    rng = np.random.default_rng(0)
    gains = np.stack([np.linspace(0.3, 0.01, 1024), np.full(1024, 0.05)])
    gains = np.maximum(gains, np.roll(gains[:, ::-1], 1, axis=1))  # of real signals
    white = np.fft.fft(rng.standard_normal((200, 2, 2, 1024)), axis=-1, norm="ortho")
    blocks = np.fft.ifft(white * gains[None, :, None], axis=-1, norm="ortho").real
    counted = np.ones((200, 2), bool)
    counted[150:, 1] = False
    stems = blocks.reshape(200, 2, 2048, 1) * counted[..., None, None]
    return stems.astype(np.float32), counted, np.square(gains)


def test_power_spectrum_is_that_of_the_signal(coloured):
    stems, counted, power = coloured
    found = loss.power_spectrum(stems, counted) / counted.sum(axis=0)[:, None]
    assert found.shape == (2, 1024)
    # 400 and 300 blocks of chi-square with two degrees of freedom; five standard errors over 2048.
    np.testing.assert_allclose(found / power, 1, atol=5 * np.sqrt(2 / 300))
    energy = np.square(stems).mean(axis=(0, 2, 3)) * 200 / counted.sum(axis=0)
    np.testing.assert_allclose(found.mean(axis=1), energy, rtol=1e-5)  # Parseval


def test_wiener_loss_is_what_the_filter_gets(coloured):
    """Noise of one level added to 200 examples, filtered, weighted."""
    stems, counted, power = coloured
    own = loss.power_spectrum(stems, counted) / counted.sum(axis=0)[:, None]
    known = 0.5 * power  # not the best filter, but an honest loss of it
    found = loss.wiener_loss(known, own, np.asarray([0.05, 1.0]), 0.2)
    for sigma, expected in zip((0.05, 1.0), found):
        noisy = stems + sigma * np.random.default_rng(1).standard_normal(stems.shape)
        spectrum = np.fft.fft(noisy.reshape(200, 2, 2, 1024), axis=-1)
        spectrum *= (known / (known + sigma**2))[None, :, None]
        error = np.fft.ifft(spectrum, axis=-1).real.reshape(stems.shape) - stems
        measured = float(edm_weight(0.2)(sigma)) * np.square(error).mean(axis=(2, 3))
        got = [measured[counted[:, s], s] for s in range(2)]
        error = [x.std() / np.sqrt(len(x)) for x in got]
        assert np.all(np.abs([x.mean() for x in got] - expected) < 4 * np.asarray(error))


def test_wiener_loss_is_least_where_the_spectrum_is_known():
    power = np.random.default_rng(0).uniform(0, 0.1, (2, 8))
    sigma = np.asarray([0.01, 0.1, 1.0])
    best = loss.wiener_loss(power, power, sigma, 0.2)
    for other in (1.1 * power, 0.9 * power, np.full_like(power, power.mean())):
        assert np.all(loss.wiener_loss(other, power, sigma, 0.2) > best)
    # White stems of variance sigma_data^2: 1 at all levels, as an untrained network has.
    white = np.full((2, 8), 0.04)
    np.testing.assert_allclose(loss.wiener_loss(white, white, sigma, 0.2), 1)
