"""Bad input to train, fit_codebook, tokenize, ...: one line, exit code 1."""

import errno
import shutil
import subprocess
import sys

import pytest

from mgen import manifest


def fails(done, *words):
    """The one line of an expected failure holds `words`."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr and "Traceback" not in done.stdout
    for word in words:
        assert str(word) in lines[0], lines[0]


@pytest.fixture(scope="module")
def trained(mgen, scores, tmp_path_factory):
    """Workdir of a codec after one step."""
    workdir = tmp_path_factory.mktemp("trained") / "codec"
    mgen(
        "train", "--config=codec/tiny_16khz:smoke", f"--workdir={workdir}",
        f"--config.data.dataset={scores}", "--config.train.steps=1",
    )  # fmt: skip
    return workdir


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def broken_copy(folder, to, pattern):
    """A copy of `folder` whose files matching `pattern` are cut in half."""
    shutil.copytree(folder, to)
    hit = [path for path in to.rglob(pattern) if path.is_file()]
    assert hit
    for path in hit:
        truncate(path)
    return to


REFUSED = """
import sys
from mgen import cli

def main(argv):
    raise OSError(int(sys.argv.pop()), "It says so", "out/clip.wav")

cli.run(main)
"""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EISDIR])
def test_what_a_file_system_refuses_is_a_line(number):
    command = [sys.executable, "-c", REFUSED, str(number)]
    done = subprocess.run(command, capture_output=True, text=True)
    if number == errno.EISDIR:  # an error of ours
        assert "Traceback" in done.stderr
    else:
        fails(done, "error: out/clip.wav: It says so")


TRAIN = ("train", "--config=codec/tiny_16khz:smoke", "--config.train.steps=1")


def test_train_without_a_dataset(mgen, tmp_path):
    fails(mgen(*TRAIN, f"--workdir={tmp_path / 'w'}", check=False), "data.dataset is empty")
    assert not (tmp_path / "w").exists()


def test_train_on_a_wrong_path_an_empty_folder_a_truncated_file(mgen, scores, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = broken_copy(scores, tmp_path / "broken", "*train.array_record*")
    for dataset, words in (
        (tmp_path / "nowhere", ["nowhere"]),
        (empty, ["empty", "prepare_data"]),
        (broken, ["broken", "train"]),
    ):
        where = (f"--workdir={tmp_path / 'w'}", f"--config.data.dataset={dataset}")
        fails(mgen(*TRAIN, *where, check=False), *words)
        assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("--config.model.sample_rate=8000", ["audio", "expects"]),
        ("--config.model.filterz=8", ["filterz"]),
        ("--config.train.steps=many", ["steps"]),
        ("--config.train.mesh=data=3", ["train.mesh"]),
        ("--config.data.split=train", ["split"]),
        ("--config.data.train_split=trian", ["trian", "train"]),
        ("--config.model.pad_mode=mirror", ["pad_mode", "mirror"]),
    ],
)
def test_train_with_a_wrong_setting(mgen, scores, tmp_path, setting, words):
    where = (f"--workdir={tmp_path / 'w'}", f"--config.data.dataset={scores}")
    fails(mgen(*TRAIN, *where, setting, check=False), *words)


def test_train_a_language_model_on_tokens_of_another_codec(mgen, tmp_path):
    manifest.write(tmp_path / "tokens", {"kind": "tokens", "codebooks": 99, "frame_rate": 50.0})
    where = (f"--workdir={tmp_path / 'w'}", f"--config.data.dataset={tmp_path / 'tokens'}")
    fails(mgen("train", "--config=hierarchy/tiny_musicgen:smoke", *where, check=False), "tokens")


def test_damaged_checkpoint(mgen, trained, tmp_path):
    broken = broken_copy(trained, tmp_path / "broken", "checkpoints/*/state/**/*")
    done = mgen("evaluate", f"--workdir={broken}", check=False)
    fails(done, "broken/checkpoints", "damaged")


def test_evaluate(mgen, trained, tmp_path):
    fails(mgen("evaluate", f"--workdir={tmp_path}", check=False), "manifest.json")
    done = mgen("evaluate", f"--workdir={trained}", "--split=tset", check=False)
    fails(done, "tset", "test")
    done = mgen("evaluate", f"--workdir={trained}", f"--dataset={tmp_path}", check=False)
    fails(done, tmp_path)
    done = mgen("evaluate", f"--workdir={trained}", "--int8", check=False)
    fails(done, "--int8", "'codec'")


def test_tokenize(mgen, trained, scores, tmp_path):
    out = tmp_path / "tokens"
    broken = broken_copy(scores, tmp_path / "broken", "*train.array_record*")
    common = ("tokenize", f"--out={out}")
    for codec, dataset, words in (
        (tmp_path / "no", scores, ["no", "manifest.json"]),
        (trained, tmp_path / "nowhere", ["nowhere"]),
        (trained, tmp_path, [tmp_path]),
        (trained, broken, ["broken"]),
    ):
        fails(mgen(*common, f"--codec={codec}", f"--dataset={dataset}", check=False), *words)
        assert not list(out.glob("*.tfrecord*"))
    fails(mgen(*common, f"--dataset={scores}", check=False), "--codec", "--semantic")
    with_joint = (f"--joint={trained}", f"--dataset={scores}")
    fails(mgen(*common, *with_joint, check=False), "--joint_codebook")
    right = (*common, f"--codec={trained}", f"--dataset={scores}")
    fails(mgen(*right, "--splits=tarin", check=False), "tarin")
    fails(mgen(*right, "--shard_index=2", "--shard_count=2", check=False), "shard_index")
    manifest.write(out, {"kind": "tokens", "parents": {"codec": "another"}})
    fails(mgen(*right, check=False), "parents", "another")


def test_fit_codebook(mgen, trained, scores, tmp_path):
    out = tmp_path / "book"
    common = ("fit_codebook", f"--out={out}", f"--dataset={scores}")
    fails(mgen(*common, check=False), "--encoder", "--features=mel")
    fails(mgen(*common, "--features=mfcc", check=False), "mfcc")
    fails(mgen(*common, f"--encoder={trained}", check=False), "codec", "semantic", "joint")
    assert not out.exists()
    mel = ("--features=mel", "--config=semantic/tiny_muq", "--max_seconds=1")
    fails(mgen(*common, *mel, "--size=100000", check=False), "vectors", "100000")
    assert not list(out.glob("*.safetensors"))


def test_generate(mgen, trained, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    codec = f"--codec={trained}"
    fails(mgen("generate", f"--lm={tmp_path / 'no'}", codec, out, check=False), "manifest.json")
    fails(mgen("generate", f"--lm={trained}", codec, out, check=False), "family", "codec")
    fails(mgen("generate", f"--lm={trained}", codec, out, "--top_p=0", check=False), "top_p")
    fails(mgen("generate", f"--lm={trained}", codec, out, "--n=0", check=False), "n")
    (tmp_path / "file").touch()
    blocked = f"--out={tmp_path / 'file'}"
    fails(mgen("generate", f"--lm={trained}", codec, blocked, check=False), "file")


def test_demo_and_benchmark(mgen, tmp_path):
    (tmp_path / "file").touch()
    fails(mgen("demo", "--smoke", f"--out={tmp_path / 'file'}", check=False), "file")
    fails(mgen("benchmark", "--suite=codek", check=False), "codek", "codec")
