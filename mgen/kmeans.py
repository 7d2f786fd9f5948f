"""Codebooks by k-means: one level turns features into semantic tokens, several quantise what the
levels before left over (the RVQ of a joint embedding).

  mini-batch  n_j += m_j,  e_j += (sum of its rows - m_j e_j) / n_j   (Sculley 2010: rate 1 / n_j)
  lloyd       e_j = mean of the rows nearest to it, once a pass
  start       k-means++ (Arthur and Vassilvitskii 2007), greedy, on a sample

Vectors are streamed from disk in chunks of `chunk_bytes`; about six of them are in memory at once,
whatever the number of vectors. A chunk is one compiled call; its batches are split over the mesh,
so that sums are reduced over all devices. The state is saved every few chunks, and a run that was
killed goes on to bit-identical centroids.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mgen import files, manifest, prefetch, tree
from mgen.errors import UserError
from mgen.nn import cluster
from mgen.progress import Progress
from mgen.typing import Array, Float, Int
from mgen.vectors import ArrayVectors, Vectors

KIND = "codebook"
ENCODE_ROWS = 4096  # of one compiled call
_FILE = "codebook.safetensors"


@dataclasses.dataclass(frozen=True)
class Codebook:
    """Vectors float32 [K, V, D] of K levels, and what its manifest says (parents, layer,
    frame_rate, ...)."""

    vectors: np.ndarray
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vectors: what the manifests of tokens name."""
        return tree.fingerprint(self.vectors)

    def encode(self, x: Float[np.ndarray, "N D"]) -> Int[np.ndarray, "N K"]:
        """Codes int32 of every row; `UserError` where the width is another."""
        levels, _, width = self.vectors.shape
        if x.ndim != 2 or x.shape[1] != width:
            raise UserError(f"vectors {x.shape} for a codebook of width {width}")
        parts = [np.zeros((0, levels), np.int32)]
        for at in range(0, len(x), ENCODE_ROWS):
            rows = np.asarray(x[at : at + ENCODE_ROWS], np.float32)
            # Powers of two: pieces of every length share a few programs.
            size = max(64, 1 << (len(rows) - 1).bit_length())
            padded = np.pad(rows, ((0, size - len(rows)), (0, 0)))
            parts.append(np.asarray(_encode(padded, self._on_device))[: len(rows)])
        return np.concatenate(parts)

    def decode(self, codes: Int[np.ndarray, "N k"]) -> Float[np.ndarray, "N D"]:
        """Sum of the vectors of the first k levels."""
        levels = np.arange(codes.shape[1])
        return self.vectors[levels, codes].sum(axis=1, dtype=np.float32)

    def save(self, folder: str | Path) -> None:
        """Writes the vectors and the manifest, which comes last: a folder is whole or refused."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _save_tensors(folder / _FILE, {"vectors": self.vectors})
        levels, size, width = self.vectors.shape
        shape = dict(levels=levels, size=size, dim=width)
        about = {**self.about, "kind": KIND, "fingerprint": self.fingerprint, **shape}
        manifest.write(folder, about)

    @classmethod
    def load(cls, folder: str | Path) -> "Codebook":
        """Raises `UserError` where `folder` holds no codebook, or a damaged one."""
        about = manifest.read(folder)
        manifest.require(about, Path(folder) / manifest.FILE, kind=KIND)
        path = Path(folder) / _FILE
        try:
            book = cls(load_file(path)["vectors"], about)
        except Exception as error:  # safetensors has an exception type of its own
            raise UserError(f"{path}: not a readable codebook ({_line(error)})") from error
        if book.fingerprint != about.get("fingerprint"):
            raise UserError(f"{path}: not the vectors that its {manifest.FILE} was written for")
        return book

    @functools.cached_property
    def _on_device(self) -> Array:
        return jnp.asarray(self.vectors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeansConfig:
    """How a codebook is fitted.

    Attributes:
      size: V, centroids of a level; levels: K.
      algorithm: "minibatch", or "lloyd" for full passes.
      batch: rows of a mini-batch (of lloyd: rows of a compiled step), over all devices.
      passes: over the vectors, for each level.
      tolerance: a level ends early after a pass that lowers the error by less than this share.
      reseed: a centroid with less than this share of the mean number of rows is dead and starts
        again from a row, drawn with probability proportional to its squared distance; 0 never. In
        mini-batch k-means after every chunk, in lloyd after every pass, but not after the last.
      start_rows: sample of the k-means++ start; 0 is 16 for each centroid, at least 8192.
      chunk_bytes: of vectors that are read at once.
      seed: of samples and orders.
    """

    size: int
    levels: int = 1
    algorithm: str = "minibatch"
    batch: int = 4096
    passes: int = 4
    tolerance: float = 0.0
    reseed: float = 0.01
    start_rows: int = 0
    chunk_bytes: int = 64 << 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.algorithm not in ("minibatch", "lloyd"):
            raise UserError(f"algorithm is {self.algorithm!r}, expected 'minibatch' or 'lloyd'")
        for name in ("size", "levels", "batch", "passes", "chunk_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")


@dataclasses.dataclass
class _State:
    """Everything a run needs to go on: arrays on the host."""

    done: np.ndarray  # [k, V, D]: finished levels
    centroids: np.ndarray  # [V, D]
    counts: np.ndarray  # float32 [V]: rows each centroid has seen (of lloyd: in this pass)
    sums: np.ndarray  # float64 [V, D]: of lloyd, in this pass
    error: np.ndarray  # float64 [2]: summed squared distances and rows of this pass
    history: np.ndarray  # float64 [passes]: mean squared distance of the passes of this level
    errors: np.ndarray  # float64 [k]: the last of each finished level
    position: np.ndarray  # int64 [2]: pass and chunk to come


def fit(
    vectors: Vectors,
    config: KMeansConfig,
    *,
    start: Float[np.ndarray, "V D"] | None = None,
    state_file: str | Path | None = None,
    save_every: int = 16,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, list[float]]:
    """Codebook vectors float32 [K, V, D] and the mean squared error that each level left.

    Args:
      start: centroids that the first level starts from, instead of k-means++.
      state_file: where the state is kept; a run with the same vectors and config goes on from it.
      save_every: chunks between savings.
      mesh: batches are split over its axes `data` and `fsdp`. Every process reads all vectors.

    Raises:
      UserError: fewer vectors than centroids, a batch that the devices do not divide, or a state of
        another run.
    """
    if len(vectors) < config.size:
        raise UserError(f"{len(vectors)} vectors, expected at least one for each of {config.size}")
    devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch % devices:
        raise UserError(f"batch is {config.batch}, expected a multiple of {devices} devices")
    run = _Run(vectors, config, mesh)
    path = None if state_file is None else Path(state_file)
    state = _load_state(path, run.about()) or _first_state(vectors.dim, config.size)
    while len(state.done) < config.levels:
        if not state.centroids.size:
            state.centroids = run.start(state.done) if start is None or len(state.done) else start
        _fit_level(run, state, path, save_every)
    return state.done, [float(error) for error in state.errors]


def fit_array(
    x: Float[np.ndarray, "N D"], config: KMeansConfig, seed: int | None = None
) -> Codebook:
    """Codebook of vectors in memory; `seed`, if given, instead of the config's. Errors as `fit`."""
    if seed is not None:
        config = dataclasses.replace(config, seed=seed)
    return Codebook(fit(ArrayVectors(x), config)[0])


def batches(
    vectors: Vectors, config: KMeansConfig, level: int, number: int
) -> Iterator[np.ndarray]:
    """The mini-batches [n <= batch, D] of a pass in the order in which `fit` sees them."""
    plan = _Plan(vectors, config)
    for chunk in range(plan.chunks):
        rows, weights = plan.load(level, number, chunk)
        for batch, weight in zip(rows, weights):
            if weight.any():
                yield batch[weight > 0]


def _fit_level(run: "_Run", state: _State, path: Path | None, save_every: int) -> None:
    config, level, plan = run.config, len(state.done), run.plan
    lloyd = config.algorithm == "lloyd"
    name = f"k-means level {level + 1}/{config.levels}"
    total, done = config.passes * plan.chunks, int(state.position @ [plan.chunks, 1])
    with Progress(name, total, "chunks", done) as bar:
        todo = list(itertools.product(range(config.passes), range(plan.chunks)))[done:]
        chunks = prefetch.ahead(lambda place: plan.load(level, *place), todo)
        for index, ((number, chunk), (rows, weights)) in enumerate(zip(todo, chunks)):
            run.update(state, rows, weights)
            pass_ends = chunk + 1 == plan.chunks
            if lloyd and pass_ends:
                means = state.sums / np.maximum(state.counts, 1.0)[:, None]
                alive = state.counts[:, None] > 0
                state.centroids = np.where(alive, means, state.centroids).astype(np.float32)
            last = number + 1 == config.passes and pass_ends
            if config.reseed and not last and (pass_ends or not lloyd):
                run.reseed(state, rows[weights > 0], (level, number, chunk))
            bar.update(error=float(state.error[0] / state.error[1]))
            state.position = np.array([number + pass_ends, 0 if pass_ends else chunk + 1])
            if pass_ends and _end_pass(state, config, lloyd):
                break
            if path is not None and (index + 1) % save_every == 0:
                _save_state(path, state, run.about())
    state.done = np.concatenate([state.done, state.centroids[None]])
    state.errors = np.append(state.errors, state.history[-1])
    fresh = _first_state(run.vectors.dim, config.size)
    for field in ("centroids", "counts", "sums", "error", "history", "position"):
        setattr(state, field, getattr(fresh, field))
    if path is not None:
        _save_state(path, state, run.about())


def _end_pass(state: _State, config: KMeansConfig, lloyd: bool) -> bool:
    """Starts the sums of the next pass; whether the level is done."""
    error = state.error[0] / state.error[1]
    before = state.history[-1] if len(state.history) else np.inf
    state.history = np.append(state.history, error)
    state.error = np.zeros(2)
    if lloyd:
        state.counts, state.sums = np.zeros_like(state.counts), np.zeros_like(state.sums)
    return bool(before - error < config.tolerance * before)


class _Plan:
    """Which rows are read when: blocks in random order, the rows of a chunk mixed."""

    def __init__(self, vectors: Vectors, config: KMeansConfig):
        self._vectors, self._config = vectors, config
        self._blocks = vectors.blocks(config.batch)
        self._at_once = max(1, config.chunk_bytes // (4 * vectors.dim * config.batch))
        self._at_once = min(self._at_once, len(self._blocks))
        self.chunks = -(-len(self._blocks) // self._at_once)

    def load(self, level: int, number: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [n, batch, D] of a chunk of pass `number`, and weights [n, batch]: 0 where it is
        filled up."""
        config, seed = self._config, [self._config.seed, level, number]
        order = np.random.default_rng(seed).permutation(len(self._blocks))
        mine = [self._blocks[i] for i in order[chunk * self._at_once : (chunk + 1) * self._at_once]]
        count = sum(rows for _, rows in mine)
        places = np.random.default_rng([*seed, chunk]).permutation(count)
        rows = np.zeros((self._at_once * config.batch, self._vectors.dim), np.float32)
        at = 0
        for first, size in mine:
            rows[places[at : at + size]] = self._vectors.read(first, size)
            at += size
        shape = (self._at_once, config.batch)
        weights = (np.arange(len(rows)) < count).astype(np.float32)
        return rows.reshape(*shape, -1), weights.reshape(shape)


class _Run:
    """The vectors, the config and the devices of one fit."""

    def __init__(self, vectors: Vectors, config: KMeansConfig, mesh: Mesh | None):
        self.vectors, self.config, self.plan = vectors, config, _Plan(vectors, config)
        self._mesh = mesh
        # Every process needs the whole of what comes out.
        whole = None if mesh is None else NamedSharding(mesh, P())
        step: Any = _lloyd_chunk if config.algorithm == "lloyd" else _minibatch_chunk
        self._chunk = jax.jit(step, out_shardings=whole)

    def about(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.config), "vectors": self.vectors.about()}

    def start(self, done: np.ndarray) -> np.ndarray:
        """k-means++ on a sample of what the finished levels leave."""
        config = self.config
        rng = np.random.default_rng([config.seed, len(done), 1 << 20])
        count = max(config.start_rows or max(16 * config.size, 8192), config.size)
        sample = jnp.asarray(self.vectors.sample(count, rng))
        key = jax.random.fold_in(jax.random.key(config.seed), len(done))
        return np.asarray(_plus_plus(key, _left_over(sample, jnp.asarray(done)), config.size))

    def update(self, state: _State, rows: np.ndarray, weights: np.ndarray) -> None:
        """Takes one chunk into `state`."""
        lloyd = self.config.algorithm == "lloyd"
        placed = (self._put(rows), self._put(weights))
        constants = (self._put(state.done, P()), self._put(state.centroids, P()))
        if lloyd:
            sums, counts, error = jax.device_get(self._chunk(*constants, *placed))
            state.sums = state.sums + sums
            state.counts = state.counts + counts
        else:
            counts = self._put(state.counts, P())
            found = jax.device_get(self._chunk(*constants, counts, *placed))
            state.centroids, state.counts, error = found
        state.error = state.error + [error, weights.sum(dtype=np.float64)]
        if not np.isfinite(error):
            raise UserError("the vectors hold values that are not finite")

    def reseed(self, state: _State, rows: np.ndarray, place: tuple[int, int, int]) -> None:
        """Gives dead centroids a new start from rows that are badly served."""
        dead = np.flatnonzero(state.counts < self.config.reseed * state.counts.mean())
        if not len(dead):
            return
        # Some rows of the chunk do; the same ones on every host.
        rows = rows[: max(4096, 4 * len(dead))]
        left = _left_over(jnp.asarray(rows), jnp.asarray(state.done))
        _, distances = cluster.nearest(left, jnp.asarray(state.centroids))
        distances = distances + jnp.sum(jnp.square(left), axis=-1)
        chance = np.maximum(np.asarray(distances, np.float64), 0.0) + 1e-12
        rng = np.random.default_rng([self.config.seed, *place, 1 << 21])
        count = min(len(dead), len(rows))
        picks = rng.choice(len(rows), count, replace=False, p=chance / chance.sum())
        state.centroids, state.counts = np.array(state.centroids), np.array(state.counts)
        state.centroids[dead[:count]] = np.asarray(left)[picks]
        # So that a newcomer moves about as fast as the slowest of the others.
        alive = np.delete(state.counts, dead)
        state.counts[dead[:count]] = alive.min() if len(alive) else 0.0

    def _put(self, array: np.ndarray, spec: P = P(None, ("data", "fsdp"))) -> Array:  # noqa: B008
        if self._mesh is None:
            return jnp.asarray(array)
        sharding = NamedSharding(self._mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@jax.jit
def _encode(x: Array, codebooks: Array) -> Array:
    return cluster.residual_codes(x, codebooks)[0]


@jax.jit
def _left_over(x: Array, done: Array) -> Array:
    return cluster.residual_codes(x, done)[1] if len(done) else x


def _assigned(done: Array, centroids: Array, x: Array, weights: Array) -> tuple[Array, ...]:
    """Members [V], sums [V, D] and summed squared distance of a batch."""
    x = _left_over(x, done)
    codes, distances = cluster.nearest(x, centroids)
    members, sums = cluster.assignment_sums(x, codes, weights, len(centroids))
    error = jnp.sum(weights * (distances + jnp.sum(jnp.square(x), axis=-1)))
    return members, sums, error


def _minibatch_chunk(
    done: Array, centroids: Array, counts: Array, rows: Array, weights: Array
) -> tuple[Array, Array, Array]:
    def step(carry: tuple[Array, Array], batch: tuple[Array, Array]) -> tuple[Any, Array]:
        centroids, counts = carry
        members, sums, error = _assigned(done, centroids, *batch)
        total = counts + members
        step_size = 1.0 / jnp.maximum(total, 1.0)
        moved = centroids + (sums - members[:, None] * centroids) * step_size[:, None]
        return (moved, total), error

    (centroids, counts), errors = jax.lax.scan(step, (centroids, counts), (rows, weights))
    return centroids, counts, jnp.sum(errors)


def _lloyd_chunk(
    done: Array, centroids: Array, rows: Array, weights: Array
) -> tuple[Array, Array, Array]:
    def step(carry: tuple[Array, ...], batch: tuple[Array, Array]) -> tuple[Any, None]:
        members, sums, error = _assigned(done, centroids, *batch)
        return (carry[0] + sums, carry[1] + members, carry[2] + error), None

    zero = (jnp.zeros_like(centroids), jnp.zeros(len(centroids)), jnp.zeros(()))
    return jax.lax.scan(step, zero, (rows, weights))[0]


@functools.partial(jax.jit, static_argnums=2)
def _plus_plus(key: jax.Array, x: Array, size: int) -> Array:
    """Centroids [size, D] from the rows of `x`, each the best of a few drawn with probability
    proportional to the squared distance to those before."""
    trials = 2 + int(np.log(size))
    squares = jnp.sum(jnp.square(x), axis=-1)

    def distances(rows: Array) -> Array:
        products = jnp.matmul(rows, x.T, precision=jax.lax.Precision.HIGHEST)
        own = jnp.sum(jnp.square(rows), axis=-1)
        return jnp.maximum(squares[None] + own[:, None] - 2.0 * products, 0.0)

    def choose(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centroids, nearest = carry
        reach = jnp.cumsum(nearest)
        draws = jax.random.uniform(jax.random.fold_in(key, i), (trials,)) * reach[-1]
        candidates = x[jnp.clip(jnp.searchsorted(reach, draws), 0, len(x) - 1)]
        with_each = jnp.minimum(nearest[None], distances(candidates))
        best = jnp.argmin(jnp.sum(with_each, axis=1))
        return centroids.at[i].set(candidates[best]), with_each[best]

    first = x[jax.random.randint(key, (), 0, len(x))]
    centroids = jnp.zeros((size, x.shape[1])).at[0].set(first)
    return jax.lax.fori_loop(1, size, choose, (centroids, distances(first[None])[0]))[0]


def _first_state(dim: int, size: int) -> _State:
    return _State(
        done=np.zeros((0, size, dim), np.float32),
        centroids=np.zeros((0, dim), np.float32),
        counts=np.zeros(size, np.float32),
        sums=np.zeros((size, dim)),
        error=np.zeros(2),
        history=np.zeros(0),
        errors=np.zeros(0),
        position=np.zeros(2, np.int64),
    )


def _save_state(path: Path, state: _State, about: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        _save_tensors(path, vars(state), {"about": json.dumps(about)})


def _load_state(path: Path | None, about: dict[str, Any]) -> _State | None:
    if path is None or not path.exists():
        return None
    try:
        with safe_open(path, "np") as file:
            found = json.loads((file.metadata() or {})["about"])
        state = _State(**load_file(path))
    except Exception as error:  # safetensors has an exception type of its own
        raise UserError(f"{path}: damaged ({_line(error)}); delete it to begin again") from error
    manifest.require(found, path, **json.loads(json.dumps(about)))
    return state


def _save_tensors(
    path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with files.replacing(path) as temporary:
        save_file(contiguous, temporary, metadata)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
