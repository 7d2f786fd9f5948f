"""k-means: against scikit-learn, over devices, after a kill; codebooks on disk."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from mgen import manifest, vectors
from mgen.errors import UserError
from mgen.kmeans import Codebook, KMeansConfig, batches, fit, fit_array

BATCH = 128


def blobs(count: int, dim: int = 8, centres: int = 12, seed: int = 0) -> np.ndarray:
    """Rows around well separated centres."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centres, dim)) * 4
    rows = means[rng.integers(centres, size=count)] + rng.normal(size=(count, dim))
    return rows.astype(np.float32)


def write(folder: Path, rows: np.ndarray, parts: int = 3) -> vectors.VectorShards:
    paths = [folder / f"{i}.npy" for i in range(parts)]
    for path, part in zip(paths, np.array_split(rows, parts)):
        np.save(path, part)
    return vectors.VectorShards(paths)


@pytest.fixture
def shards(tmp_path: Path) -> vectors.VectorShards:
    # No multiple of the batch: some batches are short.
    return write(tmp_path, blobs(3000))


def config(**overrides: Any) -> KMeansConfig:
    small = dict(size=12, batch=BATCH, passes=2, reseed=0.0, chunk_bytes=4 * BATCH * 4 * 8)
    return KMeansConfig(**{**small, **overrides})


def test_minibatch_equals_scikit_learn(shards: vectors.VectorShards) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    start = shards.sample(12, np.random.default_rng(1))
    settings = config()
    peer = cluster.MiniBatchKMeans(12, init=start, n_init=1, reassignment_ratio=0.0)
    seen = 0
    for number in range(settings.passes):
        for batch in batches(shards, settings, 0, number):
            peer.partial_fit(batch)
            seen += len(batch)
    assert seen == settings.passes * len(shards)
    found, _ = fit(shards, settings, start=start)
    # float32: fifty updates of values near ten, summed in another order.
    np.testing.assert_allclose(found[0], peer.cluster_centers_, atol=2e-4)
    assert np.abs(found[0] - start).max() > 0.5


def test_lloyd_equals_scikit_learn(shards: vectors.VectorShards) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    rows = np.concatenate([shards.read(*block) for block in shards.blocks(5000)])
    start = shards.sample(12, np.random.default_rng(2))
    peer = cluster.KMeans(12, init=start, n_init=1, max_iter=6, tol=0.0, algorithm="lloyd")
    peer.fit(rows)
    found, errors = fit(shards, config(algorithm="lloyd", passes=6), start=start)
    # float32, and the peer subtracts the mean first.
    np.testing.assert_allclose(found[0], peer.cluster_centers_, atol=1e-4)
    settled, settled_errors = fit(
        shards, config(algorithm="lloyd", passes=50, tolerance=1e-7), start=start
    )
    assert settled_errors[0] <= errors[0]
    np.testing.assert_allclose(settled_errors[0] * len(rows), _inertia(rows, settled), rtol=1e-4)


def _inertia(rows: np.ndarray, books: np.ndarray) -> float:
    """Of residual quantisation, by definition."""
    left = rows.astype(np.float64)
    for book in books:
        distances = ((left[:, None] - book[None]) ** 2).sum(-1)
        left = left - book[distances.argmin(1)]
    return float((left**2).sum())


def test_levels_quantise_what_is_left(shards: vectors.VectorShards) -> None:
    rows = shards.sample(len(shards), np.random.default_rng(0))
    found, errors = fit(shards, config(levels=4, size=8, passes=3))
    assert found.shape == (4, 8, 8) and found.dtype == np.float32
    inertias = [_inertia(rows, found[:k]) for k in range(5)]
    assert all(after < 0.95 * before for before, after in itertools.pairwise(inertias)), inertias
    assert errors == sorted(errors, reverse=True)
    book = Codebook(found)
    codes = book.encode(rows)
    assert codes.dtype == np.int32 and codes.shape == (len(rows), 4)
    for k in range(1, 5):
        error = ((rows - book.decode(codes[:, :k])).astype(np.float64) ** 2).sum()
        np.testing.assert_allclose(error, inertias[k], rtol=1e-4)


def test_array_in_memory_equals_one_file(tmp_path: Path) -> None:
    rows = blobs(1000)
    shards = write(tmp_path, rows, parts=1)
    found = fit_array(rows, config(reseed=0.1), seed=5)
    np.testing.assert_array_equal(found.vectors, fit(shards, config(reseed=0.1, seed=5))[0])
    assert np.abs(found.vectors - fit_array(rows, config(reseed=0.1), seed=6).vectors).max() > 0.1


def test_start_spreads_and_dead_centroids_come_back(tmp_path: Path) -> None:
    rows = blobs(4000, centres=16, seed=3)
    shards = write(tmp_path, rows)
    settings = config(size=16, algorithm="lloyd", passes=20)
    spread, _ = fit(shards, settings)
    same = np.repeat(rows[:1], 16, axis=0) + np.linspace(0, 1e-3, 16, dtype=np.float32)[:, None]
    far = np.concatenate([same[:2], same[2:] + 1000.0])
    stuck, _ = fit(shards, settings, start=far)
    mended, _ = fit(shards, config(size=16, passes=8, reseed=0.05), start=far)
    # k-means++ finds most of the 16 blobs; 14 centroids a thousand away find none.
    noise = 8.0 * len(rows)
    assert _inertia(rows, spread) < 1.6 * noise
    assert _inertia(rows, stuck) > 4 * noise
    assert _inertia(rows, mended) < 2.2 * noise


FIT = """
import jax, sys
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
if len(sys.argv) > 4:
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[4]}", 2, int(sys.argv[5]))
import numpy as np
from pathlib import Path
from mgen.kmeans import KMeansConfig, fit
from mgen.sharding.mesh import make_mesh
from mgen.vectors import VectorShards
shards = VectorShards(sorted(Path(sys.argv[2]).glob("*.npy")))
found = []
for algorithm in ("minibatch", "lloyd"):
    config = KMeansConfig(size=12, levels=2, algorithm=algorithm, batch=128, passes=2)
    found.append(fit(shards, config, mesh=make_mesh("data=-1"))[0])
if jax.process_index() == 0:
    np.save(sys.argv[3], np.stack(found))
"""


def test_eight_devices_and_two_processes_equal_one(tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    shards = write(folder, blobs(3000))
    one = []
    for algorithm in ("minibatch", "lloyd"):
        settings = KMeansConfig(size=12, levels=2, algorithm=algorithm, batch=128, passes=2)
        one.append(fit(shards, settings)[0])
    port = str(20000 + os.getpid() % 20000)
    runs = {"eight": [["8"]], "two": [["2", port, "0"], ["2", port, "1"]]}
    for name, processes in runs.items():
        out = tmp_path / f"{name}.npy"
        commands = [
            [sys.executable, "-c", FIT, devices, str(folder), str(out), *more]
            for devices, *more in processes
        ]
        started = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
        # float32; only the order of the sums differs.
        np.testing.assert_allclose(np.load(out), np.stack(one), atol=2e-4, err_msg=name)


MANY = KMeansConfig(size=32, levels=3, batch=256, passes=40, chunk_bytes=256 * 4 * 8)
KILLED = """
import sys
from pathlib import Path
from mgen.kmeans import KMeansConfig, fit
from mgen.vectors import VectorShards
shards = VectorShards(sorted(Path(sys.argv[1]).glob("*.npy")))
config = KMeansConfig(size=32, levels=3, batch=256, passes=40, chunk_bytes=256 * 4 * 8)
fit(shards, config, state_file=sys.argv[2], save_every=3)
"""


def test_killed_run_goes_on_to_identical_centroids(tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    shards = write(folder, blobs(3000))
    state = tmp_path / "state"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(state)])
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run finished before it was killed"
    with safe_open(state, "np") as file:
        assert len(file.get_tensor("done")) < MANY.levels
    resumed, _ = fit(shards, MANY, state_file=state)
    np.testing.assert_array_equal(resumed, fit(shards, MANY)[0])


def test_state_of_another_run_is_refused(shards: vectors.VectorShards, tmp_path: Path) -> None:
    state = tmp_path / "state"
    fit(shards, config(), state_file=state)
    with pytest.raises(UserError, match="size is 12, expected 13"):
        fit(shards, config(size=13), state_file=state)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        fit(shards, config(), state_file=state)


def test_codebook_on_disk(tmp_path: Path) -> None:
    vectors_ = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    book = Codebook(vectors_, {"parents": {"encoder": "abc"}, "layer": 3})
    book.save(tmp_path / "book")
    again = Codebook.load(tmp_path / "book")
    assert np.array_equal(again.vectors, vectors_) and again.about["layer"] == 3
    assert again.fingerprint == book.fingerprint
    with pytest.raises(UserError, match="codebook of width 3"):
        again.encode(np.zeros((4, 2), np.float32))
    assert again.encode(np.zeros((0, 3), np.float32)).shape == (0, 2)
    path = tmp_path / "book" / "codebook.safetensors"
    Codebook(vectors_ + 1).save(tmp_path / "other")
    path.write_bytes((tmp_path / "other" / "codebook.safetensors").read_bytes())
    with pytest.raises(UserError, match="not the vectors"):
        Codebook.load(tmp_path / "book")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="not a readable codebook"):
        Codebook.load(tmp_path / "book")
    manifest.write(tmp_path / "book", {"kind": "model"})
    with pytest.raises(UserError, match="kind is 'model', expected 'codebook'"):
        Codebook.load(tmp_path / "book")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"size": 5000}, "3000 vectors"),
        ({"algorithm": "elkan"}, "elkan"),
        ({"passes": 0}, "passes is 0"),
    ],
)
def test_bad_settings(shards: vectors.VectorShards, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit(shards, config(**overrides))


def test_vectors_that_are_not_finite(tmp_path: Path) -> None:
    rows = blobs(600)
    rows[5, 2] = np.nan
    with pytest.raises(UserError, match="not finite"):
        fit(write(tmp_path, rows), config())


def test_bad_vector_files(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for array, words in (
        (np.zeros((3,), np.float32), "expected rows"),
        (np.zeros((3, 2), int), "expected rows"),
    ):
        np.save(path, array)
        with pytest.raises(UserError, match=words):
            vectors.VectorShards([path])
    np.save(path, blobs(10))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        vectors.VectorShards([path])
    path.write_text("text")
    with pytest.raises(UserError, match="not a readable"):
        vectors.VectorShards([path])


def test_extraction_is_bounded_and_resumes(tmp_path: Path) -> None:
    pieces = [np.full((20 + i, 4), i, np.float32) for i in range(10)]
    about = {"encoder": "abc"}
    seen: list[int] = []

    def features(piece: np.ndarray) -> np.ndarray:
        seen.append(int(piece[0, 0]))
        return piece

    options = dict(about=about, max_vectors=50, num_shards=4)
    shards = vectors.extract(pieces, features, tmp_path, **options)
    assert len(shards) == 50 and shards.dim == 4
    rows = shards.sample(50, np.random.default_rng(0))
    assert np.unique(rows[:, 0], return_counts=True)[1].tolist() == [5] * 10
    seen.clear()
    next(tmp_path.glob("vectors-00001*")).unlink()
    again = vectors.extract(pieces, features, tmp_path, **options)
    assert seen == [1, 5, 9]
    assert np.array_equal(again.sample(50, np.random.default_rng(0)), rows)
    with pytest.raises(UserError, match="encoder is 'abc', expected 'def'"):
        vectors.extract(pieces, features, tmp_path, **{**options, "about": {"encoder": "def"}})
