"""What the datasets of recordings share: tracks of stem files become segments of at most 30 s.

- A track is cut into the fewest equal segments (to a sample) of at most 30 s, so there is no short
  tail, and the segments laid end to end are the track. A record holds one FLAC a stem.
- Source rate and channels are kept. Where the stems of one track differ, all are brought to the
  highest rate and, if one of them is stereo, to stereo; one that ends early is silent from there.
- Samples are stored as they are, in 16 bits, or 24 where a source has more. Only if a stem (a sum
  of sources, or floating point) passes full scale, all stems of its track are halved until none
  does, in 24 bits: in balance still, and exact but for the bits that 24 cannot hold.
- A track with a file that cannot be read is left out as a whole and named in the report; so is a
  track of silence.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgen.audio import io
from mgen.audio.resample import fit_length, resampled_length
from mgen.data.aligned_midi import AlignedMidi, MidiTrack, read_midi
from mgen.data.corpus_scores import splits
from mgen.data.corpus_scores.catalogue import rank
from mgen.data.record_builder import RecordBuilder
from mgen.errors import UserError
from mgen.inputs.record import DRUM_KIT, Record

SPLITS = splits.SPLITS
BY_HASH = ""  # `Track.split` of a track that no folder assigns
SEGMENT_SECONDS = 30
CAPTIONS_FILE = "captions.jsonl"
MIDI_SUFFIXES = (".mid", ".midi")
# Which stem plays a track of a MIDI file whose name is none of the stems': General MIDI families.
_FAMILIES = {"piano": range(0, 8), "guitar": range(24, 32), "bass": range(32, 40)}


@dataclasses.dataclass(frozen=True)
class Track:
    """A recording as a builder finds it.

    Attributes:
      id: unique in the dataset.
      split: one of `SPLITS`, or `BY_HASH`: 90/5/5, among the tracks that can be read.
      stem_names: S slots.
      sources: for each stem the audio files whose sum it is; none where the stem is missing.
      programs: for each stem, as `Record.programs`.
      midi: (MIDI file, stem it belongs to); stem -1: the file's tracks go to the stems by name or
        General MIDI family. The first file gives tempi, metres and beats.
      captions, collection, licence, title: as in `Record`.
    """

    id: str
    split: str
    stem_names: tuple[str, ...]
    sources: tuple[tuple[Path, ...], ...]
    programs: tuple[int, ...]
    midi: tuple[tuple[Path, int], ...] = ()
    captions: tuple[str, ...] = ()
    collection: str = ""
    licence: str = ""
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a track is stored: Hz, samples, channels, bits, the gain of all stems, and its largest
    sample.
    """

    sample_rate: int
    samples: int
    channels: int
    bits: int
    gain: float
    peak: float

    def bounds(self) -> list[int]:
        """The sample at which each segment starts, and the end."""
        count = -(-self.samples // (SEGMENT_SECONDS * self.sample_rate))
        return [index * self.samples // count for index in range(count + 1)]


@dataclasses.dataclass(frozen=True)
class Segment:
    """The work of one `cut`: samples [first, first + count) of a track."""

    track: Track
    layout: Layout
    index: int
    first: int
    count: int

    @property
    def id(self) -> str:
        return f"{self.track.id}/{self.index:03}"


def survey(track: Track) -> Layout:
    """Decodes a whole track, to know its format and peak and that every file of it is sound.

    Raises:
      UserError: a file of it cannot be read.
    """
    infos = [io.info(path) for paths in track.sources for path in paths]
    rate = max(info.sample_rate for info in infos)
    layout = Layout(
        sample_rate=rate,
        samples=max(resampled_length(x.samples, x.sample_rate, rate) for x in infos),
        channels=max(info.channels for info in infos),
        bits=max(info.bits for info in infos),
        gain=1.0,
        peak=0.0,
    )
    bounds = layout.bounds()
    peak = 0.0
    for first, end in itertools.pairwise(bounds):
        for paths in track.sources:
            stem = _read_stem(paths, layout, first, end - first)
            peak = max(peak, float(np.abs(stem).max(initial=0.0)))
    for path, _ in track.midi:
        read_midi(path)
    if peak <= 1.0:
        return dataclasses.replace(layout, peak=peak)
    return dataclasses.replace(layout, peak=peak, bits=24, gain=0.5 ** int(np.ceil(np.log2(peak))))


def cut(segment: Segment) -> Record:
    """The record of one segment."""
    track, layout = segment.track, segment.layout
    rate = layout.sample_rate
    audio = [
        io.encode_flac(
            layout.gain * _read_stem(paths, layout, segment.first, segment.count), rate, layout.bits
        )
        if paths
        else b""
        for paths in track.sources
    ]
    start, duration = segment.first / rate, segment.count / rate
    return Record(
        id=segment.id,
        stem_names=list(track.stem_names),
        stem_mask=np.array([bool(paths) for paths in track.sources]),
        programs=np.array(track.programs, np.int32),
        duration=duration,
        collection=track.collection,
        licence=track.licence,
        title=track.title,
        captions=list(track.captions),
        audio=audio,
        sample_rate=rate,
        channels=layout.channels,
        segment_start=start,
        **_labels(track, start, duration),
    )


def _read_stem(paths: Sequence[Path], layout: Layout, first: int, count: int) -> np.ndarray:
    """float32 [count, C]: the sum of the files, silent past their ends."""
    rate = layout.sample_rate
    stem = np.zeros((count, layout.channels), np.float32)
    for path in paths:
        info = io.info(path)
        available = resampled_length(info.samples, info.sample_rate, rate) - first
        if available <= 0:
            continue
        stem += fit_length(
            io.read(
                path,
                start=first / rate,
                duration=min(count, available) / rate,
                sample_rate=rate,
                channels=layout.channels,
            ),
            count,
        )
    return stem


def _labels(track: Track, start: float, duration: float) -> dict[str, Any]:
    """Notes, tempi, metres and beats of the segment, relative to its start."""
    if not track.midi:
        return {}
    end = start + duration
    tables = [np.zeros((0, 5))]
    files = [(read_midi(path), stem) for path, stem in track.midi]
    for midi, stem in files:
        for part in midi.tracks:
            index = stem if stem >= 0 else _stem_of(part, track.stem_names)
            if index is not None:
                tables.append(np.column_stack([part.notes, np.full(len(part.notes), index)]))
    notes = np.concatenate(tables)
    notes = notes[(notes[:, 0] < end) & (notes[:, 1] > start)]
    notes[:, :2] = np.clip(notes[:, :2] - start, 0, duration)
    grid: AlignedMidi = files[0][0]
    return {
        "notes": notes[np.lexsort((notes[:, 2], notes[:, 4], notes[:, 0]))].astype(np.float32),
        "tempi": _in_force(grid.tempi, start, end),
        "metres": _in_force(grid.metres, start, end),
        "beats": _within(grid.beats, start, end),
        "downbeats": _within(grid.downbeats, start, end),
    }


def _stem_of(part: MidiTrack, names: Sequence[str]) -> int | None:
    """The stem that a track of a common MIDI file belongs to: by name, else by instrument."""
    lowered = [name.lower() for name in names]
    family = "drums" if part.program == DRUM_KIT else ""
    for name, programs in _FAMILIES.items():
        family = name if part.program in programs else family
    for candidate in (part.name.strip().lower(), family):
        if candidate in lowered:
            return lowered.index(candidate)
    return None


def _within(times: np.ndarray, start: float, end: float) -> np.ndarray:
    return (times[(times >= start) & (times < end)] - start).astype(np.float32)


def _in_force(table: np.ndarray, start: float, end: float) -> np.ndarray:
    """Rows (time, ...) of the segment; what was in force at its start is its first row, at 0."""
    first = max(0, int(np.searchsorted(table[:, 0], start, "right")) - 1)
    rows = table[first : int(np.searchsorted(table[:, 0], end, "left"))].copy()
    rows[:, 0] = np.maximum(rows[:, 0] - start, 0)
    return rows.astype(np.float32)


class RecordingBuilder(RecordBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders that read recordings; a subclass finds the tracks.

    Args:
      source: folder of the recordings.
      limit: use at most this many tracks, in proportion from each split, chosen by hash of their
        ids.
      **kwargs: see `RecordBuilder`.
    """

    def __init__(self, *, source: str | os.PathLike[str] | None = None, **kwargs: Any):
        if source is None:
            raise UserError("source: missing, expected the folder of the recordings (--source=...)")
        if not Path(source).is_dir():
            found = "is a file" if Path(source).exists() else "no such folder"
            raise UserError(f"source: {source}: {found}, expected the folder of the recordings")
        super().__init__(source=source, **kwargs)
        self.folder = Path(source)

    def tracks(self) -> Sequence[Track]:
        """All tracks of `self.folder`, after `choose` has applied the limit; `UserError` where
        there are none.
        """
        raise NotImplementedError

    def records(self) -> Mapping[str, Iterable[Record]]:
        found: dict[str, tuple[Track, Layout]] = {}
        tracks = sorted(self.tracks(), key=lambda track: rank(track.id))
        for track, layout in self.parallel(
            survey, tracks, name=lambda track: track.id, description="checking", unit="tracks"
        ):
            if layout.peak == 0.0:
                self.leave_out("silent", track.id, "every sample is zero")
            else:
                found[track.id] = (track, layout)
        free = sorted(name for name, (track, _) in found.items() if track.split == BY_HASH)
        by_hash = splits.assign([[name] for name in free], dict.fromkeys(free, ""))
        split_of = {name: by_hash.get(name, track.split) for name, (track, _) in found.items()}
        return {
            split: self._segments([found[name] for name in found if split_of[name] == split])
            for split in SPLITS
        }

    def _segments(self, tracks: Sequence[tuple[Track, Layout]]) -> Iterator[Record]:
        segments = []
        for track, layout in tracks:
            bounds = layout.bounds()
            for index, (first, end) in enumerate(itertools.pairwise(bounds)):
                segments.append(Segment(track, layout, index, first, end - first))
        for _, record in self.parallel(
            cut, segments, name=lambda x: x.id, description="encoding", unit="segments"
        ):
            yield record


def split_folders(source: Path) -> dict[str, Path]:
    """The folders of `source` that are named after splits; empty where there are none."""
    return {split: source / split for split in SPLITS if (source / split).is_dir()}


def folder_splits(names: Sequence[str], source: Path) -> dict[str, str]:
    """Name -> split of names relative to `source`, by its split folders; BY_HASH where it has none.

    Names outside the split folders, where there are any, are not in the result.
    """
    folders = split_folders(source)
    if not folders:
        return dict.fromkeys(names, BY_HASH)
    first = {name: name.split("/", 1)[0] for name in names}
    return {name: folder for name, folder in first.items() if folder in folders}


def choose(split_of: Mapping[str, str], limit: int | None) -> dict[str, str]:
    """The first `limit` names of an order by hash that serves the splits in proportion.

    Each split's first name comes before any second one.
    """
    order: list[tuple[bool, float, int, str]] = []
    for place, split in enumerate((*SPLITS, BY_HASH)):
        names = sorted((name for name in split_of if split_of[name] == split), key=rank)
        order += [
            (index > 0, (index + 0.5) / len(names), place, name) for index, name in enumerate(names)
        ]
    return {name: split_of[name] for _, _, _, name in sorted(order)[:limit]}


def read_captions(source: Path) -> dict[str, tuple[str, ...]]:
    """Captions of each "file" (or "id") in `source/captions.jsonl`.

    A line is {"file": path in `source`, "caption": text or list of texts}.

    Raises:
      UserError: a line that is not such an object, by file and line number.
    """
    path = source / CAPTIONS_FILE
    captions: dict[str, tuple[str, ...]] = {}
    if not path.is_file():
        return captions
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name = entry["file"] if "file" in entry else entry["id"]
            found = entry["caption"]
            texts = [found] if isinstance(found, str) else list(found)
            if not all(isinstance(text, str) for text in [name, *texts]):
                raise TypeError("not text")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number}: found {line[:60]!r}, expected"
                ' {"file": "...", "caption": "..."}'
            ) from error
        name = name.replace("\\", "/").removeprefix("./").rstrip("/")
        captions[name] = captions.get(name, ()) + tuple(texts)
    return captions


def audio_files(folder: Path, *, recursive: bool) -> list[Path]:
    """Audio files of a folder, sorted; hidden ones and those in hidden folders are not taken."""
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(
        path
        for path in found
        if path.suffix.lower() in io.SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
