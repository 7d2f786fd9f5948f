"""Vectors on disk: .npy shards [N, D], written from a dataset through an encoder, read in blocks.

Files are read by seeking, not mapped: memory is what was asked for, whatever the size of the files.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mgen import files, manifest, prefetch, progress
from mgen.errors import UserError

KIND = "vectors"


class Pieces(Protocol):
    """What `extract` reads: a list, a `RecordSource`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Vectors(Protocol):
    """Rows that k-means reads: `VectorShards`, or `ArrayVectors` for what is in memory."""

    dim: int

    def __len__(self) -> int: ...

    def about(self) -> list[list[Any]]: ...

    def blocks(self, rows: int) -> list[tuple[int, int]]: ...

    def read(self, first: int, count: int) -> np.ndarray: ...

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class _Shard:
    path: Path
    rows: int
    dim: int
    dtype: np.dtype
    offset: int  # bytes before the first row


class VectorShards:
    """Rows of several .npy files [n, D] as one sequence.

    Attributes:
      dim: D.
    """

    def __init__(self, paths: Sequence[str | Path]):
        """Raises `UserError` for files that are no .npy of two-dimensional floats of one width, or
        that are shorter than their header says."""
        if not paths:
            raise UserError("no vector files (.npy) given")
        self._shards = [_header(Path(path)) for path in paths]
        self.dim = self._shards[0].dim
        for shard in self._shards:
            if shard.dim != self.dim:
                raise UserError(
                    f"{shard.path}: vectors of {shard.dim} values, expected {self.dim} as in"
                    f" {self._shards[0].path}"
                )
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def about(self) -> list[list[Any]]:
        """[name, rows] of every file: what a resumed run compares."""
        return [[shard.path.name, shard.rows] for shard in self._shards]

    def blocks(self, rows: int) -> list[tuple[int, int]]:
        """(first row, number of rows) of consecutive blocks of at most `rows`, inside a file."""
        return [
            (int(start) + at, min(rows, shard.rows - at))
            for start, shard in zip(self._starts, self._shards)
            for at in range(0, shard.rows, rows)
        ]

    def read(self, first: int, count: int) -> np.ndarray:
        """Rows float32 [count, D] of one block."""
        number = int(np.searchsorted(self._starts, first, side="right")) - 1
        shard = self._shards[number]
        offset = shard.offset + (first - int(self._starts[number])) * shard.dim * (
            shard.dtype.itemsize
        )
        data = np.fromfile(shard.path, shard.dtype, count * shard.dim, offset=offset)
        return data.reshape(count, shard.dim).astype(np.float32, copy=False)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` different rows (all if there are fewer) in their order."""
        count = min(count, len(self))
        rows = np.sort(rng.choice(len(self), count, replace=False))
        return np.concatenate([self.read(int(row), 1) for row in rows])


class ArrayVectors:
    """Rows of an array [N, D] in memory; methods as those of `VectorShards`."""

    def __init__(self, array: np.ndarray):
        self._array = array
        self.dim = array.shape[1]

    def __len__(self) -> int:
        return len(self._array)

    def about(self) -> list[list[Any]]:
        return [["array", len(self)]]

    def blocks(self, rows: int) -> list[tuple[int, int]]:
        return [(at, min(rows, len(self) - at)) for at in range(0, len(self), rows)]

    def read(self, first: int, count: int) -> np.ndarray:
        return self._array[first : first + count].astype(np.float32, copy=False)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        rows = np.sort(rng.choice(len(self), min(count, len(self)), replace=False))
        return self._array[rows].astype(np.float32, copy=False)


def _header(path: Path) -> _Shard:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
            shape, fortran, dtype = read(file)
            offset = file.tell()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error})") from error
    if len(shape) != 2 or fortran or dtype.kind != "f" or shape[0] == 0:
        raise UserError(f"{path}: array {shape} of {dtype}, expected rows [N, D] of floats")
    if path.stat().st_size != offset + shape[0] * shape[1] * dtype.itemsize:
        raise UserError(f"{path}: truncated, expected {shape[0]} rows of {shape[1]}")
    return _Shard(path, shape[0], shape[1], dtype, offset)


def extract(
    pieces: Pieces,
    vectors_of: Callable[[Any], np.ndarray],
    folder: str | Path,
    *,
    about: dict[str, Any],
    max_vectors: int,
    seed: int = 0,
    num_shards: int = 8,
) -> VectorShards:
    """Writes vectors of `pieces` to `folder` as .npy shards; goes on with those that are missing.

    Every piece gives at most its share of `max_vectors`, rows drawn at random: neighbours in time
    are alike, and a long piece should not outweigh the others.

    Args:
      pieces: random access, from a thread; piece i goes to shard i mod `num_shards`.
      vectors_of: piece -> float [n, D].
      about: what the vectors are of; a folder that says otherwise is refused.
      max_vectors: of the whole set, which bounds the disk space.

    Raises `UserError` where `folder` holds other vectors.
    """
    folder, count = Path(folder), len(pieces)
    share = max(1, max_vectors // max(1, count))
    manifest.claim(folder, {"kind": KIND, **about, "pieces": count, "share": share, "seed": seed})
    num_shards = min(num_shards, count)
    paths = [folder / f"vectors-{i:05d}-of-{num_shards:05d}.npy" for i in range(num_shards)]
    with progress.Progress("extract vectors", total=count, unit="pieces") as bar:
        for shard, path in enumerate(paths):
            mine = range(shard, count, num_shards)
            if path.exists():
                bar.update(len(mine))
                continue
            rows = []
            for index, piece in zip(mine, prefetch.ahead(pieces.__getitem__, mine)):
                vectors = vectors_of(piece)
                rng = np.random.default_rng([seed, index])
                keep = rng.permutation(len(vectors))[:share]
                rows.append(np.asarray(vectors, np.float32)[np.sort(keep)])
                bar.update(vectors=sum(map(len, rows)))
            _write(path, rows)
    # Pieces too short for a vector may leave a file with nothing but its header.
    return VectorShards([path for path in paths if len(np.load(path, mmap_mode="r"))])


def _write(path: Path, rows: Iterable[np.ndarray]) -> None:
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(list(rows)), allow_pickle=False)
