"""The separator: spectra there and back, laws of its input, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.stems.bands import features, join_bands, levelled, split_bands
from mgen.stems.config import SeparatorConfig
from mgen.stems.separator import Separator

SMALL = SeparatorConfig(
    stems=3, channels=2, n_fft=64, hop=16, bands=4, width=8, heads=2, layers=1, ff_multiplier=2
)
SAMPLES = 160


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, mix):
    return Separator(config).apply({"params": params}, mix)


def shapes_of(config, samples=SAMPLES):
    mix = jax.ShapeDtypeStruct((1, samples, config.channels), jnp.float32)
    out, variables = jax.eval_shape(Separator(config).init_with_output, jax.random.key(0), mix)
    assert out.shape == (1, config.stems, samples, config.channels) and out.dtype == jnp.float32
    return variables["params"]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = np.prod(leaf.shape[-2:-1]) ** -0.5 if leaf.ndim > 1 else 0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes_of(SMALL))


@pytest.fixture(scope="module")
def mix():
    return 0.1 * np.random.default_rng(1).standard_normal((2, SAMPLES, 2)).astype(np.float32)


def test_masks_of_one_give_the_mix_less_its_last_bin():
    """A tone below the last bin comes back, one in it does not."""

    @jax.jit
    def again(mix):
        return join_bands(SMALL, split_bands(SMALL, mix)[:, None], SAMPLES)[:, 0]

    time = np.arange(SAMPLES)[None, :, None] * np.ones((1, 1, 2))
    below, last = np.sin(2 * np.pi * 5.3 / 64 * time), np.cos(np.pi * time)
    bands = split_bands(SMALL, jnp.asarray(below, jnp.float32))
    assert bands.shape == (1, SAMPLES // 16 + 1, 4, 2, 8)
    # Leakage of a Hann window over 26 bins; the ends, which are mirrored, leak more.
    middle = slice(48, -48)
    np.testing.assert_allclose(again(below)[:, middle], below[:, middle], atol=1e-3)
    # w cos(pi n) less its mean 1/2 in the last bin, for the Hann window w: what is left is the mean
    # of (w - 1/2) w over that of w^2, (3/8 - 1/4) / (3/8).
    np.testing.assert_allclose(again(last)[:, middle], last[:, middle] / 3, atol=1e-3)


def test_each_bin_is_in_its_band(mix):
    spectrum = np.fft.rfft(mix[0, 64:128, 1] * np.hanning(65)[:-1])
    bands = split_bands(SMALL, mix)
    frame = (64 + 32) // 16  # centred there
    np.testing.assert_allclose(bands[0, frame, :, 1].reshape(-1), spectrum[:-1], atol=1e-5)


def test_features_have_the_level_one_in_every_band(mix):
    coloured = np.cumsum(mix, axis=1)
    bands = split_bands(SMALL, coloured)
    levels, level = levelled(bands)
    found = features(levels)
    assert found.shape == (2, SAMPLES // 16 + 1, 4, 2 * 3 * 8)
    parts = found.reshape(*found.shape[:3], 2, 3, 8)[..., :2, :]
    np.testing.assert_allclose(np.square(parts).sum(axis=4).mean(axis=(1, 3, 4)), 1, rtol=1e-2)
    np.testing.assert_allclose(levels * level, bands, rtol=1e-5)
    assert not np.any(features(levelled(split_bands(SMALL, np.zeros_like(mix)))[0]))


def test_stems_follow_the_gain_of_the_mix_and_silence_stays(params, mix):
    once, twice = run(SMALL, params, mix), run(SMALL, params, 2 * mix)
    # The floor of a level is 1e-5 beside mean squares of 0.1 and more.
    np.testing.assert_allclose(twice, 2 * once, atol=1e-3 * np.abs(once).max())
    assert not np.any(run(SMALL, params, np.zeros_like(mix)))


def test_an_example_is_its_own(params, mix):
    both, alone = run(SMALL, params, mix), run(SMALL, params, mix[::-1])
    np.testing.assert_allclose(alone[::-1], both, atol=1e-5)  # float32
    other = run(SMALL, params, np.stack([mix[0], mix[0, ::-1]]))
    np.testing.assert_allclose(other[0], both[0], atol=1e-5)
    assert np.abs(other[1] - both[1]).max() > 1e-3


def test_every_frame_and_band_hears_every_other(params, mix):
    """Influence of a short click on the end of all stems, and of a low tone on high bands."""
    before = np.asarray(run(SMALL, params, mix))
    clicked = mix.copy()
    clicked[0, 8:12] += 0.5
    change = np.abs(run(SMALL, params, clicked) - before)
    assert np.all(change[0, :, -16:].max(axis=(1, 2)) > 1e-4)
    np.testing.assert_allclose(change[1], 0, atol=1e-5)
    tone = 0.3 * np.sin(2 * np.pi * 3 / 64 * np.arange(SAMPLES, dtype=np.float32))
    toned = run(SMALL, params, mix + tone[None, :, None])
    spectra = (np.abs(np.fft.rfft(x, axis=2)) for x in (toned - before, before))
    above, below = (np.square(x[:, :, SAMPLES // 4 :]).mean(axis=(2, 3)) for x in spectra)
    assert np.all(above > 1e-3 * below)


def test_bfloat16_is_close_and_remat_is_the_same(params, mix):
    expected = np.asarray(run(SMALL, params, mix))
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(half))} == {jnp.dtype("float32")}
    error = np.std(run(half, params, mix) - expected) / np.std(expected)
    # Roundings of 2^-9 in some ten layers.
    assert 1e-4 < error < 2**-9 * 10
    remat = dataclasses.replace(SMALL, remat=True)
    assert jax.tree.structure(shapes_of(remat)) == jax.tree.structure(params)
    np.testing.assert_allclose(run(remat, params, mix), expected, atol=1e-6)


def test_full_size():
    """Embeddings and masks of 64 bands, 24 blocks of 12 D^2, and their norms."""
    bands, width, hidden = 64, 384, 4 * 384
    embed, block = bands * (48 * width + width), 12 * width**2 + 2 * width
    masks = bands * (width * hidden + hidden + (hidden + 1) * 4 * 2 * 32)
    assert embed + 24 * block + width + masks == 106_719_616
    assert tree.size(shapes_of(SeparatorConfig(), 8192)) == 106_719_616


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 100, 2), "mix of 100 samples, expected a multiple of 16"),
        ((1, 32, 2), "mix of 32 samples, expected .* of more than 32"),
        ((1, 160, 1), "mix of 1 channels, expected 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(Separator(SMALL).init, jax.random.key(0), np.ones(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dtype="float16"), "model.dtype is 'float16'"),
        (dict(hop=48), "model.n_fft is 2048, expected a multiple of twice the hop 48"),
        (dict(bands=60), "model.bands is 60, expected a divisor of n_fft / 2 = 1024"),
        (dict(width=100), "model.width is 100, expected a multiple of twice the 8 heads"),
        (dict(depth=3), "model.depth: unknown field"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        SeparatorConfig.from_config(change)
