"""The U-Net over stems: sizes, laws of its input, precision and memory settings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.stems.config import UNetConfig
from mgen.stems.unet import UNet1d, fold, mean_of_tracks, unfold

SMALL = UNetConfig(
    width=16,
    patch=4,
    multipliers=(1, 2, 2),
    factors=(3, 2),
    blocks=(1, 2),
    attentions=(False, True),
    heads=2,
    head_dim=4,
    groups=4,
)
TRACKS = dataclasses.replace(SMALL, per_track=True)
LEVELS = np.asarray([[-1.5, 0.2, -0.7, 0.9], [0.4, -2.0, 0.0, -0.1]], np.float32)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, x, noise):
    return UNet1d(config).apply({"params": params}, x, noise)


@functools.partial(jax.jit, static_argnums=0)
def gradients(config, params, x, noise):
    def loss(params, x):
        out = UNet1d(config).apply({"params": params}, x, noise)
        return jnp.mean(jnp.square(out))

    return jax.grad(loss, argnums=(0, 1))(params, x)


@pytest.fixture(scope="module")
def stems():
    """Two examples of four stems, two frames in the bottleneck."""
    x = np.random.default_rng(0).standard_normal((2, 4, 2 * SMALL.hop, 1))
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL)


@pytest.fixture(scope="module")
def track_params(params):
    """`params`, and linear layers of the tracks as they are at the start."""
    noise = params["noise"] | {"tracks": mean_of_tracks(4, SMALL.condition_width)}
    return params | {"noise": noise}


def shapes_of(config):
    x = jax.ShapeDtypeStruct((1, config.stems, config.hop, config.channels), jnp.float32)
    noise = jax.ShapeDtypeStruct((1, config.stems) if config.per_track else (1,), jnp.float32)
    out, variables = jax.eval_shape(UNet1d(config).init_with_output, jax.random.key(0), x, noise)
    assert out.shape == x.shape and out.dtype == jnp.float32
    return variables["params"]


def random_params(config):
    """Of the size that keeps a layer's level, without a zero among them."""
    rng = np.random.default_rng(1)

    def draw(leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes_of(config))


@pytest.mark.parametrize(
    ("stems", "per_track", "published"),
    [(4, False, 405_497_700), (1, False, 405_491_100), (4, True, 405_497_700 + 4 * 1024**2)],
)
def test_full_size(stems, per_track, published):
    config = UNetConfig(stems=stems, per_track=per_track)
    assert config.hop == 8192
    assert tree.size(shapes_of(config)) == published


def test_any_number_of_stems_and_channels_fits():
    for count, channels in ((3, 1), (5, 2), (9, 1)):
        shapes_of(dataclasses.replace(SMALL, stems=count, channels=channels))


@pytest.mark.parametrize(
    ("config", "shape", "noise", "message"),
    [
        (SMALL, (1, 4, 100, 1), (1,), "stems of 100 samples, expected a multiple of 24"),
        (SMALL, (1, 4, 0, 1), (1,), "stems of 0 samples"),
        (SMALL, (1, 3, 24, 1), (1,), "3 stems of 1 channels, expected 4 of 1"),
        (SMALL, (1, 4, 24, 1), (1, 4), r"shape \(1, 4\), expected \(1,\)"),
        (TRACKS, (1, 4, 24, 1), (1,), r"shape \(1,\), expected \(1, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(config, shape, noise, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(UNet1d(config).init, jax.random.key(0), np.ones(shape), np.ones(noise))


def test_channels_of_a_stem_stand_together(params, stems):
    """Two stereo stems are read as four mono ones."""
    mono = run(SMALL, params, stems, LEVELS[:, 0])
    stereo = dataclasses.replace(SMALL, stems=2, channels=2)
    x = stems.reshape(2, 2, 2, -1).swapaxes(2, 3)
    out = np.asarray(run(stereo, params, x, LEVELS[:, 0]))
    np.testing.assert_array_equal(out.swapaxes(2, 3).reshape(mono.shape), mono)


def test_an_example_is_its_own(params, stems):
    both = run(SMALL, params, stems, LEVELS[:, 0])
    turned = run(SMALL, params, stems[::-1], LEVELS[::-1, 0])
    # Float32 sums may run in another order for another row.
    np.testing.assert_allclose(turned[::-1], both, atol=1e-5)
    other = run(SMALL, params, stems, np.asarray([LEVELS[0, 0], 1.0]))
    np.testing.assert_allclose(other[0], both[0], atol=1e-5)
    assert np.abs(other[1] - both[1]).max() > 1e-2


def test_equal_levels_of_new_tracks_are_one_level(params, track_params, stems):
    expected = run(SMALL, params, stems, LEVELS[:, 0])
    out = run(TRACKS, track_params, stems, np.repeat(LEVELS[:, :1], 4, axis=1))
    # The mean of four equal vectors, by a sum over 256 terms.
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_every_stem_hears_the_level_of_every_track(track_params, stems):
    before = np.asarray(run(TRACKS, track_params, stems, LEVELS))
    for track in range(4):
        levels = LEVELS.copy()
        levels[0, track] += 1.0
        change = np.abs(run(TRACKS, track_params, stems, levels) - before).max(axis=(2, 3))
        assert np.all(change[0] > 1e-3)
        np.testing.assert_allclose(change[1], 0, atol=1e-5)


def test_trained_tracks_are_told_apart(track_params, stems):
    swapped = LEVELS[:, [1, 0, 2, 3]]
    new = [run(TRACKS, track_params, stems, levels) for levels in (LEVELS, swapped)]
    np.testing.assert_allclose(new[0], new[1], atol=1e-4)
    factors = jnp.asarray([0.5, 2.0, 1.0, 1.0])[:, None, None]
    noise = track_params["noise"] | {"tracks": track_params["noise"]["tracks"] * factors}
    trained = track_params | {"noise": noise}
    old = [run(TRACKS, trained, stems, levels) for levels in (LEVELS, swapped)]
    assert np.abs(old[0] - old[1]).max() > 1e-2


def test_bfloat16_is_close_and_keeps_float32_parameters(params, stems):
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(config))} == {jnp.dtype("float32")}
    expected = np.asarray(run(SMALL, params, stems, LEVELS[:, 0]))
    error = run(config, params, stems, LEVELS[:, 0]) - expected
    # Roundings of 2^-9 in each of some 30 layers, of independent sign.
    assert 1e-4 < np.std(error) / np.std(expected) < 2**-9 * 30**0.5


def test_remat_changes_no_gradient():
    config = dataclasses.replace(
        SMALL, stems=1, multipliers=(1, 2), factors=(2,), blocks=(1,), attentions=(True,)
    )
    params = random_params(config)
    x = np.random.default_rng(0).standard_normal((1, 1, 4 * config.hop, 1)).astype(np.float32)
    remat = dataclasses.replace(config, remat=True)
    assert jax.tree.structure(shapes_of(remat)) == jax.tree.structure(params)
    plain, again = (gradients(c, params, x, LEVELS[:1, 0]) for c in (config, remat))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(plain))
    # What is computed anew may be fused otherwise.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again)
    for setting in (config, remat):
        jaxpr = str(jax.make_jaxpr(gradients, static_argnums=0)(setting, params, x, LEVELS[:1, 0]))
        assert ("remat" in jaxpr) == setting.remat


def test_patches_keep_the_order_of_the_release():
    x = jnp.arange(2 * 6 * 5).reshape(2, 6, 5)
    patches = fold(x, 3)
    assert patches.shape == (2, 2, 15)
    assert patches[1, 1, 4 * 3 + 2] == x[1, 3 + 2, 4]  # feature 4 of the patch's third sample
    np.testing.assert_array_equal(unfold(patches, 3), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dtype="float16"), "model.dtype is 'float16'"),
        (dict(blocks=[2, 2]), r"model.blocks is \(2, 2\), expected 6 values"),
        (dict(multipliers=[2, 2], factors=[2], blocks=[1], attentions=[True]), "expected 1 first"),
        (dict(width=24), "model.width is 24, expected an even multiple of patch 16"),
        (dict(groups=24), "model.groups is 24, expected a divisor"),
        (dict(depth=3), "model.depth: unknown field"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        UNetConfig.from_config(change)


def test_config_from_lists():
    config = UNetConfig.from_config(dict(factors=[2] * 6), stems=1)
    assert config == UNetConfig(factors=(2,) * 6, stems=1)
    assert hash(config) and config.hop == 16 * 64
