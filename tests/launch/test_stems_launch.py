"""`mgen separate` and `mgen arrange` on models of a few steps."""

import json

import numpy as np
import pytest

from mgen.audio import io

NAMES = ("bass", "drums", "guitar", "piano")
FEW = ("--steps=2", "--churn=0", "--repeats=1")


@pytest.fixture(scope="module")
def train(here, scores, tmp_path_factory):
    """Workdir of a config after one step."""

    def run(config):
        workdir = tmp_path_factory.mktemp("stems") / config
        here(
            "train", f"--config=stems/{config}:smoke", f"--workdir={workdir}",
            f"--config.data.dataset={scores}", "--config.train.steps=1",
        )  # fmt: skip
        return workdir

    return run


@pytest.fixture(scope="module")
def workdir(train):
    return train("tiny_msdm")


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    """A stereo file at another rate than the models', a little longer than a window."""
    path = tmp_path_factory.mktemp("song") / "song.wav"
    audio = 0.3 * np.random.default_rng(0).standard_normal((14_000, 2))
    io.write(path, audio.clip(-1, 1), 44100)
    return path


def fails(done, *words):
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert all(str(word) in lines[0] for word in words), lines[0]


def separate(here, workdir, song, out, *more, **options):
    return here(
        "separate", f"--workdir={workdir}", f"--mix={song}", f"--out={out}", *more, **options
    )


def test_a_mix_becomes_files_that_sum_to_it(here, workdir, song, tmp_path):
    out = tmp_path / "out"
    done = separate(here, workdir, song, out, "--likelihood=gaussian", "--exact_sum", *FEW)
    assert "s of audio a second" in done.stdout
    expected = {f"{name}.wav" for name in NAMES} | {"stems.png", "stems.json"}
    assert {path.name for path in out.iterdir()} == expected
    total = sum(io.read(out / f"{name}.wav") for name in NAMES)
    np.testing.assert_allclose(total, io.read(song), atol=1e-4)
    about = json.loads((out / "stems.json").read_text())
    assert about["steps"] == 2 and about["seed"] == 0 and len(about["models"]) == 1


def test_a_separator_takes_the_same_flags(here, train, song, tmp_path):
    separate(here, train("tiny_separator"), song, tmp_path / "out", "--exact_sum")
    total = sum(io.read(tmp_path / "out" / f"{name}.wav") for name in NAMES)
    np.testing.assert_allclose(total, io.read(song), atol=1e-4)


def test_stems_are_made_for_others(here, workdir, song, tmp_path):
    for name in ("bass", "drums"):
        io.write(tmp_path / f"{name}.wav", io.read(song), 44100)
    given = f"--given={tmp_path}/bass.wav,{tmp_path}/drums.wav"
    common = ("arrange", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", *FEW)
    here(*common, given, "--generate=piano,guitar")
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"piano.wav", "guitar.wav", "mix.wav", "stems.png", "stems.json"}
    assert io.info(tmp_path / "out" / "piano.wav").samples == round(14_000 * 16000 / 44100)
    fails(here(*common, given, "--generate=oboe", check=False), "oboe", *NAMES)
    wrong = tmp_path / "violin.wav"
    io.write(wrong, io.read(song), 44100)
    fails(here(*common, f"--given={wrong}", "--generate=bass", check=False), "violin", *NAMES)


def test_a_model_over_latents_takes_mixes_apart_and_is_told_chords(here, scores, song, tmp_path):
    data, codec, scale = f"--config.data.dataset={scores}", tmp_path / "vae", tmp_path / "scale"
    one = ("--config.train.steps=1",)
    here("train", "--config=codec/tiny_vae:smoke", f"--workdir={codec}", data, *one)
    here(
        "measure_latents",
        f"--codec={codec}",
        f"--dataset={scores}",
        f"--out={scale}",
        "--seconds=4",
    )
    given = (f"--config.latents.codec={codec}", f"--config.latents.scale={scale}")
    workdir = tmp_path / "latent"
    here("train", "--config=stems/tiny_latent:smoke", f"--workdir={workdir}", data, *given, *one)
    for likelihood in ("decoder", "track"):
        out = tmp_path / likelihood
        separate(here, workdir, song, out, f"--likelihood={likelihood}", "--steps=2", "--exact_sum")
        total = sum(io.read(out / f"{name}.wav") for name in NAMES)
        np.testing.assert_allclose(total, io.read(song), atol=1e-4)
    fails(
        separate(here, workdir, song, tmp_path / "no", "--likelihood=dirac", check=False), "dirac"
    )
    io.write(tmp_path / "bass.wav", io.read(song), 44100)
    arrange = ("arrange", f"--workdir={workdir}", "--steps=2", "--generate=piano")
    here(*arrange, f"--given={tmp_path}/bass.wav", "--chords=0:C; 0.1:A:min", f"--out={tmp_path}/a")
    assert io.info(tmp_path / "a" / "piano.wav").samples == round(14_000 * 16000 / 44100)
    here(*arrange, "--duration=0.3", f"--out={tmp_path}/b")
    assert io.info(tmp_path / "b" / "piano.wav").samples == 4800
    wrong = here(*arrange, "--duration=1", "--chords=soon", f"--out={tmp_path}/c", check=False)
    fails(wrong, "SECOND:CHORD")


def test_bad_input(here, workdir, song, tmp_path):
    out = tmp_path / "out"
    broken = tmp_path / "broken.wav"
    broken.write_bytes(song.read_bytes()[:1000])
    for mix, words in (
        (tmp_path / "no.wav", ["no.wav", "no such file"]),
        (broken, ["broken.wav", "truncated"]),
        (tmp_path, ["directory"]),
    ):
        fails(separate(here, workdir, mix, out, *FEW, check=False), *words)
    fails(separate(here, tmp_path, song, out, check=False), "manifest.json")
    fails(separate(here, workdir, song, out, "--derived=oboe", check=False), "oboe", *NAMES)
    fails(separate(here, workdir, song, out, "--sampler=oiler", check=False), "oiler", "euler")
    fails(separate(here, f"{workdir},{workdir}", song, out, check=False), "expected one stem")
    assert not out.exists()
