"""inspect_data on recordings and on scores: its figures against what was put in, its files, its
errors.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mgen.audio import io, loudness
from mgen.data.corpus_scores.corpus_scores_dataset_builder import Builder as Scores
from mgen.data.folder_stems.folder_stems_dataset_builder import Builder as FolderStems
from mgen.errors import UserError
from mgen.inputs import inspect
from mgen.inputs.record import Record

RATE = 8000
SCRIPT = Path(__file__).parents[2] / "launch" / "inspect_data.py"


def tone(amplitude: float, seconds: float = 4.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (amplitude * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Four songs: a tone that sounds for three quarters of the time, and in two of them a steady
    one.
    """
    root = tmp_path_factory.mktemp("inspect")
    for index in range(4):
        lead = tone(0.5)
        lead[RATE : 2 * RATE] = 0
        io.write(root / "songs" / f"song{index}" / "lead.wav", lead, RATE)
        if index < 2:
            io.write(root / "songs" / f"song{index}" / "pad.wav", tone(0.25), RATE)
    return FolderStems.prepare(
        source=root / "songs", data_dir=root / "out", workers=1, licence="CC0-1.0"
    )


def test_one_split_alone(dataset, tmp_path, capsys):
    options = inspect.Options(sample_rate=RATE, examples=1, records=1, splits=("test",))
    inspect.inspect(dataset, tmp_path, options)
    printed = capsys.readouterr().out
    assert "│ test" in printed and "│ train" not in printed and "│ validation" not in printed
    unknown = dataclasses.replace(options, splits=("tets",))
    with pytest.raises(UserError, match="tets"):
        inspect.inspect(dataset, tmp_path, unknown)


def test_tables_and_files(dataset, tmp_path, capsys):
    options = inspect.Options(sample_rate=RATE, examples=2, records=10)
    inspect.inspect(dataset, tmp_path, options)
    lines = capsys.readouterr().out.replace("┃", "│").splitlines()
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in lines if "│" in line}
    rows = {name: [cell.strip() for cell in cells] for name, cells in rows.items()}
    assert {"train", "validation", "test"} <= rows.keys()
    assert sum(int(rows[split][0]) for split in ("train", "validation", "test")) == 4
    assert rows["lead"][0] == "100%" and rows["pad"][0] == "50%"
    assert rows["lead"][3] == "25.0%" and rows["pad"][3] == "0.0%"
    # A sine of amplitude 0.25 in one channel: 12.04 + 3.01 dB below full scale, by the K filter 0.6
    # dB less at 440 Hz.
    expected = loudness.integrated_loudness(tone(0.25), RATE)
    assert float(rows["pad"][2].split()[0]) == pytest.approx(expected, abs=0.1)
    assert any(line.startswith("licences: CC0-1.0 4 pieces") for line in lines)
    assert (tmp_path / "page.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    sounds = {path.name for path in tmp_path.glob("*.wav")}
    assert sounds == {"0_mix.wav", "1_mix.wav", "0_lead.wav", "0_pad.wav"}
    mix = io.read(tmp_path / "0_mix.wav")
    stems = io.read(tmp_path / "0_lead.wav") + io.read(tmp_path / "0_pad.wav")
    np.testing.assert_allclose(mix, stems, atol=1e-4)  # three roundings to 16 bits


def test_crop_of_a_recording_is_its_middle():
    audio = np.linspace(0, 0.5, 4 * RATE, dtype=np.float32)[:, None]
    notes = np.array([[0, 1.5, 60, 80, 0], [2.5, 4, 62, 80, 0], [3.5, 4, 64, 80, 0]], np.float32)
    record = Record(
        id="a",
        stem_names=["x", "y"],
        stem_mask=np.array([True, False]),
        programs=np.array([0, -1]),
        duration=4.0,
        notes=notes,
        audio=[io.encode_flac(audio, RATE, bits=24), b""],
        sample_rate=RATE,
        channels=1,
    )
    crop = inspect.read_crop(record, inspect.Options(seconds=2.0, sample_rate=RATE))
    np.testing.assert_allclose(crop.stems[0], audio[RATE : 3 * RATE], atol=1e-6)
    assert crop.stems[1].shape == (2 * RATE, 1) and not crop.stems[1].any()
    np.testing.assert_allclose(crop.notes[:, :3], [[0, 0.5, 60], [1.5, 2, 62]])
    levels = inspect.measure(crop, RATE)
    np.testing.assert_array_equal(levels.notes, [2, 0])
    assert np.isnan(levels.stems[1]) and np.isfinite(levels.stems[0])


def test_the_page_shows_each_note_at_its_own_stem(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        inspect.plot, "stems_page", lambda *page: shown.update(names=page[2], notes=page[4])
    )
    record = Record("a", ["x", "y"], np.ones(2, bool), np.zeros(2, np.int32), 1.0)
    notes = np.array([[0, 1, 60, 80, 1]], np.float32)
    crop = inspect.Crop(record, [tone(0.1, 1.0)[:, None]] * 2, record.stem_mask, notes)
    inspect.write_examples(tmp_path, [crop, crop], inspect.Options(sample_rate=RATE))
    assert shown["names"] == ["0 x", "0 y", "1 x", "1 y"]
    np.testing.assert_array_equal(shown["notes"][:, 4], [1, 3])


def test_silence_share():
    audio = np.zeros((RATE, 2), np.float32)
    assert inspect.silence_share(audio, RATE) == 1.0
    audio[: RATE // 4] = 0.01
    audio[RATE // 2 :] = 0.0005
    assert inspect.silence_share(audio, RATE) == pytest.approx(0.75)
    assert inspect.silence_share(audio[:10], RATE) == 0.0


def test_scores_are_rendered(tmp_path):
    folder = Scores.prepare(data_dir=tmp_path / "data", config="tunes", limit=3, workers=1)
    options = inspect.Options(sample_rate=RATE, seconds=2.0, examples=1, records=1)
    inspect.inspect(folder, tmp_path / "out", options)
    sounds = list((tmp_path / "out").glob("*.wav"))
    assert [path.name for path in sounds] == ["0_mix.wav"]
    assert loudness.peak(io.read(sounds[0])) > 0


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_script_and_its_errors(dataset, tmp_path):
    done = run(f"--dataset={dataset}", f"--out={tmp_path}", "--records=1", "--sample_rate=8000")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.png").is_file()
    done = run(f"--dataset={tmp_path / 'none'}", f"--out={tmp_path}")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "none" in errors[0] and "prepare_data" in errors[0]
    assert "Traceback" not in done.stderr


def test_bad_input(dataset, tmp_path):
    with pytest.raises(UserError, match="--examples=0: expected more than 0"):
        inspect.Options(examples=0)
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "build_report.json").write_text("{")
    with pytest.raises(UserError, match=r"build_report\.json: expected the report"):
        inspect.inspect(tmp_path, tmp_path / "out", inspect.Options())
    (tmp_path / "file").write_text(json.dumps(1))
    with pytest.raises(UserError, match="a file, expected a folder"):
        options = inspect.Options(records=1, sample_rate=RATE)
        inspect.inspect(dataset, tmp_path / "file", options)
