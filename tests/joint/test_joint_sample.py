"""Embedding of recordings of any length: which windows, in what memory, and their mean."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.joint import sample
from mgen.joint.sample import FrozenJoint
from mgen.joint.task import Task


@pytest.fixture(scope="module")
def joint():
    config = importlib.import_module("mgen.configs.joint.tiny_mulan").get_config("smoke")
    state = jax.jit(Task(config).init)(jax.random.key(0))
    return FrozenJoint.from_trained(config, state.inference_params, state.variables)


@pytest.fixture(scope="module")
def embed(joint):
    """(windows [W, T, C]) -> embeddings, straight through the model."""
    run = jax.jit(lambda x: joint.model.apply(joint.variables, x, method="embed_audio"))
    return lambda windows: np.asarray(run(jnp.asarray(windows)))


def noise(samples, seed=0):
    rng = np.random.default_rng(seed)
    # Louder as it goes on, so that windows differ.
    ramp = np.geomspace(0.001, 0.5, samples)
    return (rng.normal(size=samples) * ramp).astype(np.float32)[:, None]


def test_windows_of_a_long_recording(joint, embed, monkeypatch):
    """20.3 windows' worth with half-second steps: 40 windows, the last filled up with zeros."""
    monkeypatch.setattr(sample, "AT_ONCE", 16)
    rate = joint.config.sample_rate
    audio = noise(int(20.3 * rate))
    vectors = joint.window_embeddings(audio, stride_seconds=0.5)
    assert vectors.shape == (40, joint.config.embed_dim) and vectors.dtype == np.float32
    padded = np.concatenate([audio, np.zeros((rate, 1), np.float32)])
    starts = [round(w * 0.5 * rate) for w in range(40)]
    assert starts[-1] + rate >= len(audio) > starts[-2] + rate
    expected = embed(np.stack([padded[s : s + rate] for s in starts]))
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert np.abs(expected[0] - expected[-1]).max() > 1e-3


def test_a_window_a_second_by_default(joint):
    rate = joint.config.sample_rate
    for seconds, count in [(0.2, 1), (1.0, 1), (1.001, 2), (2.0, 2), (3.5, 4)]:
        assert len(joint.window_embeddings(noise(round(seconds * rate)))) == count


def test_short_clip_is_padded(joint, embed):
    clip = noise(4000)
    window = np.zeros((1, joint.config.samples, 1), np.float32)
    window[0, :4000] = clip
    np.testing.assert_allclose(joint.window_embeddings(clip), embed(window), atol=1e-5)


def test_recording_is_the_mean_of_its_windows(joint, tmp_path):
    audio = noise(5 * joint.config.sample_rate)
    vector = joint.embed_audio(audio)
    mean = joint.window_embeddings(audio).mean(axis=0)
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-6)
    np.save(tmp_path / "audio.npy", audio)
    mapped = np.load(tmp_path / "audio.npy", mmap_mode="r")
    np.testing.assert_array_equal(joint.embed_audio(mapped), vector)


def test_texts_in_batches(joint):
    length = joint.config.text_length
    ids = np.random.default_rng(0).integers(4, 500, (19, length)).astype(np.int32)
    mask = np.arange(length)[None] < np.random.default_rng(1).integers(2, length, 19)[:, None]
    vectors = joint.embed_text(ids, mask)
    expected = joint.model.apply(joint.variables, ids, mask, method="embed_text")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(joint.embed_text(ids[:1], mask[:1]), vectors[:1], atol=1e-6)
    assert joint.embed_text(ids[:0], mask[:0]).shape == (0, joint.config.embed_dim)


def test_three_melodies_of_ten_seconds():
    """MusicLM's windows of 4 s every 3 s; a melody embedding reads no text."""
    config = importlib.import_module("mgen.configs.joint.tiny_melody").get_config("smoke")
    config.data.seconds = 4.0
    task = Task(config)
    state = jax.jit(task.init)(jax.random.key(0))
    melody = FrozenJoint.from_trained(config, state.inference_params, state.variables)
    rate = melody.config.sample_rate
    audio = noise(10 * rate)
    vectors = melody.window_embeddings(audio, stride_seconds=3.0)
    assert vectors.shape == (3, melody.config.embed_dim)
    for vector, start in zip(vectors, (0, 3, 6)):
        window = audio[start * rate : (start + 4) * rate]
        np.testing.assert_allclose(vector, melody.window_embeddings(window)[0], atol=1e-5)
    assert len(melody.window_embeddings(noise(10 * rate + 1), stride_seconds=3.0)) == 4
    with pytest.raises(UserError, match="reads no text"):
        melody.embed_text(np.zeros((1, 16), np.int32), np.ones((1, 16), bool))


def test_wrong_shapes_are_refused(joint):
    for shape in [(100,), (100, 2), (0, 1)]:
        with pytest.raises(UserError, match=r"expected \[T, 1\] with T > 0 at 16000 Hz"):
            joint.window_embeddings(np.zeros(shape, np.float32))
    with pytest.raises(UserError, match=r"expected \[B, 16\]"):
        joint.embed_text(np.zeros((2, 5), np.int32), np.ones((2, 5), bool))
