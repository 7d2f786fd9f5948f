"""Level and loudness on the host: decibels, RMS, integrated loudness (ITU-R BS.1770-4)."""

import numpy as np

BLOCK = 0.4  # s, the gating block of BS.1770.


def db_to_gain(db: float) -> float:
    """Amplitude factor of `db` decibels."""
    return float(10.0 ** (db / 20.0))


def gain_to_db(gain: float) -> float:
    """Decibels of an amplitude factor; -inf for zero."""
    return float(20.0 * np.log10(gain)) if gain > 0 else -np.inf


def rms(audio: np.ndarray) -> float:
    """Root mean square over all samples and channels."""
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))


def peak(audio: np.ndarray) -> float:
    """Largest absolute sample."""
    return float(np.abs(audio).max(initial=0.0))


def integrated_loudness(audio: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness in LUFS of `audio` [T] or [T, C], through pyloudnorm; -inf for silence.

    A clip shorter than one block of 400 ms is repeated until it fills one, so its loudness is that
    of the sound it holds.
    """
    import pyloudnorm

    block = int(np.ceil(BLOCK * sample_rate)) + 1
    if len(audio) == 0 or peak(audio) == 0.0:
        return -np.inf
    if len(audio) < block:
        audio = np.concatenate([audio] * -(-block // len(audio)))[:block]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Gating may leave no block at all (all below -70 LUFS): pyloudnorm then gives -inf or NaN.
        loudness = float(pyloudnorm.Meter(sample_rate, block_size=BLOCK).integrated_loudness(audio))
    return loudness if np.isfinite(loudness) else -np.inf


def normalise(
    audio: np.ndarray, sample_rate: int, target: float, max_peak: float | None = None
) -> np.ndarray:
    """`audio` [T] or [T, C] scaled to `target` LUFS, or less to keep its peak within `max_peak`.

    Silence stays as it is.
    """
    loudness = integrated_loudness(audio, sample_rate)
    if loudness == -np.inf:
        return audio
    gain = db_to_gain(target - loudness)
    if max_peak is not None:
        gain = min(gain, max_peak / peak(audio))
    return (audio * gain).astype(np.float32)
