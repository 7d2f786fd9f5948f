"""What is in a prepared dataset: a table, a page of pictures, a few sounds.

Counts and hours come from the build's report; levels are measured on one crop of each of a number
of records, spread evenly over the split. Scores are played as the loader plays them.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgen import plot
from mgen.audio import io, loudness
from mgen.errors import UserError
from mgen.inputs.record import OFFSET, ONSET, STEM, Record
from mgen.inputs.records import dataset_folder, open_records
from mgen.inputs.render import RenderConfig, render
from mgen.progress import track

REPORT_FILE = "build_report.json"
SILENCE_DB = -60.0  # dB of full scale; a frame of lower RMS is silent
FRAME_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure and to write.

    Attributes:
      records: at most this many records of each split are measured.
      seconds: s, length of the crops, and of the examples.
      sample_rate: Hz at which crops are rendered or read.
      examples: pieces on the page and as WAV files.
      seed: of the renderer.
      splits: names, in the order of the examples; () stands for all.
    """

    records: int = 100
    seconds: float = 10.0
    sample_rate: int = 22050
    examples: int = 3
    seed: int = 0
    splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("records", "seconds", "sample_rate", "examples"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name}={getattr(self, name)}: expected more than 0")


@dataclasses.dataclass(frozen=True)
class Crop:
    """A crop of a record: float32 [T, C] a stem, bool [S], notes [N, 5] from its start."""

    record: Record
    stems: list[np.ndarray]
    mask: np.ndarray
    notes: np.ndarray

    @property
    def mix(self) -> np.ndarray:
        return np.sum(self.stems, axis=0)


@dataclasses.dataclass(frozen=True)
class Levels:
    """Measurements of one crop: LUFS of the mix, and of each stem LUFS, share of silent frames (NaN
    where missing), notes.
    """

    seconds: float
    mix: float
    stems: np.ndarray
    silence: np.ndarray
    notes: np.ndarray


def read_report(folder: Path) -> dict[str, Any]:
    """The report that the builder left beside its records; `UserError` where there is none."""
    path = folder / REPORT_FILE
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: expected the report of prepare_data ({error})") from error


def inspect(folder: str | Path, out: str | Path, options: Options) -> None:
    """Prints the tables of a prepared dataset and writes `page.png` and WAV files to `out`."""
    from rich.console import Console

    folder = dataset_folder(folder)
    report = read_report(folder)
    if Path(out).is_file():
        raise UserError(f"--out={out}: a file, expected a folder")
    levels: dict[str, list[Levels]] = {}
    examples: list[Crop] = []
    names: list[str] = []
    for split in options.splits or report["splits"]:
        records = open_records(folder, split)
        count = min(options.records, len(records))
        levels[split] = []
        for place in track(range(count), f"measuring {split}", unit="records"):
            record = records[place * len(records) // count]
            crop = read_crop(record, options)
            names = names or record.stem_names
            levels[split].append(measure(crop, options.sample_rate))
            if len(examples) < options.examples:
                examples.append(crop)
    console = Console()
    console.print(split_table(report, levels))
    console.print(stem_table(names, [found for split in levels.values() for found in split]))
    console.print("licences: " + _shares(report["licences"]))
    console.print("collections: " + _shares(report["collections"]))
    for path in write_examples(out, examples, options):
        console.print(f"wrote {path}")


def read_crop(record: Record, options: Options) -> Crop:
    """The middle `options.seconds` of a record, or all of a shorter one."""
    seconds = min(options.seconds, record.duration)
    start = (record.duration - seconds) / 2
    if record.is_score:
        config = RenderConfig(sample_rate=options.sample_rate)
        played = render(record, start=start, duration=seconds, seed=options.seed, config=config)
        return Crop(record, list(played.stems), played.stem_mask, played.notes)
    silence = np.zeros((round(seconds * options.sample_rate), record.channels), np.float32)
    stems = [
        io.read(flac, start=start, duration=seconds, sample_rate=options.sample_rate)
        if flac
        else silence
        for flac in record.audio
    ]
    notes = record.notes[
        (record.notes[:, ONSET] < start + seconds) & (record.notes[:, OFFSET] > start)
    ].copy()
    notes[:, [ONSET, OFFSET]] = np.clip(notes[:, [ONSET, OFFSET]] - start, 0, seconds)
    return Crop(record, stems, record.stem_mask, notes)


def measure(crop: Crop, sample_rate: int) -> Levels:
    """Loudness, silence and notes of a crop."""
    lufs = [loudness.integrated_loudness(stem, sample_rate) for stem in crop.stems]
    silence = [silence_share(stem, sample_rate) for stem in crop.stems]
    missing = ~np.asarray(crop.mask, bool)
    return Levels(
        seconds=len(crop.stems[0]) / sample_rate,
        mix=loudness.integrated_loudness(crop.mix, sample_rate),
        stems=np.where(missing, np.nan, lufs),
        silence=np.where(missing, np.nan, silence),
        notes=np.bincount(crop.notes[:, STEM].astype(int), minlength=len(crop.stems)),
    )


def silence_share(audio: np.ndarray, sample_rate: int) -> float:
    """Share of frames of 50 ms whose RMS lies under -60 dB of full scale; audio [T, C]."""
    frame = min(round(FRAME_SECONDS * sample_rate), len(audio))
    frames = audio[: len(audio) // frame * frame].reshape(-1, frame * audio.shape[1])
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return float((power < 10 ** (SILENCE_DB / 10)).mean())


def split_table(report: dict[str, Any], levels: dict[str, list[Levels]]) -> Any:
    """A row a split: pieces and hours of all, levels of those measured."""
    from rich.table import Table

    columns = ("split", "pieces", "hours", "stems", "notes/min", "loudness LUFS", "silence")
    table = Table(*columns, title=report["dataset"])
    for split, found in levels.items():
        counts = report["splits"][split]
        minutes = sum(x.seconds for x in found) / 60
        table.add_row(
            split,
            str(counts["pieces"]),
            f"{counts['hours']:.2f}",
            f"{np.mean([np.isfinite(x.silence).sum() for x in found]):.1f}",
            f"{sum(x.notes.sum() for x in found) / minutes:.0f}",
            _mean_lufs(np.array([x.mix for x in found])),
            _share(np.concatenate([x.silence for x in found])),
        )
    return table


def stem_table(names: Sequence[str], levels: Sequence[Levels]) -> Any:
    """A row a stem, over all splits."""
    from rich.table import Table

    columns = ("stem", "present", "notes/min", "loudness LUFS", "silence")
    table = Table(*columns, title=f"stems, in {len(levels)} crops")
    minutes = sum(x.seconds for x in levels) / 60
    for index, name in enumerate(names):
        silence = np.array([x.silence[index] for x in levels])
        table.add_row(
            name,
            f"{np.isfinite(silence).mean():.0%}",
            f"{sum(x.notes[index] for x in levels) / minutes:.0f}",
            _mean_lufs(np.array([x.stems[index] for x in levels])),
            _share(silence),
        )
    return table


def write_examples(out: str | Path, examples: Sequence[Crop], options: Options) -> list[Path]:
    """Writes `page.png`, the mix of each example, and the stems of the first."""
    out = Path(out)
    rate = options.sample_rate
    stems: list[np.ndarray] = []
    names: list[str] = []
    tables: list[np.ndarray] = []
    for number, crop in enumerate(examples):
        notes = crop.notes.copy()
        notes[:, STEM] += len(stems)
        tables.append(notes)
        stems += crop.stems
        names += [f"{number} {name}" for name in crop.record.stem_names]
    table = np.concatenate(tables)
    titles = "   ".join(f"{number}: {crop.record.id}" for number, crop in enumerate(examples))
    page = out / "page.png"
    plot.stems_page(page, stems, names, rate, table if len(table) else None, titles)
    sounds = {f"{number}_mix": crop.mix for number, crop in enumerate(examples)}
    first = examples[0]
    if len(first.stems) > 1:
        for name, stem in zip(first.record.stem_names, first.stems, strict=True):
            sounds[f"0_{name}"] = stem
    paths = [page]
    for name, audio in sounds.items():
        paths.append(out / f"{name}.wav")
        # A sum of recorded stems may pass full scale, which only a file of floats holds.
        subtype = "PCM_16" if loudness.peak(audio) <= 1 else "FLOAT"
        io.write(paths[-1], audio, rate, subtype)
    return paths


def _mean_lufs(lufs: np.ndarray) -> str:
    heard = lufs[np.isfinite(lufs)]
    return f"{heard.mean():.1f} ± {heard.std():.1f}" if len(heard) else "silent"


def _share(values: np.ndarray) -> str:
    present = values[np.isfinite(values)]
    return f"{present.mean():.1%}" if len(present) else "-"


def _shares(groups: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{name or 'unknown'} {counts['pieces']} pieces, {counts['hours']:.2f} h"
        for name, counts in groups.items()
    )
