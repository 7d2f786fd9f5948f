"""Random access to prepared datasets of `Record`s, without TensorFlow."""

import contextlib
import json
from pathlib import Path
from typing import Any

from mgen.errors import UserError
from mgen.inputs.record import Record, features, from_example

_INFO = "dataset_info.json"


def dataset_folder(path: str | Path) -> Path:
    """The folder of a prepared dataset: `path`, or the only one at most three levels below it
    (name/config/version).

    Raises:
      UserError: there is none, or several.
    """
    path = Path(path)
    if not str(path) or not path.is_dir():
        raise UserError(
            f"data.dataset: no folder {str(path)!r}; expected a dataset that prepare_data wrote"
        )
    for level in range(4):
        found = sorted(info.parent for info in path.glob("*/" * level + _INFO))
        if len(found) > 1:
            names = ", ".join(str(folder.relative_to(path)) for folder in found)
            raise UserError(f"{path}: holds several datasets ({names}); name one of them")
        if found:
            return found[0]
    raise UserError(
        f"{path}: no prepared dataset here (no {_INFO}); expected the output of prepare_data"
    )


class RecordSource:
    """The records of a split; opens its files where it is first read, so it can be pickled.

    Attributes:
      folder: of the prepared dataset.
      split: name of the split.
    """

    def __init__(self, path: str | Path, split: str):
        """See `open_records`."""
        self.folder = dataset_folder(path)
        self.split = split
        paths, self._length = self._shards()
        if not self._length:
            raise UserError(f"{self.folder}: split {split!r} is empty")
        self._paths = [str(path) for path in paths]
        self._open_files()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        if self._files is None:
            self._open_files()
        try:
            return from_example(self._features.deserialize_example_np(self._files[index]))
        except Exception as error:
            raise UserError(
                f"{self.folder}: record {index} of split {self.split!r} cannot be read; is it a"
                f" dataset of mgen? ({first_line(error)})"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": None, "_features": None}

    def _open_files(self) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._features: Any = features()
        try:
            self._files: Any = ArrayRecordDataSource(self._paths)
        except Exception as error:
            broken = next((path for path in self._paths if not _readable(path)), self._paths[0])
            raise UserError(
                f"{broken}: truncated or no ArrayRecord ({first_line(error)})"
            ) from error
        if len(self._files) != self._length:
            raise UserError(
                f"{self.folder}: split {self.split!r} has {len(self._files)} records,"
                f" its info says {self._length}"
            )

    def _shards(self) -> tuple[list[Path], int]:
        path = self.folder / _INFO
        try:
            info = json.loads(path.read_text())
            name, splits = info["name"], {split["name"]: split for split in info["splits"]}
            lengths = {
                name: list(map(int, split["shardLengths"])) for name, split in splits.items()
            }
            suffix = info["fileFormat"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a readable dataset info ({error!r})") from error
        if suffix != "array_record":
            raise UserError(f"{path}: file format is {suffix!r}, expected 'array_record'")
        if self.split not in splits:
            found = ", ".join(sorted(splits)) or "none"
            raise UserError(f"{self.folder}: no split {self.split!r}; found {found}")
        shards = lengths[self.split]
        paths = [
            self.folder / f"{name}-{self.split}.{suffix}-{shard:05d}-of-{len(shards):05d}"
            for shard in range(len(shards))
        ]
        for shard in paths:
            if not shard.is_file():
                raise UserError(
                    f"{shard}: missing; expected {len(shards)} shards of split {self.split!r}"
                )
        return paths, sum(shards)


def open_records(path: str | Path, split: str) -> RecordSource:
    """Opens a split of a prepared dataset.

    Args:
      path: the folder with the shards, or one that holds exactly one dataset.
      split: such as "train".

    Raises:
      UserError: no dataset, several, no such split, an empty one, a missing or truncated shard.
    """
    return RecordSource(path, split)


def first_line(error: Exception) -> str:
    """What a library says went wrong, as part of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _readable(path: str) -> bool:
    from array_record.python.array_record_module import ArrayRecordReader

    with contextlib.suppress(Exception):
        ArrayRecordReader(path).close()
        return True
    return False
