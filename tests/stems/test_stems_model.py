"""The model as a whole: its config, its parameters, its denoiser."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.stems.config import UNetConfig
from mgen.stems.model import StemsConfig, denoiser, init_params, make_network
from mgen.stems.separator import Separator, SeparatorConfig
from mgen.stems.unet import UNet1d

SMALL = UNetConfig(
    stems=3,
    width=16,
    patch=4,
    multipliers=(1, 2),
    factors=(2,),
    blocks=(1,),
    attentions=(False,),
    heads=2,
    head_dim=4,
    groups=4,
)
ONE = StemsConfig(
    names=("bass", "drums", "voice"), sample_rate=8000, channels=1, samples=64, network=SMALL
)
EACH = dataclasses.replace(ONE, network=dataclasses.replace(SMALL, per_track=True), given=0.5)
MODELS = {"one": ONE, "each": EACH}


@pytest.fixture(scope="module")
def params():
    """Of both models, without a zero among them."""

    def draw(config):
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))

        def leaf(x):
            scale = np.prod(x.shape[:-1]) ** -0.5 if x.ndim > 1 else 0.5
            return jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32)

        return jax.tree.map(leaf, shapes)

    return {name: draw(config) for name, config in MODELS.items()}


@functools.partial(jax.jit, static_argnums=0)
def denoise(config, params, x, t):
    return denoiser(config, params)(x, t)


def noisy(seed=0):
    return 0.5 * np.random.default_rng(seed).standard_normal((2, 3, 64, 1)).astype(np.float32)


def at(*levels):
    return jnp.asarray(levels, jnp.float32)[..., None, None]


def test_the_denoiser_is_edms(params):
    """Karras et al. 2022, equation 7, by hand around the network."""
    x, sigma = noisy(), np.asarray([0.05, 0.7], np.float32)
    found = denoise(ONE, params["one"], x, sigma[:, None, None, None])
    total = np.sqrt(sigma**2 + 0.2**2)[:, None, None, None]
    network = make_network(ONE)
    inputs = x / total, jnp.log(sigma) / 4
    raw = jax.jit(network.apply)({"params": params["one"]}, *inputs)
    c_out = sigma[:, None, None, None] * 0.2 / total
    expected = np.clip((0.2 / total) ** 2 * x + c_out * raw, -1, 1)
    # Another program may round otherwise.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() == 1  # the bound is met


def test_given_stems_pass_unchanged(params):
    x = noisy().clip(-1, 1)
    found = denoise(EACH, params["each"], x, at([0.0, 0.1, 2.0], [0.3, 0.0, 0.0]))
    given = np.asarray([[1, 0, 0], [0, 1, 1]], bool)
    np.testing.assert_array_equal(np.asarray(found)[given], x[given])
    assert np.abs(np.asarray(found)[~given] - x[~given]).max(axis=(1, 2)).min() > 1e-3
    loud = denoise(EACH, params["each"], 4 * x, at([0.0, 0.1, 2.0], [0.3, 0.0, 0.0]))
    np.testing.assert_array_equal(np.asarray(loud)[given], (4 * x[given]).clip(-1, 1))


def test_the_estimate_of_a_given_stem_trains_nothing_but_informs_the_others(params):
    x, t = noisy(), at([0.0, 0.1, 0.4], [0.0, 0.2, 0.3])

    @jax.jit
    def gradients(params, x, stem):
        def estimate(params, x):
            return jnp.sum(jnp.square(denoiser(EACH, params)(x, t)[:, stem]))

        return jax.grad(estimate, argnums=(0, 1))(params, x)

    at_params, _ = gradients(params["each"], x, 0)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(at_params))
    at_params, at_x = gradients(params["each"], x, 1)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(at_params))
    assert np.all(np.abs(at_x).max(axis=(2, 3)) > 0)


def test_one_level_serves_all_stems_and_examples(params):
    x = noisy()
    for name, config in MODELS.items():
        one, all_ = at([0.3]), at([0.3], [0.3])
        np.testing.assert_array_equal(
            denoise(config, params[name], x, one), denoise(config, params[name], x, all_)
        )
    each = denoise(EACH, params["each"], x, at([0.3] * 3))
    np.testing.assert_array_equal(each, denoise(EACH, params["each"], x, at([0.3])))
    with pytest.raises(UserError, match="3 noise levels an example, but this model has one"):
        denoise(ONE, params["one"], x, at([0.3] * 3))


@pytest.fixture
def experiment():
    network = {k: v for k, v in vars(SMALL).items() if k not in ("stems", "channels")}
    return ml_collections.ConfigDict(
        dict(
            stems=dict(names=ONE.names, sample_rate=8000, channels=1),
            model=dict(kind="unet", **network),
            diffusion=dict(sigma_data=0.2, clip=ml_collections.FieldReference(1.0), given=0.0),
            data=dict(seconds=64 / 8000),
        )
    )


def test_config_from_an_experiment_and_from_json(experiment):
    assert StemsConfig.from_experiment(experiment) == ONE and hash(ONE)
    again = json.loads(experiment.to_json())
    assert StemsConfig.from_experiment(ml_collections.ConfigDict(again)) == ONE
    experiment.diffusion.clip = None
    experiment.model.per_track, experiment.diffusion.given = True, 0.5
    assert StemsConfig.from_experiment(experiment) == dataclasses.replace(EACH, clip=None)
    experiment.model = dict(kind="separator", n_fft=32, hop=8, bands=4)
    del experiment.diffusion
    config = StemsConfig.from_experiment(experiment)
    assert config.network == SeparatorConfig(stems=3, n_fft=32, hop=8, bands=4)
    assert config.separates and not config.per_track


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "model",
            dict(kind="gan"),
            r"model.kind is 'gan', expected one of .'bands', 'dit', 'separator', 'unet'",
        ),
        ("model", dict(depth=3), "model.depth: unknown field"),
        ("stems", dict(names=("bass", "bass")), r"stems.names is \['bass', 'bass'\]"),
        ("stems", dict(names=()), r"stems.names is \[\]"),
        ("data", dict(seconds=0.0125), r"100 samples, expected a multiple of 8 .*=0.012$"),
        ("diffusion", dict(given=0.5), "diffusion.given is 0.5"),
        ("diffusion", dict(sigma_data=0.0), "diffusion.sigma_data is 0.0"),
    ],
)
def test_bad_settings_are_refused(experiment, part, change, message):
    experiment[part].update(change)
    with pytest.raises(UserError, match=message):
        StemsConfig.from_experiment(experiment)


def test_networks_by_kind():
    assert isinstance(make_network(ONE), UNet1d)
    separator = dataclasses.replace(ONE, samples=4096, network=SeparatorConfig(stems=3, layers=1))
    assert isinstance(make_network(separator), Separator)


def test_parameters_do_not_depend_on_the_length():
    def shapes(config):
        return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))

    assert shapes(ONE) == shapes(dataclasses.replace(ONE, samples=640))
    assert tree.size(shapes(EACH)) - tree.size(shapes(ONE)) == 3 * SMALL.condition_width**2
