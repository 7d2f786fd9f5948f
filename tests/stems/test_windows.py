"""Windows: the whole of a song is covered, noise is shared, nothing is heard where two meet."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.stems.sample import FrozenSeparator, FrozenStems, fill_in
from mgen.stems.settings import SamplingConfig
from mgen.stems.windows import Source, Windows, continued, crossfaded, positional_noise

STEPS = SamplingConfig(steps=4, sigma_min=0.05, sigma_max=1.0, churn=1.0)
SEEDS = np.asarray([3, 4])


def local(reach):
    """A denoiser of stems that sees `reach` samples on either side, and other stems."""

    def estimate(params):
        def denoise(x, t):
            near = jnp.pad(x, ((0, 0), (0, 0), (reach, reach), (0, 0)))
            parts = [near[:, :, i : i + x.shape[2]] for i in range(2 * reach + 1)]
            seen = sum(w * part for w, part in zip(params, parts))
            return jnp.tanh(seen - 0.5 * seen[:, ::-1]) / (1 + t**2)

        return denoise

    return estimate


ESTIMATES = {reach: local(reach) for reach in (0, 1)}


def model(samples, reach=0, **fields):
    settings = dict(
        names=("bass", "drums"), sample_rate=10, channels=1, samples=samples, hop=4, per_track=False
    )
    weights = jnp.asarray([0.5, 0.3, 0.2][: 2 * reach + 1])
    return FrozenStems(**(settings | fields), estimate=ESTIMATES[reach], params=weights)


def song(samples, channels=1, batch=2):
    return np.random.default_rng(0).standard_normal((batch, samples, channels)).astype(np.float32)


@settings(deadline=None)
@given(
    samples=st.integers(1, 8).map(lambda n: 4 * n),
    share=st.floats(0, 0.5),
    total=st.integers(1, 150),
    at_once=st.integers(1, 5),
)
def test_what_windows_agree_on_is_what_comes_out(samples, share, total, at_once):
    """Stems that are each the mix and where a sample is, of any length."""
    windows, mix = Windows.overlapping(samples, 4, share), song(total)
    assert windows.overlap % 4 == 0 and windows.overlap <= share * samples
    batches = set()

    def run(parts, begins):
        batches.add(parts.shape[1])
        where = (begins[:, None] + np.arange(samples))[None, :, :, None]
        return np.stack(np.broadcast_arrays(parts, where.astype(np.float32)), axis=2)

    pieces = list(crossfaded(run, Source.of(mix), windows, at_once))
    assert len(batches) == 1 and max(piece.shape[2] for piece in pieces) <= samples
    made = np.concatenate(pieces, axis=2)
    np.testing.assert_array_equal(made[:, 0], mix)
    np.testing.assert_array_equal(made[0, 1, :, 0], np.arange(total))


@settings(deadline=None)
@given(
    samples=st.integers(1, 8).map(lambda n: 4 * n),
    share=st.floats(0, 0.5),
    known=st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=6),
)
def test_what_is_missing_is_made_once_and_given_to_the_next_window(samples, share, known):
    """One stem is known in spans, the other one nowhere but in spans of its own."""
    runs = [np.full(length, value) for value, length in known]
    mask = np.stack([np.concatenate(runs), np.concatenate(runs[::-1])])[None]
    total, windows, made = mask.shape[2], Windows.overlapping(samples, 4, share), []
    stems = np.where(mask, np.arange(total), -1.0)[..., None].astype(np.float32)

    def run(stems, mask, begin):
        assert stems.shape == (1, 2, samples, 1) and begin % 4 == 0
        where = (begin + np.arange(samples))[None, None, :, None]
        inside = mask[..., None] & (where < total)
        np.testing.assert_array_equal(stems[inside], np.broadcast_to(where, stems.shape)[inside])
        made.append((begin, mask))
        return np.where(mask[..., None], stems, where).astype(np.float32)

    source = Source(total, lambda b, e: (stems[:, :, b:e], mask[:, :, b:e]))
    pieces = list(continued(run, source, windows))
    found = np.concatenate(pieces, axis=2)[..., 0]
    np.testing.assert_array_equal(found, np.broadcast_to(np.arange(total), found.shape))
    for begin, own in made:
        # Context, and then what is missing.
        assert begin == 0 or own[0, :, : min(windows.overlap, samples // 4)].all()
        assert not own.all()
    assert mask.all() or made


def test_nothing_is_missing_so_nothing_runs():
    stems = np.ones((1, 2, 50, 1), np.float32)
    source = Source(50, lambda b, e: (stems[:, :, b:e], np.ones((1, 2, e - b), bool)))
    (*pieces,) = continued(None, source, Windows.overlapping(16, 4, 0.5))
    np.testing.assert_array_equal(np.concatenate(pieces, axis=2), stems)


def test_a_short_hole_lies_in_the_middle_of_its_window():
    mask, begins = np.ones((1, 1, 100), bool), []
    mask[:, :, 50:58] = mask[:, :, 92:] = False
    stems = np.zeros((1, 1, 100, 1), np.float32)

    def run(stems, mask, begin):
        begins.append(begin)
        return stems

    source = Source(100, lambda b, e: (stems[:, :, b:e], mask[:, :, b:e]))
    list(continued(run, source, Windows.overlapping(32, 4, 0.5)))
    # The other one ends with the song: nothing behind it could tell anything.
    assert begins == [50 - 12 - 2, 92 - 16]


def test_overlaps_above_a_half_are_refused():
    for share in (-0.1, 0.6):
        with pytest.raises(UserError, match="overlap is"):
            Windows.overlapping(16, 4, share)


def test_noise_belongs_to_a_place_in_a_song():
    keys = jax.vmap(jax.random.key)(np.asarray([5, 5, 6]))
    noise = positional_noise(keys, np.asarray([0, 2, 0]), (3, 2, 16, 2), hop=4)
    first, later, other = np.asarray(noise(jnp.asarray(1), 0))
    np.testing.assert_array_equal(first[:, 8:], later[:, :8])
    drawn = np.concatenate([first.ravel(), later[:, 8:].ravel(), other.ravel()])
    assert len(np.unique(drawn)) == len(drawn)
    again = positional_noise(keys[1:2], np.asarray([3]), (1, 2, 8, 2), hop=4)
    np.testing.assert_array_equal(again(jnp.asarray(1), 0)[0], later[:, 4:12])
    for step in ((jnp.asarray(2), 0), (jnp.asarray(1), 1)):
        assert not np.isin(noise(*step), drawn).any()


def test_no_seam_is_heard_in_a_mix_taken_apart():
    """Four evaluations of a denoiser that sees one sample on either side: four samples from its
    edge a window knows as much as the whole song, and the fade keeps as far away, a quarter of the
    16 that overlap. Float32."""
    mix = song(160)
    whole = model(160, reach=1).separate(mix, seeds=SEEDS, sampling=STEPS)
    for at_once in (1, 4):
        parts = model(64, reach=1).separate(mix, seeds=SEEDS, sampling=STEPS, at_once=at_once)
        assert parts.shape == (2, 2, 160, 1)
        np.testing.assert_allclose(parts, whole, atol=1e-6)
    cut = model(64, reach=1).separate(mix, seeds=SEEDS, sampling=STEPS, overlap=0.0)
    assert np.abs(cut - whole).max() > 1e-2


def test_an_example_is_its_own():
    mix, own = song(160), model(64, reach=1)
    both = own.separate(mix, seeds=SEEDS, sampling=STEPS, at_once=1)
    for row in (0, 1):
        settings = dict(seeds=SEEDS[row : row + 1], sampling=STEPS, at_once=2)
        alone = own.separate(mix[row : row + 1], **settings)
        np.testing.assert_allclose(alone[0], both[row], atol=1e-6)
    other = own.separate(mix, seeds=SEEDS + 1, sampling=STEPS, at_once=1)
    assert np.abs(other - both).max() > 1e-2


def test_no_seam_is_heard_in_what_goes_on():
    """A denoiser that sees single samples makes the same of them in any window, as the noise is the
    same; all windows are one program. Float32."""
    whole = model(152).generate(seconds=15.0, seeds=SEEDS, sampling=STEPS)
    before = fill_in._cache_size()
    parts = model(64).generate(seconds=15.0, seeds=SEEDS, sampling=STEPS)
    assert fill_in._cache_size() == before + 1
    assert parts.shape == (2, 2, 150, 1)
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_one_sample_is_enough_and_the_sides_of_a_stereo_song_have_noise_of_their_own():
    own, mix = model(16, channels=2), song(1, channels=2, batch=1)
    made = own.separate(mix, seeds=[1], sampling=STEPS)
    assert made.shape == (1, 2, 1, 2)
    padded = np.pad(mix, ((0, 0), (0, 15), (0, 0)))
    np.testing.assert_array_equal(made, own.separate(padded, seeds=[1], sampling=STEPS)[:, :, :1])
    np.testing.assert_allclose(made.sum(axis=1), mix, atol=1e-6)
    (one,) = own.generate(seconds=0.1, seeds=[1], sampling=STEPS)
    assert one.shape == (2, 1, 2) and np.abs(one[..., 0] - one[..., 1]).min() > 0


def test_a_separator_is_faded_like_the_rest():
    """A network that halves what it hears over three samples."""

    def halves(params):
        def apply(mix):
            near = jnp.pad(mix, ((0, 0), (1, 1), (0, 0)))
            mean = (near[:, :-2] + near[:, 1:-1] + near[:, 2:]) / 3
            return jnp.stack([params * mean, mix - params * mean], axis=1)

        return apply

    fields = dict(names=("bass", "drums"), sample_rate=10, channels=2, hop=4, apply=halves)
    make = functools.partial(FrozenSeparator, **fields, params=jnp.asarray(0.5))
    mix = song(150, channels=2)
    whole, parts = (make(samples=n).separate(mix, seeds=SEEDS) for n in (152, 64))
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    silent = make(samples=64).separate(0 * mix, seeds=SEEDS)
    assert silent.shape == (2, 2, 150, 2) and not silent.any()
    steps = types.SimpleNamespace(seen=0)

    def on_step(done):
        steps.seen += done

    source = Source.of(mix)
    list(make(samples=64).separate_pieces(source, seeds=SEEDS, at_once=2, on_step=on_step))
    assert steps.seen == 2  # three windows, two at once
