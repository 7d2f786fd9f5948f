"""The denoiser in bands: laws of its input, what it reads, sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.stems.band_denoiser import BandDenoiser
from mgen.stems.config import BandDenoiserConfig

SHAPE = dict(channels=2, n_fft=64, hop=16, bands=4, width=8, heads=2, layers=1, ff_multiplier=2)
BESIDE = BandDenoiserConfig(stems=3, mix=True, per_track=True, **SHAPE)
ALONE = BandDenoiserConfig(stems=2, **SHAPE)
SAMPLES = 160


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, x, noise):
    return BandDenoiser(config).apply({"params": params}, x, noise)


def shapes_of(config, samples=SAMPLES):
    x = jax.ShapeDtypeStruct((1, config.stems, samples, config.channels), jnp.float32)
    levels = jax.ShapeDtypeStruct((1, config.stems) if config.per_track else (1,), jnp.float32)
    init = BandDenoiser(config).init_with_output
    out, variables = jax.eval_shape(init, jax.random.key(0), x, levels)
    assert out.shape == x.shape and out.dtype == jnp.float32
    return variables["params"]


def drawn(config):
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = np.prod(leaf.shape[-2:-1]) ** -0.5 if leaf.ndim > 1 else 0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes_of(config))


@pytest.fixture(scope="module")
def beside():
    return drawn(BESIDE)


@pytest.fixture(scope="module")
def tracks():
    return np.random.default_rng(1).standard_normal((2, 3, SAMPLES, 2)).astype(np.float32)


LEVELS = np.asarray([[-2.3, -1.0, 0.1], [-2.3, 0.2, -0.8]], np.float32)


def test_an_example_is_its_own_and_the_mix_gets_no_estimate(beside, tracks):
    made = np.asarray(run(BESIDE, beside, tracks, LEVELS))
    assert not made[:, 0].any() and made[:, 1:].any(axis=(2, 3)).all()
    turned = run(BESIDE, beside, tracks[::-1], LEVELS[::-1])
    np.testing.assert_allclose(turned[::-1], made, atol=1e-4)  # float32


def test_every_track_and_level_is_read(beside, tracks):
    made = np.asarray(run(BESIDE, beside, tracks, LEVELS))
    for track in range(3):
        other = tracks.copy()
        other[0, track] *= 0.5
        changed = np.abs(run(BESIDE, beside, other, LEVELS) - made).max(axis=(2, 3))
        assert changed[0, 1:].min() > 1e-3 and changed[1].max() < 1e-4
        levels = LEVELS.copy()
        levels[0, track] += 0.5
        changed = np.abs(run(BESIDE, beside, tracks, levels) - made).max(axis=(2, 3))
        assert changed[0, 1:].min() > 1e-4 and changed[1].max() < 1e-4


def test_silence_stays_silent(beside, tracks):
    nothing = np.zeros_like(tracks)
    assert not np.any(run(BESIDE, beside, nothing, LEVELS))


def test_the_sum_stands_for_a_mix_that_is_no_track(tracks):
    """Masks of no own part, and of one of the sum: what is on one track comes out on both."""
    params = drawn(ALONE)
    size = 2 * ALONE.channels * ALONE.band_bins
    values = np.zeros((4, 2, 2, size), np.float32)  # [K, own or sum, stem, re and im]
    values[:, 1, :, : size // 2] = 1.0
    open_gates = np.full_like(values, 50.0)
    bias = np.concatenate([values.reshape(4, -1), open_gates.reshape(4, -1)], axis=1)
    params["stack"]["mask_out"]["bias"] = jnp.asarray(bias)
    params["stack"]["mask_out"]["kernel"] *= 0.0
    time = np.arange(SAMPLES)[:, None] * np.ones(2)
    tone = np.sin(2 * np.pi * 5.3 / 64 * time).astype(np.float32)
    x = np.stack([tone, 0 * tone])[None]
    made = np.asarray(run(ALONE, params, x, np.zeros(1, np.float32)))
    middle = slice(48, -48)  # the ends are mirrored
    for stem in range(2):
        # Leakage of a Hann window into the bin that is left out.
        np.testing.assert_allclose(made[0, stem, middle], tone[middle], atol=1e-3)


def test_it_starts_at_zero(tracks):
    init = jax.jit(BandDenoiser(ALONE).init_with_output)
    made, _ = init(jax.random.key(0), tracks[:, :2], jnp.zeros(2))
    assert not np.any(made)


def test_full_size():
    config = BandDenoiserConfig(stems=5, mix=True, per_track=True)
    bands, width, hidden, wide = 64, 384, 4 * 384, 4 * 384
    embed = bands * (5 * (48 + 1) * width + width)
    blocks = 24 * (12 * width**2 + 2 * width) + 12 * (wide * width + width) + width
    masks = bands * (width * hidden + hidden + (hidden + 1) * 8 * 2 * 2 * 16)
    noise = width // 2 + (width + 1) * wide + wide + 2 * (wide**2 + wide) + 5 * wide**2
    assert tree.size(shapes_of(config, 8192)) == embed + blocks + masks + noise


@pytest.mark.parametrize(
    ("shape", "levels", "message"),
    [
        ((1, 2, SAMPLES, 2), (1, 2), "2 tracks, expected 3"),
        ((1, 3, SAMPLES, 1), (1, 3), "1 channels, expected 2"),
        ((1, 3, 165, 2), (1, 3), "multiple of 16"),
        ((1, 3, SAMPLES, 2), (1,), "levels of shape"),
    ],
)
def test_shapes_that_do_not_fit(shape, levels, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(
            BandDenoiser(BESIDE).init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(levels)
        )
