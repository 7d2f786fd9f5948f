"""`launch/prepare_data.py` as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("music21")

SCRIPT = Path(__file__).parents[2] / "launch" / "prepare_data.py"


def run(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_builds_with_two_workers_then_reuses(tmp_path):
    args = ("--dataset=corpus_scores/tunes", f"--out={tmp_path}", "--limit=5", "--workers=2")
    first, second = run(*args), run(*args)
    for done in (first, second):
        assert done.returncode == 0, done.stderr
        path = Path(done.stdout.splitlines()[-1].removeprefix("--config.data.dataset="))
        assert path == tmp_path / "corpus_scores" / "tunes" / "1.0.0"
    assert (path / "dataset_info.json").is_file()
    assert "already built" not in first.stdout and "already built" in second.stdout
    assert "5 pieces" in first.stdout and "licences: music21-corpus 5" in first.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dataset=nope"], "no such dataset, one of corpus_scores"),
        (["--dataset=corpus_scores/nope"], "expected corpus_scores/quartets"),
        (["--dataset=corpus_scores/band", "--midi_dir={tmp}/missing"], "missing is not a folder"),
        (["--dataset=corpus_scores/band", "--midi_dir={tmp}"], "no MIDI files"),
        (["--dataset=corpus_scores/band", "--limit=0"], "--limit=0"),
        (["--dataset=corpus_scores/band", "--nosuch=1"], "nosuch"),
        (["--dataset=corpus_scores/band", "--stems=a"], "stems: corpus_scores has no such option"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, args, message):
    (tmp_path / "readme.txt").write_text("no midi")
    done = run(*(arg.format(tmp=tmp_path) for arg in args), f"--out={tmp_path}/out")
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    done = run("--dataset=corpus_scores/band", f"--out={tmp_path}/out")
    assert done.returncode == 1 and "a file, expected a folder" in done.stderr
