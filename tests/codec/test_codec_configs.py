"""The published codecs by name: sizes, frame rates, and a smoke size that runs."""

import importlib

import jax
import pytest

from mgen import tree
from mgen.codec.config import CodecConfig
from mgen.codec.model import Codec, init_codec
from mgen.errors import UserError

# name -> (parameters besides EMA codebooks, Hz of frames, codebooks x size)
PUBLISHED = {
    "soundstream_24khz": (None, 50.0, (12, 1024)),
    "encodec_24khz": (14_851_810, 75.0, (32, 1024)),
    "encodec_32khz": (57_584_834, 50.0, (4, 2048)),
    "encodec_48khz": (14_856_294, 150.0, (16, 1024)),
    "dac_16khz": (None, 50.0, (12, 1024)),
    "dac_24khz": (None, 75.0, (32, 1024)),
    "dac_44khz": (None, 44100 / 512, (9, 1024)),
    "oobleck_44khz": (156_112_514, 44100 / 2048, None),
}


def experiment(name, arg=""):
    return importlib.import_module(f"mgen.configs.codec.{name}").get_config(arg)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    parameters, frame_rate, codebooks = PUBLISHED[name]
    config = CodecConfig.from_config(experiment(name).model)
    assert config.frame_rate == frame_rate
    assert config.has_codes == (codebooks is not None)
    if codebooks:
        assert (config.num_codebooks, config.codebook_size) == codebooks
    shapes = jax.eval_shape(lambda key: init_codec(config, key), jax.random.key(0))
    if parameters:
        assert tree.size(shapes["params"]) == parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_any_second_of_audio_goes_through(name):
    """Shapes of a full-size pass: what comes out is as long as what went in."""
    config = CodecConfig.from_config(experiment(name).model)
    samples = config.sample_rate - 7
    audio = jax.ShapeDtypeStruct((2, samples, config.channels), "float32")
    model = Codec(config)

    def run(key, audio):
        return model.apply(init_codec(config, key), audio, False)

    out = jax.eval_shape(run, jax.random.key(0), audio)
    frames = -(-samples // config.hop)
    assert out.audio.shape == audio.shape
    assert out.latents.shape == out.quantized.shape == (2, frames, config.latent_dim)
    assert out.codes.shape == (2, frames, config.num_codebooks if config.has_codes else 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_smoke_size_is_small_and_locked(name):
    full, smoke = experiment(name), experiment(name, "smoke")
    config = CodecConfig.from_config(smoke.model)
    shapes = jax.eval_shape(lambda key: init_codec(config, key), jax.random.key(0))
    assert tree.size(shapes) < 10_000
    assert smoke.train.steps <= 4 < full.train.steps
    assert smoke.data.sample_rate == config.sample_rate
    with pytest.raises(AttributeError):
        smoke.model.filtres = 3
    with pytest.raises(UserError, match="'smok': expected one of smoke"):
        experiment(name, "smok")


def test_the_codec_of_musicgen_has_identity_shortcuts():
    config = CodecConfig.from_config(experiment("encodec_32khz", "musicgen").model)
    shapes = jax.eval_shape(lambda key: init_codec(config, key), jax.random.key(0))
    assert tree.size(shapes["params"]) == 56_884_674


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(sample_rate=16000, filtres=3), "unknown field 'filtres'"),
        (dict(filters=3), "sample_rate is missing"),
        (dict(sample_rate="fast"), "sample_rate is 'fast', expected int"),
        (dict(sample_rate=16000, strides=[2, "x"]), "strides is .* expected a list of integers"),
        (dict(sample_rate=16000, causal=1), "causal is 1, expected bool"),
        (dict(sample_rate=16000, bottleneck="vq"), "bottleneck is 'vq', expected one of"),
        (dict(sample_rate=16000, multipliers=[2]), "multipliers is"),
        (dict(sample_rate=16000, num_codebooks=4, dropout_choices=[5]), "dropout_choices is"),
        (dict(sample_rate=16000, norm="time_group", causal=True), "sees the future"),
        (dict(sample_rate=16000, activation="swish"), "activation is 'swish'"),
        (dict(sample_rate=16000, quantizer_dropout=2), "quantizer_dropout is 2.0"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        CodecConfig.from_config(fields)


def test_fields_survive_json():
    import json

    config = CodecConfig.from_config(experiment("oobleck_44khz").model)
    assert CodecConfig.from_config(json.loads(json.dumps(config.to_dict()))) == config
