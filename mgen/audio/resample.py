"""Sample-rate conversion and channel up/down-mix on the host."""

from collections.abc import Iterable, Iterator

import numpy as np

from mgen.errors import UserError


def num_samples(seconds: float, sample_rate: int) -> int:
    """`round(seconds * sample_rate)`: the one rule that turns a duration into samples."""
    return round(seconds * sample_rate)


def resampled_length(samples: int, source_rate: int, target_rate: int) -> int:
    """Samples at `target_rate` of `samples` at `source_rate`: round(samples * target / source)."""
    return round(samples * target_rate / source_rate)


def resample(audio: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Band-limited resampling by soxr (quality HQ) to exactly `resampled_length` samples.

    Args:
      audio: float32 [T] or [T, C].
      source_rate, target_rate: Hz.

    Returns:
      float32 [T'] or [T', C]. An empty input gives an empty output.
    """
    if source_rate == target_rate:
        return audio
    import soxr

    length = resampled_length(len(audio), source_rate, target_rate)
    if length == 0:
        return np.zeros((0, *audio.shape[1:]), np.float32)
    # soxr ends the output up to a sample early or late, depending on the phase of the last input
    # sample.
    return fit_length(soxr.resample(audio, source_rate, target_rate, quality="HQ"), length)


def resample_blocks(
    blocks: Iterable[np.ndarray], source_rate: int, target_rate: int
) -> Iterator[np.ndarray]:
    """`resample` of float32 audio that comes in consecutive blocks [t, C], in bounded memory.

    Joined, the blocks equal `resample` of the whole within rounding.
    """
    if source_rate == target_rate:
        yield from blocks
        return
    import soxr

    stream, read, written = None, 0, 0
    for block in blocks:
        if stream is None:
            stream = soxr.ResampleStream(source_rate, target_rate, block.shape[1], quality="HQ")
            empty = block[:0]
        part = stream.resample_chunk(np.ascontiguousarray(block))
        read, written = read + len(block), written + len(part)
        yield part
    if stream is not None:
        missing = max(0, resampled_length(read, source_rate, target_rate) - written)
        yield fit_length(stream.resample_chunk(empty, last=True), missing)


def fit_length(audio: np.ndarray, length: int) -> np.ndarray:
    """`audio` [T, ...] cut, or padded with zeros at its end, to `length` samples."""
    if len(audio) >= length:
        return audio[:length]
    padding = [(0, length - len(audio))] + [(0, 0)] * (audio.ndim - 1)
    return np.pad(audio, padding)


def mix_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """[T, C] to [T, channels]: mono is copied to both sides, stereo becomes mono as 0.5 L + 0.5 R.

    Raises:
      UserError: more than two channels on either side.
    """
    present = audio.shape[1]
    if present not in (1, 2) or channels not in (1, 2):
        raise UserError(
            f"audio of {present} channels to {channels}: expected mono or stereo on both sides"
        )
    if present == channels:
        return audio
    if channels == 2:
        return np.repeat(audio, 2, axis=1)
    return audio.mean(axis=1, keepdims=True, dtype=np.float32)
