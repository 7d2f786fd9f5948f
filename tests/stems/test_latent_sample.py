"""Sampling in latents, of an untrained network: a prior of white latents under a random codec."""

import dataclasses
import functools
import importlib

import jax
import numpy as np
import pytest

from mgen.codec.config import CodecConfig
from mgen.codec.model import Codec, init_codec
from mgen.errors import UserError
from mgen.inputs import controls
from mgen.stems.condition import StemCondition
from mgen.stems.latent_sample import LatentStems
from mgen.stems.settings import SamplingConfig
from mgen.stems.task import Task

FRAMES, HOP = 8, 320
SAMPLES = FRAMES * HOP
FAST = SamplingConfig(steps=16, sigma_min=1e-2, sigma_max=20.0, sampler="dpmpp_2m_sde")


@pytest.fixture(scope="module")
def model():
    config = importlib.import_module("mgen.configs.stems.tiny_latent").get_config("smoke")
    config.data.seconds = SAMPLES / 16000
    config.model.layers = 1
    task = Task(config)
    state = jax.jit(task.init)(jax.random.key(0))
    codec = CodecConfig.from_config(config.codec.model)
    weights = jax.jit(lambda key: init_codec(codec, key))(jax.random.key(1))
    variables = state.variables | {"codec": weights}
    return LatentStems.from_trained(config, state.params, variables, Codec(codec))


@pytest.fixture(scope="module")
def mixes(model):
    """What latents decode to, two windows and a half of it."""
    z = np.random.default_rng(0).standard_normal((2, 4, 20, 32)).astype(np.float32)
    return np.asarray(jax.jit(lambda m, z: m.latents.decode(z))(model, z)).sum(axis=1)


def rms(x):
    return np.sqrt(np.mean(np.square(x), axis=tuple(range(1, x.ndim))))


def test_a_model_of_latents_has_windows_of_audio(model):
    assert (model.samples, model.hop, model.channels) == (SAMPLES, 8 * HOP, 1)
    assert (model.frames().samples, model.frames().hop, model.frames().channels) == (FRAMES, 8, 32)
    assert 0 < model.context < 64


def test_stems_through_the_decoder_sum_to_the_mix(model, mixes):
    seeds = [3, 4]
    stems = model.separate(mixes, seeds=seeds, sampling=FAST)
    assert stems.shape == (2, 4, 20 * HOP, 1)
    left = rms(stems.sum(axis=1) - mixes) / rms(mixes)
    free = model.generate(seconds=20 * HOP / 16000, seeds=seeds, sampling=FAST)
    unlike = rms(free.sum(axis=1) - mixes) / rms(mixes)
    # The mix is known as well as the codec, here a random one, keeps it.
    rows = np.pad(mixes, ((0, 0), (0, -mixes.shape[1] % SAMPLES), (0, 0)))
    kept = np.asarray(model.latents.decode(model.latents.encode(rows[:, None])))[:, 0]
    assert np.all(left < rms(kept - rows) / rms(rows)) and np.all(unlike > 1.0)
    # A song is its own, whatever runs beside it.
    alone = model.separate(mixes[1:], seeds=seeds[1:], sampling=FAST)
    np.testing.assert_allclose(alone[0], stems[1], atol=1e-4)


def test_stems_beside_the_mix(model, mixes):
    stems = model.separate(mixes[:1], seeds=[0], through="track", sampling=FAST)
    assert stems.shape == (1, 4, 20 * HOP, 1) and np.isfinite(stems).all()


def test_lengths_are_those_asked_for(model):
    made = model.generate(seconds=3000 / 16000, seeds=[0, 1], sampling=FAST)
    assert made.shape == (2, 4, 3000, 1) and np.abs(made[0] - made[1]).max() > 1e-3
    given = {"bass": made[:, 0], "drums": made[:, 1]}
    piano = model.arrange(given, ["piano"], seeds=[5, 6], sampling=FAST)
    assert piano.shape == (2, 1, 3000, 1)
    again = model.arrange(
        {"bass": made[1:, 0], "drums": made[1:, 1]}, ["piano"], seeds=[6], sampling=FAST
    )
    np.testing.assert_allclose(again[0], piano[1], atol=1e-4)


def test_what_a_model_cannot_do_is_refused(model, mixes):
    with pytest.raises(UserError, match="through 'magic', expected one of"):
        model.separate(mixes, seeds=[0, 1], through="magic")
    config = importlib.import_module("mgen.configs.stems.tiny_msdm").get_config("smoke")
    with pytest.raises(UserError, match=r"model\.kind is 'unet', expected 'dit'"):
        LatentStems.from_trained(config, {}, {}, model.latents.codec)


def test_what_the_model_is_told_changes_what_it_makes(model):
    """A network that is untrained, but with conditions of weight."""
    frames = 2 * FRAMES
    own = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), model.params
    )
    model = dataclasses.replace(model, params=own)
    chords = np.asarray([controls.parse_chords("0:C; 0.2:A:min", frames, 50.0)])
    seconds = frames * HOP / 16000
    make = functools.partial(model.generate, seconds=seconds, seeds=[0], sampling=FAST)
    free, nothing = make(), make(condition=StemCondition(), guidance=1.0)
    np.testing.assert_allclose(nothing, free, atol=1e-4)
    told = make(condition=StemCondition(chords=chords), guidance=3.0)
    assert np.abs(told - free).max() > 1e-2
    # The second window hears of its own frames, and of none after the end of what is said.
    first_only = make(condition=StemCondition(chords=chords[:, :FRAMES]), guidance=3.0)
    half = told.shape[2] // 2
    np.testing.assert_allclose(first_only[:, :, : half // 2], told[:, :, : half // 2], atol=1e-3)
    assert np.abs(first_only - told)[:, :, half:].max() > 1e-2
    with pytest.raises(UserError, match="text: this model has no such input"):
        make(condition=StemCondition(text=np.zeros((1, 3, 8))))
