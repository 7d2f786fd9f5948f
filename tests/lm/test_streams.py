"""Stages as data: streams to grids and back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.lm.condition import Condition
from mgen.lm.config import LMConfig
from mgen.lm.layouts import Layout
from mgen.lm.streams import (
    Part,
    Stage,
    drop_sources,
    excerpt,
    parse,
    pitch_classes,
    silenced,
)

STREAMS = {
    "acoustic": dict(codebooks=4, codebook_size=9, frame_rate=50.0),
    "semantic": dict(codebooks=1, codebook_size=7, frame_rate=25.0),
    "vocals": dict(codebooks=2, codebook_size=5, frame_rate=50.0),
    "odd": dict(codebooks=1, codebook_size=5, frame_rate=30.0),
}


def stage(*target, **roles):
    parts = {role: tuple(parse(text, STREAMS) for text in names) for role, names in roles.items()}
    return Stage(tuple(parse(text, STREAMS) for text in target), **parts)


def test_semantic_and_acoustic_frames_in_turn():
    """MusicRL's order: a semantic token, then the two acoustic frames of its time."""
    mixed = stage("semantic", "acoustic[0:2]")
    assert mixed.frame_rate == 25.0 and mixed.frames(2.0) == 50
    assert mixed.sizes()["sizes"] == (7, 9, 9, 9, 9)
    codes = {
        "semantic": jnp.asarray([[[1], [2]]]),
        "acoustic": jnp.arange(16).reshape(1, 4, 4) % 9,
    }
    grid = mixed.grid(codes)
    np.testing.assert_array_equal(grid[0], [[1, 0, 1, 4, 5], [2, 8, 0, 3, 4]])
    sequence = Layout("flatten", mixed.sizes()["sizes"]).encode(grid)
    np.testing.assert_array_equal(sequence[0, :, 0], [1, 0, 1, 4, 5, 2, 8, 0, 3, 4])


def test_two_tracks_in_turn():
    """YuE's order: a token of each track a frame."""
    tracks = stage("vocals[0:1]", "acoustic[0:1]")
    codes = {"vocals": jnp.asarray([[[1, 4], [2, 4]]]), "acoustic": jnp.full((1, 2, 4), 8)}
    sequence = Layout("flatten", tracks.sizes()["sizes"]).encode(tracks.grid(codes))
    np.testing.assert_array_equal(sequence[0, :, 0], [1, 8, 2, 8])


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(0, 2**31 - 1),
)
def test_split_is_the_inverse_of_grid(parts, frames, seed):
    rng = np.random.default_rng(seed)
    parts = [(1, 1), *parts]  # the slowest of them makes the frames
    made = tuple(Part(f"s{i}", 0, levels, 8, 10.0 * fold) for i, (levels, fold) in enumerate(parts))
    own = Stage(made)
    codes = {
        part.stream: jnp.asarray(rng.integers(0, 8, (2, frames * fold, part.levels)))
        for part, (_, fold) in zip(made, parts)
    }
    grid = own.grid(codes)
    assert grid.shape == (2, frames, len(own.sizes()["sizes"]))
    back = own.split(grid)
    for name, value in codes.items():
        np.testing.assert_array_equal(back[name], value)


def test_aligned_rows_last_as_long_as_their_time():
    own = stage("acoustic", aligned=("semantic",))
    (rows,) = own.aligned_codes({"semantic": jnp.asarray([[[1], [2]]])}, 5)
    np.testing.assert_array_equal(rows[0, :, 0], [1, 1, 2, 2, 2])


def test_a_tune_lies_beside_the_frames_of_its_time():
    """Rows of 0.128 s beside frames of 0.02 s: each frame has that in which its middle lies."""
    streams = STREAMS | {"chroma": dict(codebooks=1, codebook_size=12, frame_rate=7.8125)}
    own = Stage((parse("acoustic", streams),), aligned=(parse("chroma", streams),))
    chroma = np.eye(12, dtype=np.float32)[[[3, 5, 7]]]
    codes = pitch_classes(chroma)
    np.testing.assert_array_equal(codes[0, :, 0], [3, 5, 7])
    (rows,) = own.aligned_codes({"chroma": codes}, 20)
    expected = [3] * 6 + [5] * 7 + [7] * 7  # middles up to 0.11, 0.25 and 0.39 s
    np.testing.assert_array_equal(rows[0, :, 0], expected)
    there = np.asarray([[True, False, True]])
    np.testing.assert_array_equal(pitch_classes(chroma, there)[0, :, 0], [3, 12, 7])


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: parse("drums", STREAMS), "'drums', expected one of"),
        (lambda: parse("acoustic[2:5]", STREAMS), "expected levels within 0 to 4"),
        (lambda: parse("acoustic[0]", STREAMS), "expected one of"),
        (lambda: stage("semantic", "odd"), "odd at 30 Hz beside frames at 25 Hz"),
        (lambda: stage("semantic", aligned=("acoustic",)), "acoustic at 50 Hz beside frames"),
    ],
)
def test_parts_that_do_not_fit_are_refused(build, message):
    with pytest.raises(UserError) as error:
        build()
    assert message in str(error.value)


N = 4000


@pytest.mark.parametrize("frames", [60, 9])
def test_an_excerpt_is_of_one_place_and_its_levels(frames):
    """Rows at 5 Hz: at most 22, at least 8 of them known."""
    part = Part("style", 0, 6, 100, 5.0)
    rng = np.random.default_rng(0)
    codes = jnp.asarray(rng.integers(0, 100, (200, frames, 6)))
    count = min(22, frames)
    first = np.asarray(excerpt(part, codes))
    np.testing.assert_array_equal(first[..., :3], codes[:, :count, :3])
    assert np.all(first[..., 3:] == 100)
    found = np.asarray(excerpt(part, codes, jax.random.key(0)))
    assert found.shape == (200, count, 6)
    known = found < 100
    lengths, levels = known[..., 0].sum(axis=1), known[:, 0].sum(axis=1)
    assert set(levels) == set(range(1, 7))
    assert set(lengths) == set(range(min(8, count), count + 1))
    starts = set()
    for row, one, length, level in zip(np.asarray(codes), found, lengths, levels):
        assert np.all(one[:length, level:] == 100) and np.all(one[length:] == 100)
        places = [
            start
            for start in range(frames - length + 1)
            if np.array_equal(row[start : start + length, :level], one[:length, :level])
        ]
        assert places
        starts |= set(places)
    assert frames == 9 or len(starts) > 20


READER = dataclasses.replace(
    stage("acoustic", prefix=("vocals[0:1]", "semantic"), aligned=("acoustic",)),
    vectors="text",
    front=(("chroma", 5.0), ("joint_embedding", 0.0)),
)


@pytest.fixture(scope="module")
def everything():
    """A condition that says 1 everywhere, and the model's shape."""
    shape = dict(
        layout="parallel", front=(12, 5), dim=16, heads=2, condition_width=3, attribute_sizes=(2,)
    )
    config = LMConfig(**READER.sizes(), **shape)
    codes = [jnp.ones((N, 2, levels), jnp.int32) for levels in (1, 1, 4)]
    return config, Condition(
        attributes=jnp.ones((N, 1), jnp.int32),
        vectors=jnp.ones((N, 2, 3)),
        mask=jnp.ones((N, 2), bool),
        front=(jnp.ones((N, 4, 12)), jnp.ones((N, 1, 5))),
        front_mask=(jnp.ones((N, 4), bool), jnp.ones((N, 1), bool)),
        prefix=tuple(codes[:2]),
        aligned=(codes[2],),
    )


def unknown(condition):
    """Which examples know nothing of each stream, bool [N]."""
    return {
        "text": ~np.asarray(condition.mask).any(axis=1),
        "chroma": ~np.asarray(condition.front_mask[0]).any(axis=1),
        "joint_embedding": ~np.asarray(condition.front_mask[1]).any(axis=1),
        "vocals": np.all(np.asarray(condition.prefix[0]) == 5, axis=(1, 2)),
        "semantic": np.all(np.asarray(condition.prefix[1]) == 7, axis=(1, 2)),
        "acoustic": np.all(np.asarray(condition.aligned[0]) == 9, axis=(1, 2)),
    }


@pytest.mark.parametrize("names", [set(), {"text"}, {"vocals", "chroma"}, {"attributes"}])
def test_silenced_streams_say_nothing(everything, names):
    config, condition = everything
    found = silenced(READER, config, condition, names)
    silent = {name for name, gone in unknown(found).items() if gone.all()}
    assert silent | ({"attributes"} if not found.attributes.any() else set()) == names


def test_streams_are_dropped_independently(everything):
    config, condition = everything
    rates = {"text": 0.25, "vocals": 0.5}
    found = unknown(drop_sources(READER, config, jax.random.key(0), condition, rates))
    # Four standard deviations.
    for gone, rate in (
        (found["text"], 0.25),
        (found["vocals"], 0.5),
        (found["text"] & found["vocals"], 0.125),
    ):
        assert abs(gone.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / N)
    assert not found["semantic"].any() and not found["acoustic"].any()
