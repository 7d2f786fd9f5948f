"""Token datasets: codes of a codec in ArrayRecord shards, with the manifest of where they came
from.

  folder/manifest.json                            kind "tokens", sample_rate, frame_rate, codebooks,
  codebook_size, ... folder/train-00003-of-00008.array_record        one msgpack dict a piece: id,
  codes [F, K], attributes [A] folder/train-00003-of-00008.index.json          frames of every
  piece, in order

A shard appears under its name only when it is complete and is never rewritten, so an interrupted
extraction goes on with the shards that are missing, on as many machines as there are.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization

from mgen import manifest
from mgen.errors import UserError

KIND = "tokens"


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """File name of a shard."""
    return f"{split}-{shard:05d}-of-{num_shards:05d}.array_record"


def shards_todo(
    folder: str | Path, split: str, num_shards: int, shard_index: int = 0, shard_count: int = 1
) -> list[int]:
    """Shards that worker `shard_index` of `shard_count` has still to write.

    Raises:
      UserError: the folder holds shards of this split that were cut into another number.
    """
    if not 0 <= shard_index < shard_count:
        raise UserError(f"shard_index is {shard_index}, expected 0 to {shard_count - 1}")
    for path in Path(folder).glob(f"{split}-*.array_record"):
        found = _shard_number(path, split)
        if found is not None and found[1] != num_shards:
            raise UserError(f"{path}: cut into {found[1]} shards, expected {num_shards}")
    return [
        shard
        for shard in range(shard_index, num_shards, shard_count)
        if not (Path(folder) / shard_name(split, shard, num_shards)).exists()
    ]


class ShardWriter:
    """Writes one shard; use as a context manager. Leaving it by an exception leaves no file.

    The same pieces in the same order give the same bytes.
    """

    def __init__(self, folder: str | Path, split: str, shard: int, num_shards: int):
        """Raises `FileExistsError` if the shard is there: finished shards are never rewritten."""
        from array_record.python.array_record_module import ArrayRecordWriter

        self._path = Path(folder) / shard_name(split, shard, num_shards)
        if self._path.exists():
            raise FileExistsError(self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        # One piece a group: random access must not decode its neighbours.
        self._writer = ArrayRecordWriter(str(self._temporary), "group_size:1")
        self._frames: list[int] = []

    def write(self, *, id: str, codes: np.ndarray, attributes: np.ndarray, **more: Any) -> None:
        """Adds a piece.

        Args:
          id: of the piece it was made from.
          codes: integers [F, K], not negative.
          attributes: integers [A], see `mgen.inputs.attributes`.
          **more: further msgpack-able fields (arrays, numbers, text).
        """
        if codes.ndim != 2 or codes.min(initial=0) < 0:
            raise ValueError(f"{id}: codes {codes.shape}, expected [F, K] of non-negative integers")
        small = codes.max(initial=0) <= np.iinfo(np.uint16).max
        piece = {
            "id": id,
            "codes": codes.astype(np.uint16 if small else np.int32),
            "attributes": attributes.astype(np.int32),
            **more,
        }
        self._writer.write(serialization.msgpack_serialize(piece))
        self._frames.append(len(codes))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._writer.close()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        index = _index_path(self._path)
        temporary = index.with_name(f".{index.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"frames": self._frames}))
        temporary.replace(index)
        # Last: the shard's name is what says that it is complete.
        self._temporary.replace(self._path)


class TokenSource:
    """Random access to the pieces of a split; opens its files where it is first read, so it can be
    pickled.

    Attributes:
      manifest: of the dataset.
      frames: int64 [pieces], length of every piece.
    """

    def __init__(self, folder: str | Path, split: str, expect: dict[str, Any] | None = None):
        """See `open_tokens`."""
        self.folder = Path(folder)
        self.split = split
        self.manifest = manifest.read(self.folder)
        manifest.require(self.manifest, self.folder / manifest.FILE, kind=KIND, **(expect or {}))
        self._paths = self._find_shards()
        lengths = [self._read_index(path) for path in self._paths]
        self._starts = np.cumsum([0, *map(len, lengths)])
        self.frames = np.array([frames for shard in lengths for frames in shard], np.int64)
        if not len(self.frames):
            raise UserError(f"{self.folder}: split {split!r} holds no pieces")
        self._readers: dict[int, Any] = {}
        # An incomplete file must be found now, not in the middle of a training.
        for shard, path in enumerate(self._paths):
            count = _open(path).num_records()
            if count != len(lengths[shard]):
                raise UserError(f"{path}: {count} pieces, its index says {len(lengths[shard])}")

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The piece: id, codes int32 [F, K], attributes int32 [A] and what else was written."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        if shard not in self._readers:
            self._readers[shard] = _open(self._paths[shard])
        try:
            data = self._readers[shard].read([int(index - self._starts[shard])])[0]
            piece = serialization.msgpack_restore(data)
        except Exception as error:
            raise UserError(f"{self._paths[shard]}: damaged ({_first_line(error)})") from error
        return {**piece, "codes": piece["codes"].astype(np.int32)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def _find_shards(self) -> list[Path]:
        shards: dict[str, dict[int, tuple[Path, int]]] = {}
        for path in sorted(self.folder.glob("*-of-*.array_record")):
            split = path.name[: -len("-00000-of-00000.array_record")]
            number = _shard_number(path, split)
            if number is not None:
                shards.setdefault(split, {})[number[0]] = (path, number[1])
        if self.split not in shards:
            found = ", ".join(sorted(shards)) or "none"
            raise UserError(f"{self.folder}: no split {self.split!r}; found {found}")
        counts = {count for _, count in shards[self.split].values()}
        if len(counts) != 1 or len(shards[self.split]) != max(counts):
            raise UserError(
                f"{self.folder}: split {self.split!r} has {len(shards[self.split])} of"
                f" {max(counts)} shards; the extraction is not finished, run it again"
            )
        return [path for _, (path, _) in sorted(shards[self.split].items())]

    def _read_index(self, path: Path) -> list[int]:
        try:
            frames = json.loads(_index_path(path).read_text())["frames"]
            return [int(count) for count in frames]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{_index_path(path)}: not a readable shard index ({error})") from error


def open_tokens(path: str | Path, split: str, expect: dict[str, Any] | None = None) -> TokenSource:
    """Opens a split of a token dataset.

    Args:
      path: folder with the manifest and the shards.
      split: such as "train".
      expect: manifest fields that must hold, such as `{"codec_hash": ..., "codebooks": 4}`.

    Raises:
      UserError: no manifest, other manifest fields than expected, no such split, missing shards, a
        truncated file.
    """
    return TokenSource(path, split, expect)


def _open(path: Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    if not reader.ok():
        raise UserError(f"{path}: truncated, or not an ArrayRecord file")
    return reader


def _index_path(path: Path) -> Path:
    return path.with_suffix(".index.json")


def _shard_number(path: Path, split: str) -> tuple[int, int] | None:
    match = re.fullmatch(rf"{re.escape(split)}-(\d{{5}})-of-(\d{{5}})\.array_record", path.name)
    return (int(match[1]), int(match[2])) if match else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
