"""Songs on disk: any rate, channels and length in, files that fit the song out."""

import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tracks
from mgen.audio import io
from mgen.audio.resample import resample
from mgen.errors import UserError
from mgen.stems.sample import FrozenSeparator, FrozenStems
from mgen.stems.settings import Dirac, Gaussian, Track

RATE, HOP = 8000, 8
NAMES = ("bass", "drums", "piano")
FEW = dict(steps=3, churn=0.0, repeats=1)


def shrinking(params):
    return lambda x, t: params * x / (1 + t**2)


def thirds(params):
    def apply(mix):
        return jnp.stack([params * mix] * 3, axis=1)

    return apply


def model(channels=1, params=0.5, **fields):
    return FrozenStems(
        names=NAMES, sample_rate=RATE, channels=channels, samples=1024, hop=HOP, per_track=True,
        estimate=shrinking, params=jnp.asarray(params), **fields,
    )  # fmt: skip


def separator(channels=1):
    return FrozenSeparator(
        names=NAMES, sample_rate=RATE, channels=channels, samples=1024, hop=HOP, apply=thirds,
        params=jnp.asarray(1 / 3),
    )  # fmt: skip


def tone(samples, channels, rate, hz=300.0):
    time = np.arange(samples)[:, None] / rate
    return (0.4 * np.sin(2 * np.pi * hz * time + np.arange(channels))).astype(np.float32)


@pytest.fixture
def song(tmp_path):
    """Writes a file of some rate, channels and samples; gives its path."""

    def write(rate, channels, samples, name="song"):
        path = tmp_path / f"{name}.wav"
        io.write(path, tone(samples, channels, rate), rate, subtype="FLOAT")
        return path

    return write


@pytest.mark.parametrize(
    ("rate", "channels", "samples", "own"),
    [(8000, 1, 3000, 1), (11025, 2, 5001, 1), (6000, 1, 2000, 2), (44100, 2, 1, 1)],
)
def test_stems_fit_the_song_and_sum_to_it(song, tmp_path, rate, channels, samples, own):
    mix, out = song(rate, channels, samples), tmp_path / "out"
    paths = tracks.separate(model(own), mix, out, seed=0, changes=FEW, exact_sum=True)
    assert [path.name for path in paths] == ["bass.wav", "drums.wav", "piano.wav"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["stems.png", *(path.name for path in paths)]
    )
    about = io.info(paths[0])
    assert (about.sample_rate, about.channels, about.samples) == (rate, channels, samples)
    # Three float32 additions of values below 1.
    total = sum(io.read(path) for path in paths)
    np.testing.assert_allclose(total, io.read(mix), atol=1e-6)


def test_without_exact_sums_stems_are_the_models(song, tmp_path):
    """Thirds of the mix as the model hears it, at its own rate and back."""
    mix = song(11025, 2, 5001)
    for path in tracks.separate(separator(), mix, tmp_path / "out", seed=0):
        heard = resample(io.read(mix, sample_rate=RATE, channels=1), RATE, 11025)[:5001]
        np.testing.assert_allclose(io.read(path), np.repeat(heard / 3, 2, axis=1), atol=1e-5)


def test_a_long_song_is_read_in_parts(song, tmp_path, monkeypatch):
    mix, read, lengths = song(8000, 1, 20_000), io.read, []

    def watched(source, **crop):
        audio = read(source, **crop)
        lengths.append(len(audio))
        return audio

    monkeypatch.setattr(io, "read", watched)
    monkeypatch.setattr(tracks, "draw", lambda *args: None)
    tracks.separate(separator(), mix, tmp_path / "out", seed=0, exact_sum=True)
    assert max(lengths) == 1024 and len(lengths) > 40


def test_stems_that_go_with_others(song, tmp_path):
    bass = song(11025, 2, 5001, "bass")
    drums = song(8000, 1, 700, "drums")
    out = tmp_path / "out"
    settings = dict(seed=0, changes=FEW)
    paths = tracks.arrange(model(), [bass, drums], ["piano"], out, **settings)
    assert [path.name for path in paths] == ["piano.wav", "mix.wav"]
    assert (out / "stems.png").stat().st_size > 5000
    piano, mix = (io.read(path) for path in paths)
    given = io.read(bass, sample_rate=RATE, channels=1)
    assert piano.shape == mix.shape == given.shape == (3629, 1) and piano.any()
    given[:700] += io.read(drums)
    np.testing.assert_allclose(mix, given + piano, atol=1e-6)
    # From nothing, and longer than what is given.
    paths = tracks.arrange(model(), [], NAMES, out, duration=0.2, **settings)
    assert [io.info(path).samples for path in paths] == [1600] * 4
    paths = tracks.arrange(model(), [drums], ["bass"], out, duration=0.2, **settings)
    assert [io.info(path).samples for path in paths] == [1600] * 2


def test_what_diverges_leaves_nothing(song, tmp_path):
    with pytest.raises(UserError, match="diverged"):
        tracks.separate(
            model(params=np.nan), song(8000, 1, 3000), tmp_path / "out", seed=0, changes=FEW
        )
    assert not list((tmp_path / "out").iterdir())


def test_bad_requests_give_one_line(song, tmp_path):
    bass, other = song(8000, 1, 100, "bass"), song(8000, 1, 100, "oboe")
    out = tmp_path / "out"
    for call, message in (
        (lambda: tracks.arrange(model(), [other], ["piano"], out, seed=0), "bass, drums, piano"),
        (lambda: tracks.arrange(model(), [bass], ["oboe"], out, seed=0), "bass, drums, piano"),
        (lambda: tracks.arrange(model(), [], ["bass"], out, seed=0), "--duration"),
        (
            lambda: tracks.arrange(model(), [tmp_path / "drums.wav"], ["bass"], out, seed=0),
            "no such",
        ),
        (lambda: tracks.separate(separator(), bass, out, seed=0, changes=FEW), "separator"),
        (lambda: tracks.separate(model(), bass, out, seed=0, derived="oboe"), "--derived=oboe"),
        (lambda: tracks.separate(separator(), bass, out, seed=0, kind="dirac"), "no dirac"),
        (lambda: tracks.separate(model(), bass, out, seed=0, kind="track"), "dirac or gaussian"),
        (lambda: tracks.arrange(model(), [bass], ["drums"], out, seed=0, chords="0:C"), "--chords"),
        (lambda: tracks.drawing(separator()), "separator"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert not out.exists()


def test_likelihoods_by_name():
    assert tracks.likelihood("dirac", "", NAMES) == Dirac(0)
    assert tracks.likelihood("dirac", "piano", NAMES) == Dirac(2)
    assert tracks.likelihood("dirac", "average", NAMES) == Dirac(None)
    assert tracks.likelihood("gaussian", "", NAMES) == Gaussian()
    assert tracks.likelihood("track", "", NAMES) == Track()


def test_few_steps_have_the_noise_of_many_in_each():
    few = tracks.separation(model(), changes=dict(steps=30))[0]["sampling"]
    assert (few.steps, few.churn) == (30, 4.0)  # MSDM's 20 of 150
    told = tracks.separation(model(), changes=dict(steps=30, churn=20.0))[0]["sampling"]
    assert told.churn == 20.0


def test_a_model_that_reads_the_mix_does_so_by_default():
    alone, reading = model(), model(beside_mix=True)
    assert tracks.separation(alone)[0]["likelihood"] == Dirac(0)
    assert tracks.separation(reading)[0]["likelihood"] == Track()
    assert tracks.separation(reading, "dirac")[0]["likelihood"] == Dirac(0)
    assert tracks.likelihoods(alone) == ("dirac", "gaussian")


def test_progress_counts_the_steps_of_all_runs(song, tmp_path, monkeypatch):
    bars = []

    class Watched(tracks.Progress):
        def __enter__(self):
            bars.append(self)
            return super().__enter__()

    monkeypatch.setattr(tracks, "Progress", Watched)
    monkeypatch.setattr(tracks, "draw", lambda *args: None)
    mix, bass = song(8000, 1, 5000), song(8000, 1, 5000, "bass")
    tracks.separate(separator(), mix, tmp_path / "out", seed=0)
    tracks.separate(model(), mix, tmp_path / "out", seed=0, changes=FEW)
    tracks.arrange(model(), [bass], ["drums"], tmp_path / "out", seed=0, changes=FEW)
    # Windows of 1024 samples: of 768 more each, seven, four at once; of 512 more each, nine.
    assert [bar.total for bar in bars] == [2, 2 * 3, 9 * 3]
    assert [bar.done for bar in bars] == [bar.total for bar in bars]
