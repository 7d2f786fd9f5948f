"""Separation in latents: the mix through the decoder, and the mix as a track.

Posteriors are closed-form ones of normal latents and linear decoders. Monte Carlo: 2048 samples
with fixed keys, everything within four standard errors (of a mean sqrt(v / n), of a covariance
sqrt((v_i v_j + c_ij^2) / n)).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.diffusion.process import RECTIFIED_FLOW, VARIANCE_EXPLODING
from mgen.diffusion.samplers import SAMPLERS, initial_noise, sample
from mgen.diffusion.schedules import karras, linear, shifted
from mgen.stems import mixture

COUNT, STEMS, FRAMES, DIM, HOP = 2048, 2, 2, 3, 2
# Orthogonal rows of length 0.8: what the decoder of a frame leaves white is white.
ROTATION = np.linalg.qr(np.random.default_rng(3).standard_normal((DIM, DIM)))[0]
KERNEL = np.asarray(0.8 * ROTATION[:, :HOP], np.float32)
GRAM, NOISE = STEMS * 0.8**2, 0.1


def decode(latents):
    """Linear, [B, S, F, D] to [B, S, T, 1]."""
    batch, stems = latents.shape[:2]
    return (latents @ KERNEL).reshape(batch, stems, -1, 1)


def convolve(latents):
    """Each frame from itself and its neighbours, zeros beyond the ends; not linear."""
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((3, DIM, 4)), latents.dtype)
    rows = latents.reshape(-1, *latents.shape[2:])
    layout = ("NWC", "WIO", "NWC")
    out = jax.lax.conv_general_dilated(jnp.tanh(rows), kernel, (1,), "SAME", None, None, layout)
    return out.reshape(*latents.shape[:2], -1, 2)


def test_parts_join_to_the_whole_with_gradients():
    """One frame of context is all that the decoder sees; 11 frames are no multiple of 4."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        latents, weights = rng.standard_normal((2, 3, 11, DIM)), rng.standard_normal((2, 1, 22, 2))

        def loss(measure, latents):
            return jnp.sum(jnp.square(measure(latents)) * weights)

        whole = mixture.mixture(convolve)
        parts = mixture.mixture(convolve, frames=4, context=1)
        expected = np.asarray(convolve(latents)).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(whole(latents), expected, atol=1e-12)
        np.testing.assert_allclose(parts(latents), expected, atol=1e-12)
        gradients = [jax.grad(loss, argnums=1)(measure, latents) for measure in (whole, parts)]
        np.testing.assert_allclose(gradients[1], gradients[0], atol=1e-12)
        step = 1e-6 * rng.standard_normal(latents.shape)
        slope = loss(parts, latents + step) - loss(parts, latents - step)
        np.testing.assert_allclose(2 * np.sum(gradients[1] * step), slope, rtol=1e-6)
        # Without context the seams show.
        assert np.abs(mixture.mixture(convolve, frames=4)(latents) - expected).max() > 1e-2


def test_parts_bound_the_memory_of_a_gradient():
    def wide(latents):
        hidden = jnp.tanh(jnp.repeat(latents, 64, axis=3))
        return jnp.tanh(hidden @ jnp.ones((64 * DIM, 1)))

    def temporary(**settings):
        measure = mixture.mixture(wide, **settings)
        gradient = jax.jit(jax.grad(lambda z: jnp.sum(jnp.square(measure(z)))))
        z = jax.ShapeDtypeStruct((1, 2, 512, DIM), jnp.float32)
        return gradient.lower(z).compile().memory_analysis().temp_size_in_bytes

    assert temporary(frames=16) < temporary() / 4


def test_gram_is_what_arrives_in_the_mix():
    latents = jnp.zeros((COUNT, STEMS, FRAMES, DIM))
    keys = jax.random.split(jax.random.key(0), COUNT)
    found = np.asarray(mixture.gram(mixture.mixture(decode), latents, keys))
    assert found.shape == (COUNT, 1, 1, 1)
    # |v|^2 of four white numbers, times GRAM / 4.
    assert abs(found.mean() - GRAM) < 4 * GRAM * np.sqrt(2 / (FRAMES * HOP) / COUNT)
    some = mixture.gram(mixture.mixture(decode), latents[:2], keys[7:9])
    np.testing.assert_allclose(some, found[7:9], rtol=1e-5)


def assert_posterior(samples, mean, covariance):
    variances, count = np.diag(covariance), len(samples)
    error = np.sqrt(variances / count)
    assert np.all(np.abs(samples.mean(axis=0) - mean) < 4 * error)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / count)
    assert np.all(np.abs(np.cov(samples.T) - covariance) < 4 * error)


def draw(denoise, times, process, keys, shape):
    x = initial_noise(keys, shape, times[0], process)

    @jax.jit
    def run(x):
        return sample(denoise, x, times, sampler=SAMPLERS["heun"], process=process)

    return np.asarray(run(x))


def prior(process, x, t):
    """E[x_0 | x_t] of white latents."""
    alpha = process.alpha(t)
    return alpha / (jnp.square(alpha) + jnp.square(process.sigma(t))) * x


@pytest.mark.parametrize(
    ("process", "times"),
    [
        (VARIANCE_EXPLODING, karras(48, 1e-3, 20.0)),
        (RECTIFIED_FLOW, shifted(linear(96), 3.0)),
    ],
    ids=["edm", "flow"],
)
def test_consistent_latents_are_of_the_posterior(process, times):
    """PiGDM is exact here: white latents, and a decoder that keeps white what it keeps."""
    mix = np.linspace(-0.8, 1.2, FRAMES * HOP).reshape(1, 1, -1, 1)
    denoise = mixture.consistent(
        functools.partial(prior, process),
        mixture.mixture(decode, frames=1),
        jnp.asarray(mix, jnp.float32),
        gram=GRAM,
        std=NOISE,
        process=process,
    )
    keys = jax.random.split(jax.random.key(0), COUNT)
    found = draw(denoise, times, process, keys, (STEMS, FRAMES, DIM)).reshape(COUNT, -1)
    # A of the posterior, a column a latent.
    eye = np.eye(STEMS * FRAMES * DIM).reshape(-1, STEMS, FRAMES, DIM)
    a = np.asarray(decode(eye)).sum(axis=1)[..., 0].T
    gain = a.T @ np.linalg.inv(a @ a.T + NOISE**2 * np.eye(len(a)))
    assert_posterior(found, gain @ mix.ravel(), np.eye(len(eye)) - gain @ a)


def test_consistency_adds_the_gradient_through_the_decoder():
    """By differences in float64, through a nonlinear denoiser and a nonlinear decoder in parts."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, t = jnp.asarray(rng.standard_normal((1, 2, 5, DIM))), jnp.full((1,) * 4, 0.4)
        mix = jnp.asarray(rng.standard_normal((1, 1, 10, 2)))

        def denoise(x, t):
            return jnp.tanh(x) * (1 - t) + 0.1 * jnp.sum(x, axis=1, keepdims=True)

        measure = mixture.mixture(convolve, frames=2, context=1)
        strong = mixture.consistent(denoise, measure, mix, gram=1.7, std=0.3, sigma_data=0.9)
        variance = 1.7 * 0.4**2 * 0.9**2 / (0.4**2 + 0.9**2) + 0.3**2

        @jax.jit
        def log_likelihood(x):
            sums = convolve(denoise(x, t)).sum(axis=1, keepdims=True)
            return -jnp.sum(jnp.square(mix - sums)) / (2 * variance)

        found = np.asarray(strong(x, t) - denoise(x, t))
        for _ in range(5):
            step = 1e-6 * rng.standard_normal(x.shape)
            slope = (log_likelihood(x + step) - log_likelihood(x - step)) / 2
            np.testing.assert_allclose(np.sum(found * step), 0.4**2 * slope, rtol=1e-5)


def test_a_mix_beside_the_stems_is_a_condition():
    """The exact denoiser of two numbers and their sum, each of a noise level of its own."""
    variances, value = np.asarray([0.09, 0.04]), 0.35
    stack = np.asarray([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    joint = jnp.asarray(stack @ np.diag(variances) @ stack.T, jnp.float32)

    def exact(x, t):
        """E[x_0 | x_t] of x [B, 3, 1, 1] and t [B, 3, 1, 1]."""
        noise = jax.vmap(jnp.diag)(jnp.square(t[..., 0, 0]))
        gain = jnp.linalg.solve(joint[None] + noise, joint[None].repeat(len(x), 0)).swapaxes(1, 2)
        return jnp.einsum("bij,bjfd->bifd", gain, x)

    denoise = mixture.beside_mix(exact, jnp.full((COUNT, 1, 1, 1), value))
    keys = jax.random.split(jax.random.key(0), COUNT)
    times = karras(48, 1e-2, 2.0)
    found = draw(denoise, times, VARIANCE_EXPLODING, keys, (2, 1, 1)).reshape(COUNT, 2)
    mean = variances / variances.sum() * value
    covariance = np.diag(variances) - np.outer(variances, variances) / variances.sum()
    assert_posterior(found, mean, covariance)


def test_the_mix_is_always_clean():
    seen = []

    def denoise(x, t):
        seen.append((x, t))
        return 2 * x

    x, mix = jnp.full((2, 3, 4, 5), 3.0), jnp.full((2, 1, 4, 5), 7.0)
    for t in (jnp.full((1,) * 4, 0.5), jnp.full((2, 3, 1, 1), 0.5)):
        np.testing.assert_array_equal(mixture.beside_mix(denoise, mix)(x, t), 2 * x)
        tracks, levels = seen.pop()
        np.testing.assert_array_equal(tracks[:, 0], 7.0)
        np.testing.assert_array_equal(tracks[:, 1:], 3.0)
        np.testing.assert_array_equal(levels[:, :, 0, 0], [[0, 0.5, 0.5, 0.5]] * 2)
