"""Models over stems as they are called: names, shapes, bad input, settings, progress."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.configs.stems import msdm_slakh, tiny_separator
from mgen.errors import UserError
from mgen.stems import settings
from mgen.stems.model import StemsConfig, init_params
from mgen.stems.sample import FrozenSeparator, FrozenStems, Span, fill_in
from mgen.stems.settings import Dirac, Gaussian, SamplingConfig, Track

NAMES = ("bass", "drums", "piano")
FEW = SamplingConfig(steps=3, sigma_min=0.1, sigma_max=1.0, churn=1.0, repeats=2)


def shrinking(params):
    return lambda x, t: params * x / (1 + t**2)


def model(**fields):
    plain = dict(names=NAMES, sample_rate=10, channels=1, samples=16, hop=4, per_track=True)
    return FrozenStems(**(plain | fields), estimate=shrinking, params=jnp.asarray(0.5))


MODEL = model()
MIX = np.random.default_rng(0).standard_normal((2, 20, 1)).astype(np.float32)
STEMS = np.random.default_rng(0).standard_normal((2, 3, 20, 1)).astype(np.float32)
SEEDS = np.asarray([1, 2])


def test_tasks_keep_what_is_given():
    few = dict(seeds=SEEDS, sampling=FEW)
    made = MODEL.inpaint(STEMS, [Span(0.3, 0.9), Span(1.0, 1.5, ["piano"])], **few)
    changed = made != STEMS
    assert changed[:, :, 3:9].all() and changed[:, 2, 10:15].all()
    assert changed.sum() == 2 * (3 * 6 + 5)
    longer = MODEL.extend(STEMS, 2.5, **few)
    assert longer.shape == (2, 3, 45, 1)
    np.testing.assert_array_equal(longer[:, :, :20], STEMS)
    assert longer[:, :, 20:].all()
    np.testing.assert_array_equal(MODEL.inpaint(STEMS, [], **few), STEMS)


def test_targets_come_in_their_order():
    given = {"bass": STEMS[:, 0]}
    made = MODEL.arrange(given, ["piano", "drums"], seeds=SEEDS, sampling=FEW)
    assert made.shape == (2, 2, 20, 1)
    np.testing.assert_array_equal(
        made[:, ::-1], MODEL.arrange(given, ["drums", "piano"], seeds=SEEDS, sampling=FEW)
    )


def test_a_mix_beside_the_stems_is_what_the_denoiser_reads():
    def reading(params, mix=None):
        return lambda x, t: (0.0 if mix is None else mix / 3) + 0 * x

    own = dataclasses.replace(MODEL, estimate=reading, beside_mix=True)
    made = own.separate(MIX, seeds=SEEDS, likelihood=Track())
    np.testing.assert_allclose(made, np.repeat(MIX[:, None] / 3, 3, axis=1), atol=1e-6)
    nothing = own.generate(seconds=2.0, seeds=SEEDS, sampling=FEW)
    assert np.abs(nothing).max() < 1e-6
    with pytest.raises(UserError, match="beside_mix"):
        MODEL.separate(MIX, seeds=SEEDS, likelihood=Track())


@pytest.mark.parametrize("likelihood", [Dirac(0), Dirac(None), Gaussian()])
def test_silence_and_full_scale_give_no_nan(likelihood):
    mix = np.zeros_like(MIX)
    mix[1] = 1.0
    stems = MODEL.separate(mix, seeds=SEEDS, sampling=FEW, likelihood=likelihood)
    assert np.isfinite(stems).all()


@pytest.mark.parametrize("per_track", [False, True])
def test_full_size_by_shapes(per_track):
    """MSDM's network and settings, two mixes and a given stem in each."""
    config = msdm_slakh.get_config()
    with config.unlocked():
        config.model.per_track = per_track
    init = functools.partial(init_params, StemsConfig.from_experiment(config))
    own = FrozenStems.from_trained(config, jax.eval_shape(init, jax.random.key(0)), {})
    assert (own.names, own.sample_rate) == (("bass", "drums", "guitar", "piano"), 22050)
    assert (own.samples, own.hop, own.per_track) == (262144, 8192, per_track)
    stems = jax.ShapeDtypeStruct((2, 4, 262144, 1), jnp.float32)
    mask = jax.ShapeDtypeStruct(stems.shape[:3], bool)
    mix = jax.ShapeDtypeStruct((2, 1, 262144, 1), jnp.float32)
    options = dict(sampling=settings.SEPARATION_DIRAC, likelihood=Dirac())
    keys = jax.vmap(jax.random.key)(SEEDS)
    out = jax.eval_shape(
        lambda *args, mix: fill_in(*args, mix=mix, **options),
        own,
        stems,
        mask,
        keys,
        SEEDS,
        mix=mix,
    )
    assert (out.shape, out.dtype) == (stems.shape, jnp.float32)
    with pytest.raises(UserError, match="'unet'"):
        FrozenSeparator.from_trained(config, {}, {})


def test_a_trained_separator_is_its_network():
    config = tiny_separator.get_config()
    own = StemsConfig.from_experiment(config)
    params = jax.eval_shape(functools.partial(init_params, own), jax.random.key(0))
    found = FrozenSeparator.from_trained(config, params, {})
    assert (found.samples, found.hop) == (own.samples, own.network.hop)
    mix = jax.ShapeDtypeStruct((3, own.samples, 1), jnp.float32)
    out = jax.eval_shape(lambda params, mix: found.apply(params)(mix), params, mix)
    assert out.shape == (3, 4, own.samples, 1)
    with pytest.raises(UserError, match="expected a denoiser"):
        FrozenStems.from_trained(config, params, {})


def test_a_mix_may_keep_the_axis_of_stems():
    made = MODEL.separate(MIX[:, None], seeds=SEEDS, sampling=FEW)
    np.testing.assert_array_equal(made, MODEL.separate(MIX, seeds=SEEDS, sampling=FEW))


def test_other_parameters_are_no_other_program():
    """They are arguments of what is compiled, not part of it."""
    first = MODEL.separate(MIX, seeds=SEEDS, sampling=FEW)
    before = fill_in._cache_size()
    other = dataclasses.replace(MODEL, params=jnp.asarray(0.9))
    assert np.any(other.separate(MIX, seeds=SEEDS, sampling=FEW) != first)
    assert fill_in._cache_size() == before


def test_every_step_is_told():
    told = []
    MODEL.generate(seconds=2.0, seeds=[0], sampling=FEW, on_step=lambda i: told.append(int(i)))
    jax.effects_barrier()
    # Two windows of three steps, each made twice, and the end.
    assert sorted(told) == sorted(2 * [0, 0, 1, 1, 2, 2, 3])


def test_msdms_table():
    """Defaults by task, as in the release's configs."""
    found = {
        name: (c.steps, c.sigma_min, c.sigma_max, c.rho, c.sampler, c.churn, c.repeats)
        for name in (
            "GENERATION",
            "IMPUTATION",
            "SEPARATION_DIRAC",
            "SEPARATION_GAUSSIAN",
            "SEPARATION_INDEPENDENT",
        )
        for c in [getattr(settings, name)]
    }
    assert found == {
        "GENERATION": (150, 1e-4, 20.0, 7.0, "euler", 20.0, 1),
        "IMPUTATION": (256, 1e-4, 20.0, 7.0, "euler", 10.0, 1),
        "SEPARATION_DIRAC": (150, 1e-4, 1.0, 7.0, "euler", 20.0, 2),
        "SEPARATION_GAUSSIAN": (150, 1e-4, 1.0, 7.0, "euler", 40.0, 2),
        "SEPARATION_INDEPENDENT": (150, 1e-4, 1.0, 7.0, "euler", 40.0, 2),
    }
    alone = FrozenStems.independent([model(names=(name,)) for name in NAMES])
    assert alone.separation_sampling(Dirac()) == settings.SEPARATION_INDEPENDENT
    assert MODEL.separation_sampling(Dirac()) == settings.SEPARATION_DIRAC
    assert MODEL.separation_sampling(Gaussian()) == settings.SEPARATION_GAUSSIAN


NAN = np.full((2, 20, 1), np.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MODEL.separate(NAN, seeds=SEEDS), "mix: holds NaN"),
        (lambda: MODEL.separate(MIX[:, :0], seeds=SEEDS), r"mix of shape \[2, 0, 1\]"),
        (lambda: MODEL.separate(MIX[0], seeds=SEEDS), r"expected \[2, T > 0, 1\]"),
        (lambda: MODEL.separate(MIX, seeds=[0]), r"expected \[1, T > 0, 1\]"),
        (lambda: MODEL.separate(np.repeat(MIX, 2, axis=2), seeds=SEEDS), "mix of shape"),
        (lambda: MODEL.inpaint(STEMS[:, :2], [], seeds=SEEDS), r"expected \[2, 3, T > 0, 1\]"),
        (lambda: MODEL.inpaint(STEMS, [Span(1, 9)], seeds=SEEDS), "span from 1 to 9 s"),
        (lambda: MODEL.inpaint(STEMS, [Span(1, 2, ["oboe"])], seeds=SEEDS), "bass, drums, piano"),
        (lambda: MODEL.extend(STEMS, 0.0, seeds=SEEDS), "0 s more"),
        (lambda: MODEL.generate(seconds=0.0, seeds=SEEDS), "stems of 0 samples"),
        (lambda: MODEL.generate(seconds=1.0, seeds=SEEDS, overlap=0.7), "overlap is 0.7"),
        (lambda: MODEL.arrange({"bas": MIX}, ["piano"], seeds=SEEDS), "'bas', expected some of"),
        (lambda: MODEL.arrange({"bass": MIX}, ["oboe"], seeds=SEEDS), "'oboe', expected some of"),
        (lambda: MODEL.arrange({"bass": MIX}, ["bass"], seeds=SEEDS), "not given"),
        (lambda: MODEL.arrange({"bass": MIX}, [], seeds=SEEDS), "not given"),
        (lambda: MODEL.arrange({}, ["bass"], seeds=SEEDS), "no stem is given"),
        (
            lambda: MODEL.arrange({"bass": MIX, "drums": MIX[:, :9]}, ["piano"], seeds=SEEDS),
            r"stem drums of shape \[2, 9, 1\], expected \[2, 20, 1\]",
        ),
        (lambda: MODEL.separate(MIX, seeds=SEEDS, likelihood=Dirac(3)), "3, expected 0 to 2"),
        (lambda: Gaussian(0.0), "gamma is 0.0"),
        (lambda: SamplingConfig(sampler="dpmpp_2m", churn=1.0), "dpmpp_2m: .*churn"),
        (lambda: SamplingConfig(steps=0), "0 steps"),
        (
            lambda: dataclasses.replace(MODEL, params=jnp.asarray(jnp.nan)).separate(
                MIX, seeds=SEEDS, sampling=FEW
            ),
            "diverged",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
