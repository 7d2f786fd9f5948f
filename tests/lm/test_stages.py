"""The chain of stages: windows, seams, prompts, stories."""

import importlib

import jax
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.lm import stages
from mgen.lm.filters import SamplingConfig
from mgen.lm.stages import Directions, FrozenStage, Timeline
from mgen.lm.task import Task

SEEDS = np.asarray([1, 2], np.int32)
SAMPLING = SamplingConfig(top_k=0, guidance=2.0)


def frozen(name, of="tiny_musiclm"):
    module = importlib.import_module(f"configs.hierarchy.{of}")
    config = module.get_config(",".join(filter(None, (name, "smoke"))))
    task = Task(config)
    state = jax.jit(task.init)(jax.random.key(1))
    variables = state.variables
    if "joint" in variables:
        shape = variables["joint"]["codebook"].shape
        variables = {"joint": {"codebook": jax.random.normal(jax.random.key(2), shape)}}
    params = jax.tree.map(lambda x: 3 * x, state.params)
    return FrozenStage.from_trained(config, params, variables)


@pytest.fixture(scope="module")
def chain():
    return [frozen(name) for name in ("semantic", "coarse", "fine")]


def directions(seed=0):
    vectors = np.random.default_rng(seed).normal(size=(2, 64)).astype(np.float32)
    return Directions(((0.0, {"joint_embedding": vectors[:, None]}),))


def timelines(chain, seconds, told=None, prompt=None):
    told = told or directions()
    return [Timeline(stage, seconds, SEEDS, told, SAMPLING, prompt) for stage in chain]


@pytest.fixture(scope="module")
def made(chain):
    """Every state of a clip that is longer than a window (1 s)."""
    return list(stages.run(timelines(chain, 1.8)))


def test_streams_have_their_lengths(made):
    last = made[-1]
    assert {name: codes.shape for name, codes in last.items()} == {
        "semantic": (2, 45, 1),
        "acoustic": (2, 90, 4),
    }
    assert last["semantic"].max() < 256 and last["acoustic"].max() < 512


def test_what_came_first_is_what_comes_in_the_end(made):
    assert len(made) > 1
    for streams in made:
        for name, codes in streams.items():
            np.testing.assert_array_equal(codes, made[-1][name][:, : codes.shape[1]])


def test_stage_after_stage_gives_the_same_as_window_after_window(chain, made):
    lines = timelines(chain, 1.8)
    for i, line in enumerate(lines):
        while not line.done:
            line.extend(stages.merged(lines[:i], {}))
    for name, codes in stages.merged(lines, {}).items():
        np.testing.assert_array_equal(codes, made[-1][name])


def test_the_first_window_does_not_know_how_long_the_clip_is(chain, made):
    (short,) = list(stages.run(timelines(chain, 1.0)))
    for name, codes in short.items():
        np.testing.assert_array_equal(codes, made[-1][name][:, : codes.shape[1]])


def test_a_prompt_is_continued_as_if_generated(chain, made):
    prompt = {"semantic": made[-1]["semantic"][:, :10], "acoustic": made[-1]["acoustic"][:, :20]}
    *_, again = stages.run(timelines(chain, 1.8, prompt=prompt))
    for name, codes in again.items():
        np.testing.assert_array_equal(codes, made[-1][name])


def test_a_story_changes_what_comes_after_its_turn(chain, made):
    (_, first), (_, second) = directions().told[0], directions(1).told[0]
    told = Directions(((0.0, first), (0.5, second)))
    *_, story = stages.run(timelines(chain, 1.8, told))
    # The windows of 1 s begin every half second; the second one is told the other thing.
    np.testing.assert_array_equal(story["semantic"][:, :25], made[-1]["semantic"][:, :25])
    assert np.any(story["semantic"] != made[-1]["semantic"])


def test_a_prompt_of_the_whole_length_is_refused(chain):
    prompt = {"semantic": np.zeros((2, 25, 1), np.int32)}
    with pytest.raises(UserError, match=r"the prompt is 1.0 s long, expected less than 1.0 s"):
        Timeline(chain[0], 1.0, SEEDS, directions(), SAMPLING, prompt)


@pytest.fixture(scope="module")
def stemgen():
    return frozen("", "tiny_stemgen")


def stem(stemgen, scales, sampling, **changes):
    """1.3 s of a stem (a window is 1 s) for a random mix."""
    mix = np.random.default_rng(0).integers(512, size=(2, 65, 4))
    given = {"context": mix, "category": np.full((2, 1, 1), 2)} | changes
    timeline = Timeline(stemgen, 1.3, SEEDS, Directions(scales=scales), sampling)
    *_, last = stages.run([timeline], given)
    return last["acoustic"]


def test_a_stem_is_made_for_its_context_and_slot(stemgen):
    assert stemgen.categories == ("bass", "drums", "guitar", "piano")
    plain = SamplingConfig(top_k=0, guidance=1.0)
    made = stem(stemgen, {}, plain)
    assert made.shape == (2, 65, 4) and made.max() < 512
    assert np.any(made != stem(stemgen, {}, plain, category=np.full((2, 1, 1), 0)))
    other = np.random.default_rng(1).integers(512, size=(2, 65, 4))
    assert np.any(made != stem(stemgen, {}, plain, context=other))


def test_guidance_by_sources_contrasts_each_with_none_of_them(stemgen):
    plain = SamplingConfig(top_k=0, guidance=1.0)
    # u + 1 (c - u) is c, whatever u is; the source that is not named is always given.
    np.testing.assert_array_equal(stem(stemgen, {"context": 1.0}, plain), stem(stemgen, {}, plain))
    timeline = Timeline(
        stemgen, 1.0, SEEDS, Directions(scales={"context": 3.0, "category": 2.0}), plain
    )
    given = {"context": np.zeros((2, 50, 4), int), "category": np.zeros((2, 1, 1), int)}
    variants = timeline._conditions(given, 0, 50)["variants"]
    assert [weight for weight, _ in variants] == [-4.0, 3.0, 2.0]
    known = [(bool((c.aligned[0] < 512).all()), bool((c.prefix[0] < 4).all())) for _, c in variants]
    assert known == [(False, False), (True, False), (False, True)]
    both = stem(stemgen, {"context": 3.0, "category": 2.0}, plain)
    assert np.any(both != stem(stemgen, {}, plain))
