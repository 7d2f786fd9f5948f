"""Recordings of the user without stems."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from mgen.audio import io
from mgen.data import recordings
from mgen.data.recordings import Track
from mgen.errors import UserError

STEM = "mix"


class Builder(recordings.RecordingBuilder):
    """Every audio file under a folder (WAV, FLAC, OGG, MP3), as one stem named "mix".

    `captions.jsonl` in the source folder describes files by their path in it, with or without
    suffix. Splits: folders named train, validation, test where there are any, else 90/5/5 by hash.

    Args:
      source: the folder.
      licence: of all files, kept in every record.
      **kwargs: `limit`, `workers`, `data_dir` (see `RecordBuilder`).
    """

    def __init__(self, *, licence: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.licence = licence
        self.options |= {"licence": licence}

    def tracks(self) -> Sequence[Track]:
        files = {
            path.relative_to(self.folder).as_posix(): path
            for path in recordings.audio_files(self.folder, recursive=True)
        }
        if not files:
            raise UserError(f"{self.folder}: no audio files ({', '.join(io.SUFFIXES)}) under it")
        split_of = recordings.folder_splits(sorted(files), self.folder)
        for name in sorted(files.keys() - split_of.keys()):
            self.leave_out("outside_split_folders", name, "beside train, validation, test")
        captions = recordings.read_captions(self.folder)
        bare = {name: str(PurePosixPath(name).with_suffix("")) for name in files}
        for name in sorted(captions.keys() - files.keys() - set(bare.values())):
            self.leave_out("captions_without_file", name, f"no such file in {self.folder.name}")
        return [
            Track(
                id=name,
                split=split,
                stem_names=(STEM,),
                sources=((files[name],),),
                programs=(-1,),
                captions=captions.get(name, ()) + captions.get(bare[name], ()),
                collection=self.folder.resolve().name,
                licence=self.licence,
                title=PurePosixPath(name).stem,
            )
            for name, split in sorted(recordings.choose(split_of, self.limit).items())
        ]
