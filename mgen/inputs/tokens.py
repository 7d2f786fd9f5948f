"""Token datasets: what the models of a chain make of every piece, with the manifest of where it
came from. The folder is a SeqIO offline cache, which Grain reads too.

  manifest.json                       kind "tokens", streams, parents, render, ...
  train.tfrecord-00003-of-00008       one tf.train.Example a piece: id, attributes [A] and the
                                      streams: acoustic [F, K], semantic [F, 1], joint [W, K],
                                      chroma [F, 12] (vectors), ...
  train.index-00003-of-00008.json     where each piece starts, and its lengths
  info.train.json, stats.train.json, COMPLETED      what SeqIO asks for

A shard appears under its name only when it is complete and is never rewritten, so an interrupted
extraction goes on with the shards that are missing, on as many machines as there are.
"""

import contextlib
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mgen import files, manifest
from mgen.errors import UserError
from mgen.inputs import tfrecord

KIND = "tokens"
COMPLETED = "COMPLETED"
SEQIO_FORMAT = "0.0.20"  # the release whose cache this is


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """File name of a shard."""
    return f"{split}.tfrecord-{shard:05d}-of-{num_shards:05d}"


def shards_todo(
    folder: str | Path, split: str, num_shards: int, shard_index: int = 0, shard_count: int = 1
) -> list[int]:
    """Shards that worker `shard_index` of `shard_count` has still to write.

    Raises:
      UserError: the folder holds shards of this split that were cut into another number.
    """
    if not 0 <= shard_index < shard_count:
        raise UserError(f"shard_index is {shard_index}, expected 0 to {shard_count - 1}")
    for path, (_, count) in _found(folder).get(split, {}).items():
        if count != num_shards:
            raise UserError(f"{path}: cut into {count} shards, expected {num_shards}")
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
        self._path = Path(folder) / shard_name(split, shard, num_shards)
        if self._path.exists():
            raise FileExistsError(self._path)
        self._stack = contextlib.ExitStack()
        temporary = self._stack.enter_context(files.replacing(self._path))
        self._file = self._stack.enter_context(temporary.open("wb"))
        self._offsets = [0]
        self._frames: dict[str, list[int]] = {}
        self._features: dict[str, Any] = {}

    def write(self, *, id: str, attributes: np.ndarray, **streams: np.ndarray) -> None:
        """Adds a piece.

        Args:
          id: of the piece it was made from.
          attributes: integers [A], see `mgen.inputs.attributes`.
          **streams: codes, integers [F, K], not negative; or vectors, floats [F, D]. Every piece
            has the same ones.
        """
        for name, value in streams.items():
            if value.ndim != 2 or (
                np.issubdtype(value.dtype, np.integer) and value.min(initial=0) < 0
            ):
                raise ValueError(
                    f"{id}: {name} {value.shape}, expected [F, K] of non-negative integers"
                )
        piece = {"attributes": attributes, **streams}
        features: dict[str, Any] = {"id": {"shape": [], "dtype": "string"}}
        for name, value in piece.items():
            dtype = "int32" if np.issubdtype(value.dtype, np.integer) else "float32"
            features[name] = {"shape": [None, *value.shape[1:]], "dtype": dtype}
        if self._features not in ({}, features):
            raise ValueError(f"{id}: features are {features}, of the piece before {self._features}")
        self._features = features
        self._file.write(tfrecord.frame(tfrecord.encode_example({"id": id.encode(), **piece})))
        self._offsets.append(self._file.tell())
        for name, value in streams.items():
            self._frames.setdefault(name, []).append(len(value))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            # Before the rest of the stack: the shard's name is what says that it is complete.
            self._stack.callback(self._write_index)
        self._stack.__exit__(kind, error, trace)

    def _write_index(self) -> None:
        index = {"offsets": self._offsets, "frames": self._frames, "features": self._features}
        files.write_json(_index_path(self._path), index, indent=None)


def finish(folder: str | Path, splits: Collection[str], num_shards: int) -> bool:
    """Writes what SeqIO's cache has beside the shards of `splits`, if all are there; says whether.

    Every worker calls this when it is done; whoever comes last finds all shards.
    """
    folder = Path(folder)
    for split in splits:
        if shards_todo(folder, split, num_shards):
            return False
        names = (shard_name(split, shard, num_shards) for shard in range(num_shards))
        indices = [_read_index(folder / name) for name in names]
        described = (index["features"] for index in indices if index["features"])
        features: dict[str, Any] = next(described, {})
        stats: dict[str, int] = {"examples": sum(len(index["offsets"]) - 1 for index in indices)}
        for name, feature in features.items():
            if feature["dtype"] == "int32" and name != "attributes":
                width = feature["shape"][1]
                lengths = [n * width for index in indices for n in index["frames"].get(name, ())]
                stats |= {f"{name}_tokens": sum(lengths), f"{name}_max_tokens": max(lengths)}
        info = {"num_shards": num_shards, "features": features, "seqio_version": SEQIO_FORMAT}
        files.write_json(folder / f"stats.{split}.json", stats, indent=None)
        files.write_json(folder / f"info.{split}.json", info, indent=None)
    if all((folder / f"info.{split}.json").exists() for split in _found(folder)):
        (folder / COMPLETED).touch()
    return True


class TokenSource:
    """Random access to the pieces of a split; opens its files where it is first read, so it can be
    pickled.

    Attributes:
      manifest: of the dataset.
      frames: stream -> int64 [pieces], length of every piece.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        expect: dict[str, Any] | None = None,
        streams: Collection[str] | None = None,
    ):
        """See `open_tokens`."""
        self.folder = Path(folder)
        self.split = split
        self.manifest = manifest.read(self.folder)
        manifest.require(self.manifest, self.folder / manifest.FILE, kind=KIND, **(expect or {}))
        self._paths = self._find_shards()
        indices = [_read_index(path) for path in self._paths]
        self._offsets = [np.array(index["offsets"], np.int64) for index in indices]
        self._starts = np.cumsum([0, *(len(offsets) - 1 for offsets in self._offsets)])
        if not len(self):
            raise UserError(f"{self.folder}: split {split!r} holds no pieces")
        # An incomplete file must be found now, not in the middle of a training.
        for path, offsets in zip(self._paths, self._offsets):
            if path.stat().st_size != offsets[-1]:
                raise UserError(
                    f"{path}: truncated, or of another extraction: {path.stat().st_size} bytes,"
                    f" its index says {offsets[-1]}"
                )
        self._features = next(index["features"] for index in indices if index["features"])
        self.frames = {
            name: np.array(
                [n for index in indices for n in index["frames"].get(name, ())], np.int64
            )
            for name in self._features
            if name not in ("id", "attributes")
        }
        for name in streams or ():
            if name not in self.frames:
                raise UserError(
                    f"{self.folder}: has no stream {name!r}, only {', '.join(self.frames)}"
                )
        self._names = {"id", "attributes", *(streams if streams is not None else self.frames)}
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The piece: id, attributes int32 [A] and its streams, int32 [F, K] or float32 [F, D]."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        start, end = self._offsets[shard][index - self._starts[shard] :][:2].tolist()
        try:
            # pread has no position that threads could move under each other.
            record = os.pread(self._file(shard), end - start, start)
            found = tfrecord.decode_example(tfrecord.unframe(record), self._names)
            return {name: self._shaped(name, found[name]) for name in self._names}
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise UserError(f"{self._paths[shard]}: damaged ({error})") from error

    def item(self, index: int) -> int:
        """Number of the piece in the order of the extraction, which dealt the pieces to the shards
        in turn."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard + int(index - self._starts[shard]) * len(self._paths)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in self.__dict__.get("_files", {}).values():
            os.close(file)

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            self._files[shard] = os.open(self._paths[shard], os.O_RDONLY)
        return self._files[shard]

    def _shaped(self, name: str, values: tfrecord.Values) -> Any:
        feature = self._features[name]
        if feature["dtype"] == "string":
            return bytes(values[0]).decode()
        # A piece without frames has no width to tell by.
        shape = (-1, *feature["shape"][1:]) if len(values) else (0, *feature["shape"][1:])
        return np.asarray(values).astype(feature["dtype"]).reshape(shape)

    def _find_shards(self) -> list[Path]:
        shards = _found(self.folder)
        if self.split not in shards:
            found = ", ".join(sorted(shards)) or "none"
            raise UserError(f"{self.folder}: no split {self.split!r}; found {found}")
        paths = shards[self.split]
        counts = {count for _, count in paths.values()}
        if len(counts) != 1 or len(paths) != max(counts):
            raise UserError(
                f"{self.folder}: split {self.split!r} has {len(paths)} of"
                f" {max(counts)} shards; the extraction is not finished, run it again"
            )
        return sorted(paths, key=lambda path: paths[path][0])


def open_tokens(
    path: str | Path,
    split: str,
    expect: dict[str, Any] | None = None,
    streams: Collection[str] | None = None,
) -> TokenSource:
    """Opens a split of a token dataset.

    Args:
      path: folder with the manifest and the shards.
      split: such as "train".
      expect: manifest fields that must hold, such as `{"streams": {"acoustic": {"codebooks": 4}}}`.
      streams: what to decode of a piece; everything by default.

    Raises:
      UserError: no manifest, other manifest fields than expected, no such split or stream, missing
        shards, a truncated file.
    """
    return TokenSource(path, split, expect, streams)


def _found(folder: str | Path) -> Mapping[str, dict[Path, tuple[int, int]]]:
    """split -> {path: (shard, number of shards)} of the complete shards."""
    shards: dict[str, dict[Path, tuple[int, int]]] = {}
    for path in sorted(Path(folder).glob("*.tfrecord-*")):
        match = re.fullmatch(r"([^.].*)\.tfrecord-(\d{5})-of-(\d{5})", path.name)
        if match:
            shards.setdefault(match[1], {})[path] = (int(match[2]), int(match[3]))
    return shards


def _index_path(shard: Path) -> Path:
    return shard.with_name(shard.name.replace(".tfrecord-", ".index-") + ".json")


def _read_index(shard: Path) -> dict[str, Any]:
    path = _index_path(shard)
    try:
        index = json.loads(path.read_text())
        pieces = len(index["offsets"]) - 1
        if pieces < 0 or any(len(lengths) != pieces for lengths in index["frames"].values()):
            raise ValueError("offsets and frames disagree")
        return {name: index[name] for name in ("offsets", "frames", "features")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable shard index ({error})") from error
