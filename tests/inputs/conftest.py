"""Small prepared datasets: scores in four slots, and FLAC recordings of sines."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mgen.inputs.record import DRUM_KIT, Record

SLOTS = ["bass", "drums", "guitar", "piano"]
RECORDING_RATE = 22050


def score(index: int, seconds: float = 12.0, *, drop: int | None = None) -> Record:
    """A piece in 4/4 at 120: a note every half beat in every slot that is there."""
    rng = np.random.default_rng(index)
    rows = []
    for stem, centre in enumerate((40, 0, 55, 67)):
        if stem == drop:
            continue
        onsets = np.arange(0, seconds - 0.5, 0.25 if stem else 0.5)
        pitches = centre + rng.choice([0, 2, 4, 5, 7, 9, 11], len(onsets))
        if stem == 1:
            pitches = rng.choice([36, 38, 42], len(onsets))
        velocities = rng.integers(70, 110, len(onsets))
        lengths = rng.choice([0.2, 0.45], len(onsets))
        columns = (onsets, onsets + lengths, pitches, velocities, np.full(len(onsets), stem))
        rows.append(np.stack(columns, 1))
    notes = np.concatenate(rows).astype(np.float32)
    notes = notes[np.lexsort((notes[:, 2], notes[:, 4], notes[:, 0]))]
    times = np.arange(0, seconds, 2, dtype=np.float32)
    return Record(
        id=f"score/{index}",
        stem_names=SLOTS,
        stem_mask=np.arange(4) != (-1 if drop is None else drop),
        programs=np.array([33, DRUM_KIT, 25, 0], np.int32),
        duration=seconds,
        collection="tests",
        licence="CC0-1.0",
        key="G major",
        notes=notes,
        tempi=np.array([[0, 120]], np.float32),
        metres=np.array([[0, 4, 4]], np.float32),
        beats=np.arange(0, seconds, 0.5, dtype=np.float32),
        downbeats=times,
        chord_times=times,
        chords=[("G:maj", "D:min7/b3", "N", "Bb:7")[i % 4] for i in range(len(times))],
    )


def recording(index: int, seconds: float = 4.0, channels: int = 1) -> Record:
    """Four stems of sines, each of its own frequency in each piece; the last one is missing."""
    time = np.arange(round(seconds * RECORDING_RATE)) / RECORDING_RATE
    audio = []
    for stem in range(3):
        wave = 0.2 * np.sin(2 * np.pi * (200 + 100 * stem + 10 * index) * time)
        wave = np.stack([wave / (1 + channel) for channel in range(channels)], 1)
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, RECORDING_RATE, format="FLAC")
        audio.append(buffer.getvalue())
    return Record(
        id=f"recording/{index}",
        stem_names=SLOTS,
        stem_mask=np.array([True, True, True, False]),
        programs=np.array([33, DRUM_KIT, 25, -1], np.int32),
        duration=seconds,
        audio=[*audio, b""],
        sample_rate=RECORDING_RATE,
        channels=channels,
    )


def write_dataset(folder: Path, splits: dict[str, list[Record]]) -> Path:
    """Prepares a dataset in `folder`; returns the folder with its shards."""
    from mgen.data.record_builder import RecordBuilder

    class Builder(RecordBuilder, skip_registration=True):
        """Records of a test."""

        name = "tiny"
        pkg_dir_path = folder

        def records(self) -> dict[str, list[Record]]:
            return splits

    return Builder.prepare(data_dir=str(folder), workers=1)


@pytest.fixture(scope="session")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = [score(i, drop=3 if i == 2 else None) for i in range(10)]
    folder = tmp_path_factory.mktemp("scores")
    return write_dataset(folder, {"train": train, "validation": [score(i) for i in range(90, 95)]})


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    train = [recording(i, channels=1 + i % 2) for i in range(6)]
    return write_dataset(folder, {"train": train, "validation": [recording(i) for i in (7, 8)]})


@pytest.fixture(scope="session")
def make_score() -> Callable[..., Record]:
    return score


@pytest.fixture(scope="session")
def make_recording() -> Callable[..., Record]:
    return recording


@pytest.fixture(scope="session")
def write_records() -> Callable[[Path, dict[str, list[Record]]], Path]:
    return write_dataset
