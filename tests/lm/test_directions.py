"""What a stage is told beside its tokens: tunes, texts to stay away from, holes to fill."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.lm import stages, streams
from mgen.lm.filters import SamplingConfig
from mgen.lm.stages import Directions, FrozenStage, Timeline
from mgen.lm.task import Task

SEEDS = np.asarray([1, 2])
GUIDED = SamplingConfig(top_k=0, guidance=2.0)


def frozen(name, arg="smoke"):
    """An untrained stage, away from what is 0 at first; its window is 1 s."""
    config = importlib.import_module(f"configs.hierarchy.{name}").get_config(arg)
    state = jax.jit(Task(config).init)(jax.random.key(1))
    variables = state.variables
    if "joint" in variables:
        shape = variables["joint"]["codebook"].shape
        variables = {"joint": {"codebook": jax.random.normal(jax.random.key(2), shape)}}
    rng = np.random.default_rng(4)
    params = jax.tree.map(lambda x: 3 * x + 0.1 * rng.normal(size=x.shape), state.params)
    return FrozenStage.from_trained(config, params, variables)


def vectors(seed):
    rng = np.random.default_rng(seed)
    return {"joint_embedding": rng.normal(size=(2, 1, 64)).astype(np.float32)}


def made(stage, seconds, given=None, told=None, sampling=GUIDED, prompt=None, hole=None):
    """The grid of a stage alone."""
    told = told or Directions(((0.0, vectors(0)),))
    line = Timeline(stage, seconds, SEEDS, told, sampling, prompt, hole)
    list(stages.run([line], given))
    return line.grid


@pytest.fixture(scope="module")
def musicgen():
    return frozen("musicgen_small", "smoke")


@pytest.fixture(scope="module")
def semantic():
    return frozen("tiny_musiclm", "semantic_melody,smoke")


def test_tokens_of_a_tune_are_read_where_their_windows_lie(semantic):
    tune = np.random.default_rng(0).integers(0, 256, (2, 2, 12))
    base = made(semantic, 3.0, {"melody": tune})
    # A row is 3 s. The windows of 25 frames begin every 12 frames, each takes the nearest row: the
    # one from frame 48 is the first with the second row, its first new frame is 61.
    other = np.concatenate([tune[:, :1], (tune[:, 1:] + 1) % 256], axis=1)
    changed = made(semantic, 3.0, {"melody": other})
    np.testing.assert_array_equal(changed[:, :61], base[:, :61])
    assert np.any(changed[:, 61:] != base[:, 61:])
    alone = made(semantic, 3.0)
    assert np.any(alone[:, :25] != base[:, :25])
    unknown = np.full((2, 2, 12), 256)
    np.testing.assert_array_equal(alone, made(semantic, 3.0, {"melody": unknown}))
    # A stream that ends goes on as unknown.
    short = made(semantic, 3.0, {"melody": tune[:, :1]})
    unknown[:, :1] = tune[:, :1]
    np.testing.assert_array_equal(short, made(semantic, 3.0, {"melody": unknown}))


def test_chroma_and_text_stand_before_the_codes():
    stage = frozen("tiny_musicgen_melody")
    tune = np.eye(12, dtype=np.float32)[np.random.default_rng(0).integers(0, 12, (2, 8))]
    base = made(stage, 1.0, {"chroma": tune})
    for given, told in (
        ({}, Directions(((0.0, vectors(0)),))),
        ({"chroma": tune}, Directions(((0.0, vectors(1)),))),
        ({"chroma": np.roll(tune, 1, axis=-1)}, Directions(((0.0, vectors(0)),))),
    ):
        assert np.any(made(stage, 1.0, given, told) != base)
    # Neither is what the model was trained to take for nothing: rows of zeros that say so.
    line = Timeline(stage, 1.0, SEEDS, Directions(), GUIDED)
    nothing = stage.lm.generate(
        frames=50,
        seeds=SEEDS,
        sampling=SamplingConfig(top_k=0, guidance=1.0),
        condition=stages.Condition(
            front=(jnp.zeros((2, 8, 12)), jnp.zeros((2, 1, 64))),
            front_mask=(jnp.zeros((2, 8), bool), jnp.zeros((2, 1), bool)),
        ),
    )
    line.extend({})
    np.testing.assert_array_equal(line.grid, nothing)


def test_chroma_lies_beside_the_codes():
    stage = frozen("tiny_tune")
    tune = np.eye(12, dtype=np.float32)[np.random.default_rng(0).integers(0, 12, (2, 8))]
    base = made(stage, 1.0, {"chroma": tune})
    later = np.concatenate([tune[:, :6], np.roll(tune[:, 6:], 1, axis=-1)], axis=1)
    changed = made(stage, 1.0, {"chroma": later})
    # Row 6 begins at 0.768 s: frame 38's middle is the first in it, and of the three frames before
    # it the delayed codes are yet to be drawn.
    np.testing.assert_array_equal(changed[:, :35], base[:, :35])
    assert np.any(changed[:, 35:] != base[:, 35:])
    alone = made(stage, 1.0)
    assert np.any(alone[:, :35] != base[:, :35])
    # A tune that is shorter than the clip, or none: unknown from there on.
    short = made(stage, 1.0, {"chroma": tune[:, :6]})
    np.testing.assert_array_equal(short[:, :35], base[:, :35])
    nothing = {"chroma": tune, "chroma_mask": np.zeros((2, 8), bool)}
    np.testing.assert_array_equal(alone, made(stage, 1.0, nothing))


def test_text_is_read_whole_where_its_mask_is(musicgen):
    rng = np.random.default_rng(0)
    rows, mask = rng.normal(size=(2, 6, 768)).astype(np.float32), np.arange(6) < [[4], [6]]

    def follow(rows, mask=mask):
        told = Directions(((0.0, {"text": rows, "text_mask": mask}),))
        return made(musicgen, 1.5, told=told)

    base = follow(rows)
    hidden = rows + 10 * ~mask[..., None]
    np.testing.assert_array_equal(follow(hidden.astype(np.float32)), base)
    changed = rows.copy()
    changed[1, 5] *= -3
    np.testing.assert_array_equal(follow(changed)[0], base[0])
    assert np.any(follow(changed)[1] != base[1])
    # In every window, and in one that was told nothing there is none.
    assert np.any(made(musicgen, 1.5, told=Directions(attributes=None)) != base)


def test_a_negative_text_takes_the_place_of_nothing(semantic):
    """Away from itself, a text is followed without guidance; a stage without text takes no
    notice."""
    greedy = SamplingConfig(temperature=0.0, top_k=0, guidance=3.0)
    one, two = vectors(0), vectors(1)

    def follow(negative, guidance=3.0):
        sampling = SamplingConfig(top_k=0, guidance=guidance)
        return made(semantic, 1.0, {}, Directions(((0.0, one),), negative=negative), sampling)

    np.testing.assert_array_equal(follow(one), follow(None, 1.0))
    assert np.any(follow(two) != follow(None)) and np.any(follow(two) != follow(one))
    fine = frozen("tiny_musiclm", "fine,smoke")
    coarse = {"acoustic": np.random.default_rng(0).integers(0, 512, (2, 50, 2))}
    plain, told = (
        made(fine, 0.2, coarse, Directions(((0.0, one),), negative=negative), greedy)
        for negative in (None, two)
    )
    np.testing.assert_array_equal(plain, told)


@pytest.fixture(scope="module")
def storm():
    return frozen("tiny_soundstorm")


@pytest.fixture(scope="module")
def clip():
    """2.4 s of tokens."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 512, (2, 120, 4), dtype=np.int32)
    return {"acoustic": codes, "semantic": rng.integers(0, 256, (2, 60, 1), dtype=np.int32)}


@pytest.mark.parametrize("hole", [(0.0, 0.3), (0.9, 1.2), (2.0, 2.4), (0.4, 2.2), (0.0, 2.4)])
def test_a_hole_is_filled_and_the_rest_stays(semantic, storm, clip, hole):
    told = Directions(((0.0, vectors(0)),))
    lines = [Timeline(own, 2.4, SEEDS, told, GUIDED, clip, hole) for own in (semantic, storm)]
    *_, found = stages.run(lines)
    for name, rate in (("semantic", 25), ("acoustic", 50)):
        first, last = (round(second * rate) for second in hole)
        inside = np.s_[:, first:last]
        assert found[name].shape == clip[name].shape
        assert np.any(found[name][inside] != clip[name][inside])
        for outside in (np.s_[:, :first], np.s_[:, last:]):
            np.testing.assert_array_equal(found[name][outside], clip[name][outside])


def test_a_masked_model_hears_both_sides_of_a_hole(semantic, storm, clip):
    for stage, hears in ((storm, True), (semantic, False)):
        name = stage.stage.target[0].stream
        size = stage.stage.target[0].size
        half = clip[name].shape[1] // 2
        given = {"semantic": clip["semantic"]} if hears else {}
        for side in (np.s_[:, :half], np.s_[:, half:]):
            other = clip[name].copy()
            other[side] = (other[side] + 1) % size
            line, changed = (
                made(stage, 2.4, given, prompt={name: codes}, hole=(1.0, 1.4))
                for codes in (clip[name], other)
            )
            inside = np.s_[
                :, round(1.0 * stage.stage.frame_rate) : round(1.4 * stage.stage.frame_rate)
            ]
            behind = side == np.s_[:, half:]
            assert np.any(line[inside] != changed[inside]) == (hears or not behind)


def test_widths_of_vectors_are_checked():
    config = importlib.import_module("configs.hierarchy.tiny_musicgen_melody").get_config("smoke")
    config.model.front = (12,)
    with pytest.raises(UserError, match=r"model.front has 1 widths, expected one for"):
        streams.model_config(config)
