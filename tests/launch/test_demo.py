"""The demo's whole path at smoke size, through the real commands, and what it leaves behind."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import soundfile

from mgen import manifest
from mgen.inputs import tokens


@pytest.fixture(scope="module")
def demo(mgen, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    done = mgen("demo", "--smoke", f"--out={out}")
    return out, done.stdout


@pytest.mark.slow
def test_demo_leaves_clips_and_a_report(demo):
    out, printed = demo
    report = json.loads((out / "report.json").read_text())
    assert set(report) >= {"codec_si_sdr", "codec_mel_distance", "lm_loss", "lm_unigram_loss"}
    assert all(np.isfinite(value) for value in report.values()) and report["generation_speed"] > 0
    assert "codec_si_sdr" in printed
    clips = sorted(out.glob("seed*.wav"))
    assert [clip.stem for clip in clips] == ["seed1", "seed2", "seed3"]
    heard = [soundfile.read(clip)[0] for clip in clips]
    assert all(len(audio) == 16000 and np.isfinite(audio).all() for audio in heard)
    assert not np.array_equal(heard[0], heard[1])
    for clip in clips:
        assert clip.with_suffix(".png").stat().st_size > 5000
    original, reconstruction = (
        soundfile.read(out / f"held_out_{name}.wav")[0] for name in ("target", "reconstruction")
    )
    assert original.shape == reconstruction.shape and not np.array_equal(original, reconstruction)


@pytest.mark.slow
def test_clip_can_be_made_again_from_its_json(demo, mgen, tmp_path):
    out, _ = demo
    about = json.loads((out / "seed2.json").read_text())
    flags = [f"--{name}={about[name]}" for name in ("codec", "n", "duration", "seed", "guidance")]
    mgen("generate", f"--lm={about['lm'][0]}", *flags, f"--out={tmp_path}")
    same = [
        safetensors.numpy.load_file(folder / "seed2.safetensors")["codes"]
        for folder in (out, tmp_path)
    ]
    np.testing.assert_array_equal(*same)


@pytest.mark.slow
def test_clip_goes_on_from_a_prompt(demo, mgen, tmp_path):
    out, _ = demo
    work = out / "work"
    tone = 0.3 * np.sin(np.arange(22050) * 0.06)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], 1), 44100)  # 0.5 s, stereo
    models = [f"--lm={work / 'lm'}", f"--codec={work / 'codec'}"]
    prompt = f"--audio_prompt={tmp_path / 'tone.wav'}"
    for seed in (1, 2):
        mgen("generate", *models, prompt, "--duration=1", f"--seed={seed}", f"--out={tmp_path}")
    first, second = (
        safetensors.numpy.load_file(tmp_path / f"seed{seed}.safetensors")["codes"]
        for seed in (1, 2)
    )
    start = int(0.5 * manifest.read(work / "codec")["frame_rate"])
    np.testing.assert_array_equal(first[:start], second[:start])
    assert not np.array_equal(first[start:], second[start:])


@pytest.mark.slow
def test_demo_runs_again_without_training_again(demo, mgen):
    out, _ = demo
    before = json.loads((out / "report.json").read_text())
    mgen("demo", "--smoke", f"--out={out}")
    after = json.loads((out / "report.json").read_text())
    drop = lambda report: {k: v for k, v in report.items() if k != "generation_speed"}  # noqa: E731
    assert drop(before) == drop(after)


@pytest.mark.slow
def test_tokenizing_by_two_workers_or_after_a_kill_gives_the_same_files(demo, mgen, tmp_path):
    work = demo[0] / "work"
    arguments = [
        "tokenize", f"--codec={work / 'codec'}", f"--dataset={work / 'corpus_scores'}",
        "--splits=train", "--max_seconds=5", "--num_shards=3",
    ]  # fmt: skip
    mgen(*arguments, f"--out={tmp_path / 'one'}")
    for index in (1, 0):
        mgen(*arguments, f"--out={tmp_path / 'two'}", "--shard_count=2", f"--shard_index={index}")
    # A killed extraction leaves whole shards and temporary files: the rest is filled in.
    shutil.copytree(tmp_path / "one", tmp_path / "cut")
    lost = tmp_path / "cut" / tokens.shard_name("train", 1, 3)
    lost.rename(lost.with_name(f".{lost.name}.123"))
    mgen(*arguments, f"--out={tmp_path / 'cut'}")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    # Three shards with their indices, the manifest, what SeqIO's cache has beside.
    assert len(files) == 10
    for name in files:
        expected = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == expected, name
        assert (tmp_path / "cut" / name).read_bytes() == expected, name


@pytest.mark.slow
def test_tokens_of_another_codec_are_refused(demo, mgen, tmp_path):
    work = demo[0] / "work"
    shutil.copytree(work / "lm", tmp_path / "lm")
    about = manifest.read(tmp_path / "lm")
    manifest.write(tmp_path / "lm", about | {"parents": {"codec": "0" * 64}})
    done = mgen(
        "generate", f"--lm={tmp_path / 'lm'}", f"--codec={work / 'codec'}",
        f"--out={tmp_path / 'out'}", check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "trained on tokens of codec 000000000000" in done.stderr
    assert not list((tmp_path / "out").glob("*"))
