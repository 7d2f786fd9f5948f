"""Slakh2100 grouped to bass, drums, guitar and piano."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgen.data import recordings
from mgen.data.recordings import Track
from mgen.errors import UserError
from mgen.inputs.record import DRUM_KIT

STEMS = ("bass", "drums", "guitar", "piano")
LICENCE = "CC BY 4.0"
SPLITS = recordings.SPLITS
OMITTED = "omitted"  # the redux release moves tracks with duplicated MIDI here
ARCHIVES = ("slakh2100_flac_redux", "slakh2100_flac", "babyslakh_16k")
# Last track number of each split where the tracks lie in one folder, as first released.
LAST_NUMBER = {"train": 1500, "validation": 1875, "test": 2100}


@dataclasses.dataclass(frozen=True)
class Found:
    """A track, and what of it is left out: (kind, stem, reason)."""

    track: Track
    left_out: tuple[tuple[str, str, str], ...]


def read_track(task: tuple[Path, str]) -> Found:
    """Reads `metadata.yaml` of a track folder and groups its stems by instrument class.

    Raises:
      UserError: metadata that is missing or is none of Slakh's, a stem without its file, or no
        stem of the four classes.
    """
    folder, split = task
    sources: dict[str, list[Path]] = {name: [] for name in STEMS}
    programs = dict.fromkeys(STEMS, -1)
    midi: list[tuple[Path, int]] = []
    left_out = []
    for stem, entry in sorted(_metadata(folder / "metadata.yaml").items()):
        name = "drums" if entry["is_drum"] else str(entry["inst_class"]).lower()
        if not entry["audio_rendered"]:
            left_out.append(("not_rendered", stem, f"{entry['inst_class']}: no audio was made"))
        elif name not in sources:
            left_out.append(("other_class", stem, str(entry["inst_class"])))
        else:
            if not sources[name]:
                programs[name] = DRUM_KIT if name == "drums" else int(entry["program_num"])
            sources[name].append(_audio(folder / "stems", stem))
            path = folder / "MIDI" / f"{stem}.mid"
            if path.is_file():
                midi.append((path, STEMS.index(name)))
    if not any(sources.values()):
        raise UserError(f"{folder}: no stem of {', '.join(STEMS)} among its instruments")
    track = Track(
        id=folder.name,
        split=split,
        stem_names=STEMS,
        sources=tuple(tuple(sources[name]) for name in STEMS),
        programs=tuple(programs[name] for name in STEMS),
        midi=tuple(midi),
        collection="slakh2100",
        licence=LICENCE,
        title=folder.name,
    )
    return Found(track, tuple(left_out))


def _metadata(path: Path) -> dict[str, dict[str, Any]]:
    """The `stems` table of a `metadata.yaml`."""
    import yaml

    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the metadata of a Slakh2100 track")
    try:
        stems = yaml.safe_load(path.read_text())["stems"]
        for entry in stems.values():
            for field in ("inst_class", "is_drum", "program_num", "audio_rendered"):
                entry[field]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the metadata of a Slakh2100 track ({error})") from error
    return stems


def _audio(folder: Path, stem: str) -> Path:
    for suffix in (".flac", ".wav"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise UserError(f"{folder}/{stem}: no .flac or .wav, though metadata.yaml says it was rendered")


class Builder(recordings.RecordingBuilder):
    """Slakh2100 as four stems: each is the sum of the track's sources of that class.

    A track without a class has that stem missing (zeros, mask False). Sources of other classes, and
    those that were never rendered, are left out and listed. Split folders win (`omitted` is left
    out and counted); tracks in one flat folder are split by their published numbers.

    Args:
      source: the folder that holds train/, validation/, test/ or the Track folders, or that holds
        the unpacked archive.
      **kwargs: `limit`, `workers`, `data_dir` (see `RecordBuilder`).
    """

    def tracks(self) -> Sequence[Track]:
        folders = self._folders()
        split_of = {path.name: split for path, split in folders}
        chosen = recordings.choose(split_of, self.limit)
        tasks = [task for task in folders if task[0].name in chosen]
        tracks = []
        for _, found in self.parallel(
            read_track, tasks, name=lambda task: task[0].name, description="metadata", unit="tracks"
        ):
            for kind, stem, reason in found.left_out:
                self.leave_out(kind, f"{found.track.id}/{stem}", reason)
            tracks.append(found.track)
        return tracks

    def _folders(self) -> list[tuple[Path, str]]:
        """Track folders and their splits."""
        root = next((self.folder / x for x in ARCHIVES if (self.folder / x).is_dir()), self.folder)
        for folder in _track_folders(root / OMITTED):
            self.leave_out("omitted", folder.name, "in the release's omitted folder")
        split_folders = recordings.split_folders(root)
        found = [
            (folder, split)
            for split, path in split_folders.items()
            for folder in _track_folders(path)
        ]
        if not split_folders:
            found = [(folder, _published_split(folder.name)) for folder in _track_folders(root)]
        if not found:
            raise UserError(
                f"{self.folder}: no folders like Track00001, expected Slakh2100's layout"
            )
        return found


def _track_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("Track*") if path.is_dir() and path.name[5:].isdigit())


def _published_split(name: str) -> str:
    return next((x for x, last in LAST_NUMBER.items() if int(name[5:]) <= last), "train")
