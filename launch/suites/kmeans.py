"""k-means over vectors on disk that are read once, against scikit-learn's `MiniBatchKMeans`.

Both take the same mini-batches in the same order from the same start, each in a process of its own,
one after the other, as many threads as there are cores. Our time includes reading the files, the
peer's is that of `partial_fit` alone. Their centroids must serve a sample equally well. That memory
does not grow with the vectors is checked: after a fit on one file the fit on all of them adds at
most a chunk, and both at most `CHUNKS` chunks and `PROGRAM` to a process that has loaded the
libraries.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mgen import kmeans, progress
from mgen.errors import UserError
from mgen.vectors import VectorShards

VECTORS, DIM, SHARDS = 10_000_000, 64, 10  # 2.4 GiB of float32
CONFIG = kmeans.KMeansConfig(size=1024, batch=8192, passes=1, reseed=0.0)
CHUNKS, PROGRAM = 6, 256 << 20
# Of the mean squared distance: a vector half way between two centroids goes to either, by rounding.
TOLERANCE = 1e-3
SAMPLE = 20_000


def run() -> list[dict[str, Any]]:
    """Rows {suite, case, unit, ours, peer, ratio}: vectors a second, peak memory."""
    try:
        import sklearn.cluster  # noqa: F401
    except ImportError as error:
        raise UserError(f"kmeans: {error}; install the extra `dev`") from error
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder)
        sides = {}
        for side in ("ours", "peer"):
            command = [sys.executable, "-m", "mgen.launch.suites.kmeans", name, side]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            sides[side] = json.loads(done.stdout.splitlines()[-1])
        sample = VectorShards(sorted(folder.glob("*.npy"))).sample(SAMPLE, np.random.default_rng(2))
        errors = {side: _error(sample, np.load(folder / f"{side}.centroids")) for side in sides}
    if abs(errors["ours"] / errors["peer"] - 1.0) > TOLERANCE:
        raise AssertionError(f"mean squared distances differ: {errors}")
    loaded, one_file, peak = (sides["ours"][name] for name in ("loaded", "one_file", "peak"))
    if peak > min(one_file + CONFIG.chunk_bytes, loaded + CHUNKS * CONFIG.chunk_bytes + PROGRAM):
        found = [size >> 20 for size in (loaded, one_file, peak)]
        raise AssertionError(f"peak memory at start, after one file, after all: {found} MiB")
    case = f"{VECTORS / 1e6:g}M x {DIM}, {CONFIG.size} centroids, one pass"
    speed = {side: VECTORS / about["seconds"] for side, about in sides.items()}
    memory = {side: about["peak"] / 2**20 for side, about in sides.items()}
    return [
        dict(
            suite="kmeans",
            case=case,
            unit="vectors/s",
            **speed,
            ratio=speed["ours"] / speed["peer"],
        ),
        dict(
            suite="kmeans",
            case=f"{case}, peak memory",
            unit="MiB",
            **memory,
            ratio=memory["peer"] / memory["ours"],
        ),
    ]


def _write(folder: Path) -> None:
    """Rows around as many centres as there are centroids."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CONFIG.size, DIM), dtype=np.float32)
    for shard in progress.track(range(SHARDS), "write vectors", unit="files"):
        rows = centres[rng.integers(CONFIG.size, size=VECTORS // SHARDS)]
        rows += 0.5 * rng.standard_normal(rows.shape, dtype=np.float32)
        np.save(folder / f"{shard:02}.npy", rows)


def _error(sample: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid."""
    book = kmeans.Codebook(centroids[None])
    return float(np.square(sample - book.decode(book.encode(sample))).sum(axis=1).mean())


def _fit(folder: Path, side: str) -> None:
    """One side in this process; prints seconds and bytes of memory as JSON."""
    shards = VectorShards(sorted(folder.glob("*.npy")))
    start = shards.sample(CONFIG.size, np.random.default_rng(1))
    if side == "ours":
        memory = {"loaded": peak()}
        # Also compiles: the chunks of one file have the same shape.
        kmeans.fit(VectorShards(sorted(folder.glob("*.npy"))[:1]), CONFIG, start=start)
        memory["one_file"] = peak()
        begin = time.perf_counter()
        centroids = kmeans.fit(shards, CONFIG, start=start)[0][0]
        seconds = time.perf_counter() - begin
    else:
        from sklearn.cluster import MiniBatchKMeans

        peer = MiniBatchKMeans(CONFIG.size, init=start, n_init=1, reassignment_ratio=0.0)
        memory, seconds = {}, 0.0
        for batch in kmeans.batches(shards, CONFIG, 0, 0):
            begin = time.perf_counter()
            peer.partial_fit(batch)
            seconds += time.perf_counter() - begin
        centroids = peer.cluster_centers_
    with open(folder / f"{side}.centroids", "wb") as file:
        np.save(file, centroids)
    print(json.dumps({"seconds": seconds, "peak": peak(), **memory}))


def peak() -> int:
    """Bytes that this process had in memory at most (Linux; `getrusage` would count its parent)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    _fit(Path(sys.argv[1]), sys.argv[2])
