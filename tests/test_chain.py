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
    chain = Chain((stage("tiny_musicgen_melody"),), codec)
    seeds, sampling = np.arange(2), [SamplingConfig(top_k=0)]
    codes = {
        melody: chain.generate(Wish(duration=0.5, melody=melody), seeds, sampling)[0]
        for melody in ("", tune)
    }
    assert codes[tune].shape == (2, 25, 4) and np.any(codes[tune] != codes[""])
    streams = chain.melody_streams(Wish(duration=2.0, melody=tune), 2)
    # The tune begins again: A all the time.
    assert set(streams) == {"chroma"} and len(streams["chroma"][0]) == 1 + 64000 // chroma.HOP
    np.testing.assert_array_equal(streams["chroma"].argmax(-1), 9)
    book = Codebook(np.arange(24.0).reshape(1, 12, 2) / 2, {"frame_rate": 1 / 3})
    chain = Chain(
        (stage("tiny_musiclm", "semantic_melody,smoke"),),
        codec,
        melody=Voice(),
        melody_codebook=book,
    )
    streams = chain.melody_streams(Wish(duration=10.0, melody=tune), 3)
    assert set(streams) == {"melody"} and streams["melody"].shape == (3, 3, 1)


def test_what_models_cannot_follow_is_refused_in_one_line(codec, tune):
    semantic, storm = stage("tiny_musiclm", "semantic_melody,smoke"), stage("tiny_soundstorm")
    plain = Chain((stage("tiny_musicgen"),), codec)
    masked = Chain((semantic, storm), codec)
    seeds, sampling = np.arange(1), [SamplingConfig()]

    for chain, fields, message in (
        (plain, dict(melody=tune), "these models were trained without melodies"),
        (plain, dict(melody="none.wav"), "without melodies"),
        (plain, dict(negative="drums"), "these models were trained without text"),
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
            chain.stream(Wish(duration=1.0, **fields), seeds, sampling * len(chain.stages))
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
    chain = Chain((dataclasses.replace(alone, lm=lm),), codec)
    wish = Wish(duration=0.3, audio_prompt=tune, start=0.4, end=0.6)
    codes, audio = chain.generate(wish, np.arange(2), [SamplingConfig(top_k=0)])
    own = codec.encode_long(io.read(tune, sample_rate=16000, channels=1)[None])[:, :50]
    assert codes.shape == (2, 50, 4) and audio.shape == (2, 16000, 1)
    for side in (np.s_[:, :20], np.s_[:, 30:]):
        np.testing.assert_array_equal(codes[side], np.tile(own[side], (2, 1, 1)))
    assert np.any(codes[:, 20:30] != own[:, 20:30])
