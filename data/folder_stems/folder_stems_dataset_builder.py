"""Multitrack recordings of the user: a folder a track, a file a stem."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgen.data import recordings
from mgen.data.recordings import Track
from mgen.errors import UserError

MIXES = ("mix", "mixture")  # the sum of the other files, as MUSDB18 and others add it


class Builder(recordings.RecordingBuilder):
    """A track is a folder, at any depth, that holds audio files; a file's bare name is its stem's.

    The slots of the dataset are the names found in any track, sorted; a track without one of them
    has that stem missing. Files named mix or mixture are not stems unless `stems` names them. A
    MIDI file with a stem's name belongs to that stem; any other MIDI file's tracks go to the stems
    by name, else by General MIDI family. `captions.jsonl` in the source folder describes tracks by
    their path in it. Splits: folders named train, validation, test where there are any, else 90/5/5
    by hash.

    Args:
      source: the folder.
      stems: slots in the order wanted, a list or one string with commas; other files are left out
        and listed.
      licence: of all tracks, kept in every record.
      **kwargs: `limit`, `workers`, `data_dir` (see `RecordBuilder`).
    """

    def __init__(
        self, *, stems: Sequence[str] | str | None = None, licence: str = "", **kwargs: Any
    ):
        super().__init__(**kwargs)
        if isinstance(stems, str):
            stems = [name.strip() for name in stems.split(",") if name.strip()]
        if stems is not None and len(set(stems)) != len(stems):
            raise UserError(f"stems: {','.join(stems)}: expected each name once")
        self.stems = None if stems is None else list(stems)
        self.licence = licence
        self.options |= {"stems": self.stems, "licence": licence}

    def tracks(self) -> Sequence[Track]:
        found = self._find()
        names = self.stems or sorted({name for files in found.values() for name in files})
        split_of = recordings.folder_splits(sorted(found), self.folder)
        captions = recordings.read_captions(self.folder)
        for name in sorted(captions.keys() - found.keys()):
            self.leave_out("captions_without_track", name, f"no such folder in {self.folder.name}")
        tracks = []
        for track_id in sorted(found):
            if track_id not in split_of:
                self.leave_out("outside_split_folders", track_id, "beside train, validation, test")
        for track_id, split in sorted(recordings.choose(split_of, self.limit).items()):
            files = found[track_id]
            for name in sorted(files.keys() - set(names)):
                self.leave_out("other_stem", f"{track_id}/{files[name].name}", "not among stems")
            sources = tuple((files[name],) if name in files else () for name in names)
            if not any(sources):
                self.leave_out("failed", track_id, f"none of the stems {', '.join(names)}")
                continue
            tracks.append(
                Track(
                    id=track_id,
                    split=split,
                    stem_names=tuple(names),
                    sources=sources,
                    programs=(-1,) * len(names),
                    midi=_midi(self.folder / track_id, names),
                    captions=captions.get(track_id, ()),
                    collection=self.folder.resolve().name,
                    licence=self.licence,
                    title=Path(track_id).name,
                )
            )
        return tracks

    def _find(self) -> dict[str, dict[str, Path]]:
        """Track id -> stem name -> file."""
        found: dict[str, dict[str, Path]] = {}
        for path in recordings.audio_files(self.folder, recursive=True):
            if path.stem.lower() in MIXES and path.stem not in (self.stems or ()):
                continue
            track_id = path.parent.relative_to(self.folder).as_posix()
            other = found.setdefault(track_id, {}).setdefault(path.stem, path)
            if other != path:
                self.leave_out("other_stem", f"{track_id}/{path.name}", f"beside {other.name}")
        beside: dict[str, Path] = {}
        for folder in (".", *recordings.split_folders(self.folder)):
            beside |= found.pop(folder, {})
        if not found:
            loose = (
                f"{len(beside)} loose files (folder_audio reads those)" if beside else "no audio"
            )
            raise UserError(f"{self.folder}: {loose}, expected a folder a track, a file a stem")
        for path in beside.values():
            self.leave_out("outside_track_folders", path.name, "not in a folder of its own")
        return found


def _midi(folder: Path, names: Sequence[str]) -> tuple[tuple[Path, int], ...]:
    """MIDI files of a track and their stems; a file of the whole track comes first, its beats
    count.
    """
    files = [
        (path, names.index(path.stem) if path.stem in names else -1)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in recordings.MIDI_SUFFIXES
    ]
    return tuple(sorted(files, key=lambda item: item[1] >= 0))
