"""Random access to prepared datasets of `Record`s, without TensorFlow."""

import functools
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

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
        paths, self._lengths = self._shards()
        self._starts = np.cumsum([0, *self._lengths])
        if not len(self):
            raise UserError(f"{self.folder}: split {split!r} is empty")
        self._paths = [str(path) for path in paths]
        self._open_files()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        if self._readers is None:
            self._open_files()
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        reader = self._readers[shard]
        try:
            # seek and read copies a record once; `read([index])` takes five times as long.
            with self._lock:
                reader.seek(int(index - self._starts[shard]))
                data = reader.read()
            return from_example(self._features.deserialize_example_np(data))
        except Exception as error:
            raise UserError(
                f"{self.folder}: record {index} of split {self.split!r} cannot be read; is it a"
                f" dataset of mgen? ({first_line(error)})"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": None, "_features": None, "_lock": None}

    def _open_files(self) -> None:
        self._features: Any = features()
        self._lock: Any = threading.Lock()
        self._readers: Any = [_open(path) for path in self._paths]
        for path, reader, length in zip(self._paths, self._readers, self._lengths):
            if reader.num_records() != length:
                raise UserError(
                    f"{path}: truncated, or of another build: {reader.num_records()} records, "
                    f"{_INFO} says {length}"
                )

    @functools.cached_property
    def scores(self) -> bool:
        """Whether the pieces are scores."""
        return self[0].is_score

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the dataset's name, version and splits."""
        return describe(self.folder)["fingerprint"]

    def _shards(self) -> tuple[list[Path], list[int]]:
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
        return paths, shards


def open_records(path: str | Path, split: str) -> RecordSource:
    """Opens a split of a prepared dataset.

    Args:
      path: the folder with the shards, or one that holds exactly one dataset.
      split: such as "train".

    Raises:
      UserError: no dataset, several, no such split, an empty one, a missing or truncated shard.
    """
    return RecordSource(path, split)


def describe(folder: Path) -> dict[str, str]:
    """Name and fingerprint of a prepared dataset: its splits and the lengths of their shards."""
    info = json.loads((folder / _INFO).read_text())
    name = "/".join(filter(None, (info["name"], info.get("configName"), info.get("version"))))
    lengths = {
        split["name"]: [*split["shardLengths"], split.get("numBytes")] for split in info["splits"]
    }
    text = json.dumps({"name": name, "splits": lengths}, sort_keys=True)
    return {"name": name, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}


def first_line(error: Exception) -> str:
    """What a library says went wrong, as part of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _open(path: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        return ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")
    except Exception as error:
        raise UserError(f"{path}: truncated or no ArrayRecord ({first_line(error)})") from error
