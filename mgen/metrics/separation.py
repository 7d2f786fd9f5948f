"""How well the stems of a mix were separated: ratios of energies in dB, of references s, estimates
e and the mix m.

  (1)  SI-SDRi = SI-SDR(s, e) - SI-SDR(s, m), what is gained over the mix as the estimate
  (2)  SDR = 10 log10 |s|^2 / |s - e|^2 in frames of 1 s: BSS Eval v4 (Stöter et al. 2018)
  (3)  SI-SDR as MSDM's release has it, with h = 1e-8:
       10 log10 (|a s|^2 + h) / (|a s - e|^2 + h), a = (<s, e> + h) / (|s|^2 + h)

The channels of a stem are one signal, and the mean of a signal is not removed. A value that does
not exist is NaN; `scores` leaves it out and counts it.

BSS Eval splits s - e into interference, artefacts and a spatial part by filters of 512 taps; its
SDR of images has the sum of the three below, s - e itself, so (2) gives what the `museval` library
gives after minutes of solving for the filters.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.metrics.audio import si_sdr
from mgen.typing import Bool, Float, ndarray

# Evaluation of MSDM's release (`evaluation/evaluate_separation.py`).
WINDOW, OVERLAP = 4.0, 2.0  # s
SILENCE = 1.5e-5  # |x|_2 / samples
EPSILON = 1e-8  # energy, h of equation (3)

FRAME = 1.0  # s, of BSS Eval v4


@dataclasses.dataclass(frozen=True)
class Scores:
    """Averages in dB.

    Attributes:
      stems: of each stem; NaN where it has no value.
      mean: of the stems that have one.
      dropped: values of each stem that were NaN.
    """

    stems: dict[str, float]
    mean: float
    dropped: dict[str, int]


def scores(
    values: Float[ndarray, "N S"],
    stems: Sequence[str],
    average: Callable[[ndarray], Any] = np.mean,
) -> Scores:
    """Averages over tracks, windows or frames: the mean, or `np.median`, which is usual for the
    frames of (2). Rows of several tracks are concatenated first."""
    kept = [column[~np.isnan(column)] for column in values.T]
    averages = [float(average(column)) if len(column) else np.nan for column in kept]
    known = [value for value in averages if not np.isnan(value)]
    return Scores(
        stems=dict(zip(stems, averages)),
        mean=float(np.mean(known)) if known else np.nan,
        dropped={stem: len(values) - len(column) for stem, column in zip(stems, kept)},
    )


def si_sdri(
    references: Float[ndarray, "S T C"],
    mixture: Float[ndarray, "T C"],
    estimates: Float[ndarray, "S T C"],
    stems: Sequence[str],
) -> Float[ndarray, " S"]:
    """Equation (1) on whole tracks; NaN where the reference is all zeros. A silent estimate has the
    -80 dB of `si_sdr`.

    Raises:
      UserError: shapes that differ, samples that are not finite.
    """
    _check(references, estimates, stems, mixture)
    count = len(stems)
    s, e = (jnp.asarray(x).reshape(count, -1) for x in (references, estimates))
    m = jnp.asarray(mixture).reshape(1, -1)
    gain = si_sdr(s, e, zero_mean=False) - si_sdr(s, m, zero_mean=False)
    return np.where(references.any(axis=(1, 2)), np.asarray(gain, np.float64), np.nan)


def windowed_si_sdri(
    references: Float[ndarray, "S T C"],
    mixture: Float[ndarray, "T C"],
    estimates: Float[ndarray, "S T C"],
    stems: Sequence[str],
    sample_rate: int,
) -> tuple[Float[ndarray, "W S"], Bool[ndarray, "W S"]]:
    """Equation (1) with (3) as MSDM reports it (Mariani et al. 2024, and their release), of one
    track.

    Windows of 4 s begin every 2 s as long as more than 2 s are left, the last one being shorter; a
    track of less than that is one window. Those with fewer than two active stems are skipped: a
    stem is active where |s|_2 / n >= 1.5e-5 over the n samples of the window.

    The published figures average all stems of these windows, silent ones too. Of a reference of
    zeros the value is 10 log10 (|m|^2 + h) / (|e|^2 + h), a hundred dB for an estimate of zeros.
    The means without silent stems are `scores(np.where(active, improvement, np.nan), stems)`.

    Returns:
      improvement: float64, dB.
      active: which stems are, in each of the windows.

    Raises:
      UserError: as `si_sdri`.
    """
    _check(references, estimates, stems, mixture)
    samples = references.shape[1]
    window, overlap = int(WINDOW * sample_rate), int(OVERLAP * sample_rate)
    improvement: list[ndarray] = []
    active: list[ndarray] = []
    for start in range(0, max(samples - overlap, 1), window - overlap):
        part = slice(start, start + window)
        s, m, e = references[:, part], mixture[part], estimates[:, part]
        loud = np.sqrt(_energy(s)) / s.shape[1] >= SILENCE
        if loud.sum() < 2:
            continue
        improvement.append(_regularised_si_sdr(s, e) - _regularised_si_sdr(s, m[None]))
        active.append(loud)
    shape = len(improvement), len(stems)
    return np.array(improvement).reshape(shape), np.array(active, bool).reshape(shape)


def bss_eval_sdr(
    references: Float[ndarray, "S T C"],
    estimates: Float[ndarray, "S T C"],
    stems: Sequence[str],
    sample_rate: int,
) -> Float[ndarray, "W S"]:
    """Equation (2) of one track, in frames side by side; what is left behind the last one does not
    count, and a track of less than 1 s is one frame.

    As in `museval`, a frame in which any reference or any estimate is all zeros is NaN for all
    stems, and a perfect estimate is inf. A stem whose reference is all zeros throughout, which
    `museval` refuses, is NaN and does not count for the frames of the others.

    Raises:
      UserError: as `si_sdri`.
    """
    _check(references, estimates, stems)
    samples = references.shape[1]
    frame = min(int(FRAME * sample_rate), samples)

    def framed(x: Float[ndarray, "T C"]) -> Float[ndarray, " W"]:
        return _energy(x[: samples // frame * frame].reshape(samples // frame, -1))

    signal, estimated, distortion = (
        np.stack([framed(x) for x in stack], axis=1)
        for stack in (references, estimates, references - estimates)
    )
    present = _energy(references) > 0
    valid = ((signal > 0) & (estimated > 0) | ~present).all(axis=1, keepdims=True) & present
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(valid, 10.0 * np.log10(signal / distortion), np.nan)


def _regularised_si_sdr(
    references: Float[ndarray, "S T C"], estimates: Float[ndarray, "#S T C"]
) -> Float[ndarray, " S"]:
    """Equation (3)."""
    s, e = (x.reshape(len(x), -1).astype(np.float64) for x in (references, estimates))
    a = ((s * e).sum(axis=1) + EPSILON) / (_energy(s) + EPSILON)
    target = a[:, None] * s
    return 10.0 * np.log10((_energy(target) + EPSILON) / (_energy(target - e) + EPSILON))


def _energy(x: Float[ndarray, "N ..."]) -> Float[ndarray, " N"]:
    rows = x.reshape(len(x), -1)
    return np.einsum("ij,ij->i", rows, rows, dtype=np.float64)


def _check(
    references: ndarray, estimates: ndarray, stems: Sequence[str], mixture: ndarray | None = None
) -> None:
    shape = references.shape
    if len(shape) != 3 or shape[0] != len(stems) or not references.size:
        raise UserError(
            f"separation: references of shape {shape}, expected ({len(stems)}, T, C) with some "
            f"samples, for the stems {list(stems)}"
        )
    for name, found, expected in (
        ("estimates", estimates.shape, shape),
        ("mix", shape[1:] if mixture is None else mixture.shape, shape[1:]),
    ):
        if found != expected:
            raise UserError(f"separation: {name} of shape {found}, expected {expected}")
    named = [
        (f"{kind} of stem {stem!r}", audio)
        for kind, stack in (("reference", references), ("estimate", estimates))
        for stem, audio in zip(stems, stack)
    ]
    for name, audio in named + ([] if mixture is None else [("mix", mixture)]):
        bad = ~np.isfinite(audio).all(axis=-1)
        if bad.any():
            raise UserError(
                f"separation: {name} is not finite at sample {int(np.argmax(bad))}, expected audio"
            )
