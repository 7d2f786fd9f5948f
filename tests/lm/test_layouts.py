"""Laws of every token layout."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.lm.layouts import SCHEDULES, Layout


@st.composite
def layouts(draw):
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    codebooks = draw(st.integers(1, 6))
    delays = ()
    if name == "delay" and draw(st.booleans()):
        delays = draw(st.lists(st.integers(0, 7), min_size=codebooks, max_size=codebooks))
        delays = tuple(d - min(delays) for d in delays)
    sizes = draw(st.lists(st.integers(1, 3000), min_size=codebooks, max_size=codebooks))
    return Layout(name, tuple(sizes), delays)


@settings(deadline=None, max_examples=25)
@given(layouts(), st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_laws(layout, frames, seed):
    rng = np.random.default_rng(seed)
    codes = jnp.asarray(rng.integers(0, layout.sizes, (2, frames, layout.codebooks)))
    sequence = layout.encode(codes)
    mask, slots = layout.frames_at(frames) >= 0, layout.slots(frames)
    special = np.asarray(layout.sizes)[slots]
    assert sequence.shape == (2, layout.steps(frames), layout.width) == (2, *slots.shape)
    np.testing.assert_array_equal(layout.decode(sequence, frames), codes)
    # Every code once, special tokens elsewhere.
    assert mask.sum() == frames * layout.codebooks
    np.testing.assert_array_equal(np.asarray(sequence) == special, ~mask[None].repeat(2, 0))
    # A code never comes before the coarser codes of its frame, nor before the frame before.
    schedule = layout.schedule(frames)
    assert np.all(np.diff(schedule, axis=0) > 0)
    if not layout.delays:
        assert np.all(np.diff(schedule, axis=1) >= 0)
    # The model's input is the sequence one step late.
    inputs = layout.shift(sequence)
    read = layout.shifted_slots(frames)
    assert np.all(np.asarray(inputs[:, 0]) == np.asarray(layout.sizes)[read[0]])
    np.testing.assert_array_equal(inputs[:, 1:], sequence[:, :-1])
    np.testing.assert_array_equal(read[1:], slots[:-1])
    # Every code may be told something about its frame, and no less in a longer sequence.
    newest = layout.newest(frames)
    assert np.all(newest[schedule] >= np.arange(frames)[:, None]) and newest.max() == frames - 1
    if layout.name != "coarse_first":
        longer = layout.newest(frames + 3)[: layout.steps(frames)]
        np.testing.assert_array_equal(newest, np.minimum(longer, frames - 1))
    # A frame is whole when the last of its codes is there.
    done = [layout.frames_done(frames, step) for step in range(layout.steps(frames) + 1)]
    assert done == [
        int(np.sum(np.maximum.accumulate(schedule.max(1)) < s)) for s in range(len(done))
    ]


def test_tables_of_the_papers():
    # MusicGen, figure 1: rows are steps, columns codebooks, numbers frames.
    tables = {
        "parallel": [[0, 0, 0], [1, 1, 1]],
        "delay": [[0, -1, -1], [1, 0, -1], [-1, 1, 0], [-1, -1, 1]],
        "flatten": [[0], [0], [0], [1], [1], [1]],
        "partial_flatten": [[0, -1, -1], [-1, 0, 0], [1, -1, -1], [-1, 1, 1]],
        "coarse_first": [[0, -1, -1], [1, -1, -1], [-1, 0, 0], [-1, 1, 1]],
    }
    assert set(tables) == set(SCHEDULES)
    for name, table in tables.items():
        np.testing.assert_array_equal(Layout(name, (9,) * 3).frames_at(2), table)
    np.testing.assert_array_equal(Layout("flatten", (9,) * 3).slots(2)[:, 0], [0, 1, 2, 0, 1, 2])
    newest = {name: Layout(name, (9,) * 3).newest(2).tolist() for name in tables}
    assert newest == {
        "parallel": [0, 1],
        "delay": [0, 1, 1, 1],
        "flatten": [0, 0, 0, 1, 1, 1],
        "partial_flatten": [0, 0, 1, 1],
        "coarse_first": [0, 1, 0, 1],
    }
    stereo = Layout("delay", (9,) * 4, (0, 0, 1, 1))
    np.testing.assert_array_equal(
        stereo.frames_at(2), [[0, 0, -1, -1], [1, 1, 0, 0], [-1, -1, 1, 1]]
    )


def test_steps_of_thirty_seconds():
    # MusicGen, table 4: 1500 frames of 4 codebooks.
    steps = {name: Layout(name, (2048,) * 4).steps(1500) for name in SCHEDULES}
    assert steps == {
        "parallel": 1500,
        "delay": 1503,
        "flatten": 6000,
        "partial_flatten": 3000,
        "coarse_first": 3000,
    }


@pytest.mark.parametrize(
    "name, delays, message",
    [
        ("spiral", (), "layout is 'spiral', expected one of"),
        ("delay", (0, 1), "expected 3 numbers"),
        ("delay", (1, 2, 3), "the smallest 0"),
        ("flatten", (0, 1, 2), "expected () for layout 'flatten'"),
    ],
)
def test_bad_layouts_are_refused(name, delays, message):
    with pytest.raises(UserError) as error:
        Layout(name, (9,) * 3, delays)
    assert message in str(error.value)
