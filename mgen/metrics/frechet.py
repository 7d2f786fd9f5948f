"""Fréchet distance of two sets of embeddings, each taken for a Gaussian (Dowson and Landau 1982;
of audio Kilgour et al. 2019):

  (1)  |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1^1/2 C_2 C_1^1/2)^1/2

the square of the distance, as is usual. It says something beside others of the same embedding and
of as many rows only: the fewer rows, the larger it is (Gui et al. 2024). So its name is that of the
embedding: `fad_logmel` is no published figure's equal.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mgen.audio import mel
from mgen.errors import UserError
from mgen.typing import Array, Bool, Float, Int, ndarray

# Of the log-mel embedding.
PATCH = 0.96  # s, that of VGGish
BANDS = 64


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (sum of (x - mean)(x - mean)^T) of rows, in float64."""

    count: int
    mean: Float[ndarray, " D"]
    scatter: Float[ndarray, "D D"]

    @classmethod
    def of(cls, rows: Float[ndarray, "N D"]) -> "Moments":
        """Raises `UserError` where there are no rows, or values that are not finite."""
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or not len(rows):
            raise UserError(f"embeddings of shape {rows.shape}, expected (N, D) with N at least 1")
        if not np.isfinite(rows).all():
            row = int(np.argmax(~np.isfinite(rows).all(axis=1)))
            raise UserError(f"embeddings: row {row} is not finite")
        mean = rows.mean(axis=0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean))

    def merge(self, other: "Moments") -> "Moments":
        """Of the rows of both (Chan et al. 1983, equation 2.1)."""
        if self.mean.shape != other.mean.shape:
            raise UserError(
                f"embeddings of {len(self.mean)} and {len(other.mean)} dimensions, expected as many"
            )
        count = self.count + other.count
        apart = other.mean - self.mean
        between = np.outer(apart, apart) * (self.count * other.count / count)
        mean = self.mean + apart * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def std(self) -> Float[ndarray, " D"]:
        """Deviation of the rows in each dimension."""
        return np.sqrt(np.diagonal(self.scatter) / self.count)

    def covariance(self) -> Float[ndarray, "D D"]:
        """Unbiased; raises `UserError` for a single row."""
        if self.count < 2:
            raise UserError("embeddings of 1 row, expected 2 at least for a covariance")
        return self.scatter / (self.count - 1)


def frechet(reference: Float[ndarray, "N D"], other: Float[ndarray, "M D"]) -> float:
    """Equation (1), of the rows' means and unbiased covariances.

    Raises:
      UserError: fewer than two rows, other dimensions, values that are not finite.
    """
    return frechet_of_moments(Moments.of(reference), Moments.of(other))


def frechet_of_moments(reference: Moments, other: Moments) -> float:
    """`frechet` of what was summed up before."""
    if reference.mean.shape != other.mean.shape:
        raise UserError(
            f"embeddings of {len(other.mean)} dimensions, expected the reference's "
            f"{len(reference.mean)}"
        )
    roots = _factor(reference.covariance()), _factor(other.covariance())
    # The eigenvalues of C_1^1/2 C_2 C_1^1/2 are the squares of these: to square them first would
    # cost half of the digits, and singular covariances of equal sets would be apart by 1e-8.
    common = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    spread = sum(np.square(root).sum() for root in roots) - 2 * common
    return max(float(np.square(reference.mean - other.mean).sum() + spread), 0.0)


def logmel(clips: Sequence[Float[ndarray, "T C"]], sample_rate: int) -> Float[ndarray, "P D"]:
    """The embedding of `fad_logmel`: mean and deviation over 0.96 s of 64 log-mel bands.

    Windows of 25 ms or a little more, every 10 ms, of the mean of the channels. A clip of less than
    0.96 s is one row; otherwise what is left behind its last 0.96 s does not count.

    Returns:
      float32 [P, 128], clip after clip.
    """
    # Clip by clip: spectrograms take more memory than the audio.
    return np.concatenate([_patches(clip, sample_rate) for clip in clips])


def fad_logmel(
    reference: Sequence[Float[ndarray, "T C"]],
    other: Sequence[Float[ndarray, "T C"]],
    sample_rate: int,
) -> float:
    """Fréchet distance of two sets of clips in the embedding `logmel`; errors as `frechet`."""
    return frechet(logmel(reference, sample_rate), logmel(other, sample_rate))


def sub_fad(
    batches: Iterable[Float[ndarray, "B S T C"]],
    stems: Sequence[str],
    generate: Callable[[ndarray, ndarray, ndarray], Float[ndarray, "B S T C"]],
    embed: Callable[[Float[ndarray, "B T C"]], Float[ndarray, "N D"]],
) -> dict[tuple[str, ...], float]:
    """Fréchet distance of mixes in part generated to the mixes of the data (Mariani et al. 2024,
    sub-FAD), by the stems that were given: all choices of one to S - 1 of them.

    Args:
      batches: stems of held-out clips.
      generate: called with these stems, zeros in place of those that are not given, with which are
        given (bool [S]) and with the number of each clip (int [B], its seed); of what it makes the
        stems that were not given are taken.
      embed: the embedding of mixes.
    """
    everything = tuple(stems)
    choices = [
        given
        for size in range(1, len(stems) + 1)
        for given in itertools.combinations(everything, size)
    ]
    moments: dict[tuple[str, ...], Moments] = {}
    clips = 0
    for batch in batches:
        seeds = np.arange(clips, clips + len(batch))
        clips += len(batch)
        for given in choices:
            if given == everything:
                mixes = batch.sum(axis=1)
            else:
                mixes = _partly_generated(batch, np.isin(everything, given), seeds, generate)
            found = Moments.of(embed(mixes))
            moments[given] = moments[given].merge(found) if given in moments else found
    if not clips:
        raise UserError("sub-FAD: no clips, expected some")
    reference = moments.pop(everything)
    return {given: frechet_of_moments(reference, found) for given, found in moments.items()}


def _partly_generated(
    batch: Float[ndarray, "B S T C"],
    given: Bool[ndarray, " S"],
    seeds: Int[ndarray, " B"],
    generate: Callable[[ndarray, ndarray, ndarray], Float[ndarray, "B S T C"]],
) -> Float[ndarray, "B T C"]:
    mask = given[None, :, None, None]
    made = np.asarray(generate(np.where(mask, batch, 0.0), given, seeds))
    if made.shape != batch.shape:
        raise UserError(f"sub-FAD: generated stems of shape {made.shape}, expected {batch.shape}")
    return np.where(mask, batch, made).sum(axis=1)


def _factor(covariance: Float[ndarray, "D D"]) -> Float[ndarray, "D D"]:
    """F with F F^T the covariance; eigenvalues that rounding made negative are zeros."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))[None]


@functools.partial(jax.jit, static_argnames="sample_rate")
def _patches(clip: Float[Array, "T C"], sample_rate: int) -> Float[Array, "P D"]:
    hop = round(0.01 * sample_rate)
    n_fft = 1 << (int(0.025 * sample_rate) - 1).bit_length()
    bands = mel.log_mel(
        clip.mean(axis=-1), sample_rate=sample_rate, n_fft=n_fft, hop=hop, n_mels=BANDS
    )
    length = min(round(PATCH * sample_rate / hop), len(bands))
    patches = bands[: len(bands) // length * length].reshape(-1, length, BANDS)
    return jnp.concatenate([patches.mean(axis=1), patches.std(axis=1)], axis=-1)
