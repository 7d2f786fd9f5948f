"""Input pipeline: crops of 2 s x 4 stems a second, rendered from scores and read from FLAC.

The peer is torch's `DataLoader` with the same number of workers, batch size and batches ahead:
  - rendered: around the same render function, since there is no released loader that plays scores
    (the ratio is that of the loaders; the figure that counts is crops a second);
  - recorded: a `Dataset` that reads the same stems, one FLAC file each, by soundfile's seek and
    read; what is usually written by hand for Slakh2100 or MUSDB18.
Times alternate between the two in rounds, the best round of each counts.
"""

import dataclasses
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mgen.errors import UserError
from mgen.inputs import examples, pipeline, render
from mgen.inputs.record import DRUM_KIT, Record

SECONDS, STEMS, BATCH, WORKERS, AHEAD = 2.0, 4, 8, 2, 2
SCORES, RECORDINGS, SEGMENT = 48, 12, 30.0  # pieces, segments, s a segment
RENDER_RATE, FLAC_RATE = 16000, 44100  # Hz
ROUNDS, ROUND_SECONDS = 3, 1.2
SLOTS = ["bass", "drums", "guitar", "piano"]


def run() -> list[dict[str, Any]]:
    """Rows of the suite; prints where the time of a rendered crop goes."""
    try:
        import torch.utils.data  # noqa: F401
    except ImportError as error:
        raise UserError(
            "suite inputs: the peer is torch's DataLoader; pip install 'mgen[parity]'"
        ) from error
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scores = prepare(folder / "scores", [score(i) for i in range(SCORES)])
        _print_breakdown(scores)  # before the rows, which would leave the very notes in the cache
        recordings = prepare(folder / "recordings", [_recording(i) for i in range(RECORDINGS)])
        files = _write_flac_files(folder / "files", recordings)
        config = _config(scores, RENDER_RATE)
        for workers in (0, WORKERS):
            case = f"rendered, {RENDER_RATE / 1000:g} kHz, {_workers(workers)}"
            dataset = _PeerDataset(_example_function(config), SCORES)
            rows.append(_row(case, config, dataset, workers))
        config = _config(recordings, FLAC_RATE)
        for workers in (0, WORKERS):
            case = f"FLAC stems, {FLAC_RATE / 1000:g} kHz, {_workers(workers)}"
            dataset = _PeerDataset(_FlacReader(files), RECORDINGS)
            rows.append(_row(case, config, dataset, workers))
    return rows


def _row(case: str, config: Any, dataset: "_PeerDataset", workers: int) -> dict[str, Any]:
    from torch.utils.data import DataLoader

    config = config.copy_and_resolve_references()
    config.workers = workers
    ours = pipeline.make_iterator(config, split="train", seed=0, train=True)
    options: dict[str, Any] = {"prefetch_factor": AHEAD} if workers else {}
    peer = iter(DataLoader(dataset, batch_size=BATCH, num_workers=workers, **options))
    try:
        speeds = _alternate([ours, peer], made_ahead=AHEAD * max(1, workers))
    finally:
        ours.close()
        del peer
    return {
        "suite": "inputs",
        "case": case,
        "unit": "crops/s",
        "ours": speeds[0],
        "peer": speeds[1],
        "ratio": speeds[0] / speeds[1],
    }


def _alternate(iterators: list[Iterator[Any]], made_ahead: int) -> list[float]:
    """Crops a second of each iterator, the best of the rounds."""
    best = [0.0] * len(iterators)
    for iterator in iterators:
        for _ in range(4):  # workers start, caches fill
            next(iterator)
    for _ in range(ROUNDS):
        for number, iterator in enumerate(iterators):
            # What was made ahead while the other one ran does not count.
            for _ in range(made_ahead + 1):
                next(iterator)
            begin, batches = time.perf_counter(), 0
            while time.perf_counter() - begin < ROUND_SECONDS:
                next(iterator)
                batches += 1
            speed = batches * BATCH / (time.perf_counter() - begin)
            best[number] = max(best[number], speed)
    return best


class _PeerDataset:
    """Endless for the timing: item g is `function(g, (0, g % pieces))`."""

    def __init__(self, function: Callable[[int, tuple[int, int]], Any], pieces: int):
        self.function = function
        self.pieces = pieces

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, g: int) -> Any:
        return self.function(g, (0, g % self.pieces))


class _FlacReader:
    """Reads a random crop of the four stem files of a segment."""

    def __init__(self, files: list[list[Path]]):
        self.files = files

    def __call__(self, g: int, pair: tuple[int, int]) -> dict[str, np.ndarray]:
        import soundfile

        length = round(SECONDS * FLAC_RATE)
        start = int(np.random.default_rng([0, g]).integers(SEGMENT * FLAC_RATE - length))
        stems = []
        for path in self.files[pair[1]]:
            with soundfile.SoundFile(path) as file:
                file.seek(start)
                stems.append(file.read(length, dtype="float32", always_2d=True))
        stacked = np.stack(stems)
        return {"stems": stacked, "mix": stacked.sum(0)}


def _print_breakdown(scores: Path, crops: int = 96, rate: int = RENDER_RATE) -> None:
    """CPU milliseconds of the parts of a rendered crop, one after another in this process."""
    source = pipeline.open_records(scores, "train")
    config = render.RenderConfig(sample_rate=rate)
    indices = [g % SCORES for g in range(crops)]
    # The steady state of a training: instruments measured, notes kept from performances before.
    for number, index in enumerate([*indices, *indices]):
        before = render.perform(source[index], seed=crops + number, config=config)
        render.render_crop(before, start=20.0, duration=SECONDS)
    for seed, index in enumerate(indices):
        render.perform(source[index], seed=seed, config=config)

    def timed(function: Callable[..., Any], *columns: list[Any]) -> tuple[float, list[Any]]:
        begin = time.process_time()
        results = [function(*row) for row in zip(*columns)]
        return (time.process_time() - begin) / crops * 1e3, results

    def crop(performance: render.Performance) -> np.ndarray:
        return render.render_crop(performance, start=20.0, duration=SECONDS).stems

    decode, records = timed(source.__getitem__, indices)
    vary, performances = timed(
        lambda record, seed: render.perform(record, seed=seed, config=config),
        records,
        list(range(crops)),
    )
    without = dataclasses.replace(config, reverb=False)
    dry = [dataclasses.replace(performance, config=without) for performance in performances]
    cold, _ = timed(crop, dry)
    warm, _ = timed(crop, dry)
    whole, stems = timed(crop, performances)
    batch, _ = timed(np.stack, [stems[i : i + BATCH] for i in range(0, crops, BATCH)])
    parts = {
        "decode the record": decode,
        "draw the variations, gain": vary,
        "synthesise new notes": cold - warm,
        "place the notes, labels": warm,
        "reverberation": whole - warm,
        "stack the batch": batch,
    }
    print(f"\nWhere the time of a rendered crop goes ({rate / 1000:g} kHz, CPU ms in one process):")
    for part, milliseconds in parts.items():
        print(f"  {part:28}{milliseconds:6.2f}")
    print(f"  {'all':28}{sum(parts.values()):6.2f}\n")


def _config(folder: Path, rate: int) -> Any:
    return pipeline.default_config(
        dataset=str(folder),
        view="stems",
        sample_rate=rate,
        seconds=SECONDS,
        batch_size=BATCH,
        min_loudness=-200.0,  # each crop is drawn once, as the peer does
        prefetch=AHEAD,
    )


def _example_function(config: Any) -> examples.AudioExample:
    source = pipeline.open_records(config.dataset, "train")
    return examples.AudioExample([source], config.to_dict(), seed=0, train=True)


def _workers(count: int) -> str:
    return f"{count} workers" if count else "in process"


def score(index: int, seconds: float = 60.0) -> Record:
    """A minute in 4/4: chords on the piano, patterns on the guitar, bass and drums, 13 notes/s."""
    rng = np.random.default_rng(index)
    rows = []
    for beat in range(round(seconds * 2) - 2):
        time_, root = beat / 2, int(rng.choice([0, 5, 7, 9]))
        rows.append((time_, time_ + 0.45, 33 + root, 90, 0))
        rows += [(time_ + half / 4, time_ + half / 4 + 0.1, 42, 70, 1) for half in range(2)]
        rows.append((time_, time_ + 0.1, 38 if beat % 2 else 36, 100, 1))
        rows += [(time_ + 0.25, time_ + 0.5, 52 + root + i, 80, 2) for i in (0, 7)]
        if beat % 4 == 0:
            rows += [(time_, time_ + 1.9, 60 + root + i, 75, 3) for i in (0, 4, 7)]
    notes = np.array(sorted(rows, key=lambda row: (row[0], row[4], row[2])), np.float32)
    return Record(
        id=f"score/{index}",
        stem_names=SLOTS,
        stem_mask=np.ones(STEMS, bool),
        programs=np.array([33, DRUM_KIT, 25, 0], np.int32),
        duration=seconds,
        notes=notes,
        beats=np.arange(0, seconds, 0.5, dtype=np.float32),
        downbeats=np.arange(0, seconds, 2, dtype=np.float32),
    )


def _recording(index: int) -> Record:
    """A segment of four stems: a sine each, with noise 20 dB below (FLAC at a music's bit rate)."""
    import soundfile

    rng = np.random.default_rng(index)
    time_ = np.arange(round(SEGMENT * FLAC_RATE)) / FLAC_RATE
    audio = []
    for _ in range(STEMS):
        wave = 0.2 * np.sin(2 * np.pi * rng.uniform(100, 2000) * time_)
        wave += 0.02 * rng.standard_normal(len(time_))
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, FLAC_RATE, format="FLAC")
        audio.append(buffer.getvalue())
    return Record(
        id=f"recording/{index}",
        stem_names=SLOTS,
        stem_mask=np.ones(STEMS, bool),
        programs=np.full(STEMS, -1, np.int32),
        duration=SEGMENT,
        audio=audio,
        sample_rate=FLAC_RATE,
        channels=1,
    )


def prepare(folder: Path, records: list[Record]) -> Path:
    from mgen.data.record_builder import RecordBuilder

    class Builder(RecordBuilder, skip_registration=True):
        """Records of the benchmark."""

        name = "benchmark"
        pkg_dir_path = folder

        def records(self) -> dict[str, list[Record]]:
            return {"train": records}

    return Builder.prepare(data_dir=str(folder), workers=1)


def _write_flac_files(folder: Path, recordings: Path) -> list[list[Path]]:
    source = pipeline.open_records(recordings, "train")
    files = []
    for index in range(len(source)):
        paths = [folder / str(index) / f"{name}.flac" for name in SLOTS]
        paths[0].parent.mkdir(parents=True)
        for path, data in zip(paths, source[index].audio):
            path.write_bytes(data)
        files.append(paths)
    return files
