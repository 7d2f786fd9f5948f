"""What a user writes of a clip, read, and what chains of untrained models make of it."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from mgen import wish
from mgen.audio import chroma, io
from mgen.chain import Chain
from mgen.codec.sample import FrozenCodec
from mgen.conditioning import Encoders
from mgen.errors import UserError
from mgen.kmeans import Codebook
from mgen.lm.filters import SamplingConfig
from mgen.lm.stages import FrozenStage
from mgen.train import checkpoint
from mgen.wish import Wish


def test_a_story_is_read_in_the_order_of_time():
    assert wish.parse_story("15: louder ; 0:a slow intro; 7.5:a turn: drums") == [
        (0.0, "a slow intro"),
        (7.5, "a turn: drums"),
        (15.0, "louder"),
    ]
    for text in ("soon: louder", "3", "-1: louder", "4:"):
        with pytest.raises(UserError, match="--story"):
            wish.parse_story(text)


def test_temperatures_are_musiclms_unless_given():
    def temperatures(*args):
        return [own.temperature for own in wish.sampling(*args)]

    assert temperatures(1) == [1.0] and temperatures(3) == [1.0, 0.95, 0.4]
    assert temperatures(4) == [1.0, 0.95, 0.4, 0.4]
    assert temperatures(3, ["0.5"]) == [0.5] * 3 and temperatures(2, ["1", "2"]) == [1.0, 2.0]
    for bad in (["1", "2"], ["warm"], ["-1"]):
        with pytest.raises(UserError, match="temperature"):
            wish.sampling(3, bad)
    assert wish.sampling(1, top_k=5, guidance=2.0)[0].top_k == 5


def untrained(name, arg="smoke"):
    """(config, params, variables) of a shipped config."""
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    task = checkpoint.make_task(config)
    state = jax.jit(task.init)(jax.random.key(0))
    return config, task.generator_params(state), state.variables


def stage(name, arg="smoke"):
    return FrozenStage.from_trained(*untrained(f"hierarchy.{name}", arg))


@pytest.fixture(scope="module")
def codec():
    return FrozenCodec.from_trained(*untrained("codec.tiny_16khz"))


@pytest.fixture(scope="module")
def tune(tmp_path_factory):
    """A second of A."""
    path = tmp_path_factory.mktemp("audio") / "tune.wav"
    time = np.arange(16000) / 16000
    io.write(path, np.sin(2 * np.pi * 440 * time)[:, None].astype(np.float32) * 0.5, 16000)
    return path


class Voice:
    """A joint embedding that hears nothing but how many windows there are."""

    config = dataclasses.make_dataclass("Layout", ["sample_rate", "channels"])(16000, 1)

    def window_embeddings(self, audio, stride):
        assert stride == 3.0 and audio.shape[1] == 1
        count = 1 + max(0, int(np.ceil((len(audio) / 16000 - 4) / stride)))
        return np.tile(np.arange(count, dtype=np.float32)[:, None], (1, 2))


def test_a_tune_becomes_what_the_stages_read(codec, tune):
    chain = Chain((stage("tiny_musicgen_melody"),), Encoders(codec=codec))
    seeds, sampling = np.arange(2), [SamplingConfig(top_k=0)]
    codes = {
        melody: chain.generate(Wish(duration=0.5, melody=melody), seeds, sampling)[0]
        for melody in ("", tune)
    }
    assert codes[tune].shape == (2, 25, 4) and np.any(codes[tune] != codes[""])
    streams = chain.encoders.given(Wish(duration=2.0, melody=tune), 2, {"chroma"}, ())
    # The tune begins again: A all the time.
    assert set(streams) == {"chroma"} and len(streams["chroma"][0]) == 1 + 64000 // chroma.HOP
    np.testing.assert_array_equal(streams["chroma"].argmax(-1), 9)
    book = Codebook(np.arange(24.0).reshape(1, 12, 2) / 2, {"frame_rate": 1 / 3})
    encoders = Encoders(codec=codec, melody=Voice(), melody_codebook=book)
    streams = encoders.given(Wish(duration=10.0, melody=tune), 3, {"melody", "joint"}, ())
    assert set(streams) == {"melody"} and streams["melody"].shape == (3, 3, 1)


def test_what_models_cannot_follow_is_refused_in_one_line(codec, tune):
    semantic, storm = stage("tiny_musiclm", "semantic_melody,smoke"), stage("tiny_soundstorm")
    plain = Chain((stage("tiny_musicgen"),), Encoders(codec=codec))
    masked = Chain((semantic, storm), Encoders(codec=codec))
    stems = Chain((stage("tiny_stemgen"),), Encoders(codec=codec))
    seeds, sampling = np.arange(1), [SamplingConfig()]

    for chain, fields, message in (
        (plain, dict(melody=tune), "these models were trained without melodies"),
        (plain, dict(melody="none.wav"), "without melodies"),
        (plain, dict(negative="drums"), "text given: expected --joint, and a model"),
        (plain, dict(prompt="drums"), "text given: expected --joint, and a model"),
        (plain, dict(context_stems=[tune]), "these models make no stems"),
        (plain, dict(guidance_by=["context=2"]), "context, expected some of ['attributes']"),
        (stems, dict(target_stem="violin"), "violin: expected one of ('bass', 'drums', 'guitar"),
        (stems, dict(context_stems=[tune, "none.wav"]), "none.wav: no such file"),
        (stems, dict(context_stems=[tune], duration=2.0), "expected at least the 2.0 s"),
        (stems, dict(guidance_by=["context=loud"]), "context=loud: expected SOURCE=SCALE"),
        (plain, dict(audio_prompt=tune, start=0.2, end=0.4), "model 0 of --lm writes from left"),
        (plain, dict(start=0.2, end=0.4), "within the 0.0 s of --audio_prompt"),
        (masked, dict(negative="drums"), "text given: expected --joint"),
        (masked, dict(melody=tune), "expected --melody_model and --melody_codebook"),
        (masked, dict(audio_prompt=tune, start=0.2), "--end=None: expected both"),
        (masked, dict(audio_prompt=tune, start=0.4, end=0.2), "expected both, in order"),
        (masked, dict(audio_prompt=tune, start=0.4, end=1.2), "within the 1.0 s"),
        (masked, dict(audio_prompt=tune, start=0.4, end=0.8), "expected --semantic and"),
    ):
        with pytest.raises(UserError) as error:
            chain.stream(Wish(**{"duration": 1.0, **fields}), seeds, sampling * len(chain.stages))
        assert message in str(error.value) and "\n" not in str(error.value), fields
    with pytest.raises(UserError, match="expected another --guidance than 1"):
        masked.stream(
            Wish(duration=1.0, negative="drums"), seeds, [SamplingConfig(guidance=1.0)] * 2
        )


def test_a_hole_in_a_file_is_filled(codec, tune):
    """By a masked model alone; what it reads of another stream is not there."""
    storm = stage("tiny_soundstorm")
    alone = dataclasses.replace(storm, stage=dataclasses.replace(storm.stage, aligned=()))
    config = dataclasses.replace(storm.lm.config, aligned=())
    lm = dataclasses.replace(storm.lm, config=config)
    chain = Chain((dataclasses.replace(alone, lm=lm),), Encoders(codec=codec))
    wish = Wish(duration=0.3, audio_prompt=tune, start=0.4, end=0.6)
    codes, audio = chain.generate(wish, np.arange(2), [SamplingConfig(top_k=0)])
    own = codec.encode_long(io.read(tune, sample_rate=16000, channels=1)[None])[:, :50]
    assert codes.shape == (2, 50, 4) and audio.shape == (2, 16000, 1)
    for side in (np.s_[:, :20], np.s_[:, 30:]):
        np.testing.assert_array_equal(codes[side], np.tile(own[side], (2, 1, 1)))
    assert np.any(codes[:, 20:30] != own[:, 20:30])


def test_a_stem_is_made_for_the_sum_of_the_others(codec, tune, tmp_path):
    chain = Chain((stage("tiny_stemgen"),), Encoders(codec=codec))
    quiet = tmp_path / "quiet.wav"
    io.write(quiet, 0.5 * io.read(tune), 16000)
    wish = Wish(duration=0.5, context_stems=[tune, quiet], target_stem="guitar")
    expected = 1.5 * io.read(tune, sample_rate=16000, channels=1)[:8000]
    # Two files of 16 bits.
    np.testing.assert_allclose(chain.encoders.context(wish), expected, atol=1e-4)
    names = chain.stages[0].categories
    given = chain.encoders.given(wish, 2, {"context", "category"}, names)
    np.testing.assert_array_equal(given["category"], [[[2]]] * 2)
    codes = codec.encode_long(chain.encoders.context(wish)[None])
    np.testing.assert_array_equal(given["context"], np.tile(codes, (2, 1, 1)))
    made = {
        name: chain.generate(wish, np.arange(2), [SamplingConfig(top_k=0)])[0]
        for name, wish in (
            ("both", wish),
            ("scaled", dataclasses.replace(wish, guidance_by=["context=3", "category=1"])),
            ("alone", Wish(duration=0.5)),
        )
    }
    assert made["both"].shape == (2, 25, 4)
    assert np.any(made["both"] != made["alone"]) and np.any(made["both"] != made["scaled"])


class Ear:
    """A semantic encoder that hears how much there is: feature f is f / 10."""

    config = dataclasses.make_dataclass("Layout", ["sample_rate"])(16000)

    def features_long(self, audio, layer, rate):
        assert layer == 1 and audio.shape[1] == 1
        count = int(len(audio) / 16000 * rate)
        return np.tile(np.arange(count, dtype=np.float32)[:, None] / 10, (1, 2))


def test_a_style_becomes_tokens_that_are_partly_unknown(codec, tune):
    vectors = np.random.default_rng(0).normal(size=(4, 64, 2)).astype(np.float32)
    book = Codebook(vectors, {"frame_rate": 5.0, "layer": 1})
    encoders = Encoders(codec=codec, style=Ear(), style_codebook=book)
    (codes,) = encoders.given(Wish(duration=0.5, style=tune), 1, {"style"}, ())["style"]
    # A second of the longest excerpt's 4.5, three levels of four.
    expected = book.encode(Ear().features_long(np.zeros((16000, 1)), 1, 5.0))
    assert codes.shape == (22, 4)
    np.testing.assert_array_equal(codes[:5, :3], expected[:, :3])
    assert np.all(codes[5:] == 64) and np.all(codes[:, 3] == 64)
    chain = Chain((stage("tiny_musicgen_style"),), encoders)
    seeds, sampling = np.arange(2), [SamplingConfig(top_k=0)]
    made = {
        style: chain.generate(Wish(duration=0.5, style=style), seeds, sampling)[0]
        for style in ("", tune)
    }
    assert made[tune].shape == (2, 25, 4) and np.any(made[tune] != made[""])
    with pytest.raises(UserError, match="expected --style_model and --style_codebook"):
        Encoders(codec=codec).given(Wish(duration=0.5, style=tune), 1, {"style"}, ())
