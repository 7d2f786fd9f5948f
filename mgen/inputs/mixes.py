"""The mix of a whole piece: rendered or decoded once, at any number of sample rates, in bounded
memory.

A piece is made in blocks of `BLOCK` seconds. Audio beyond `IN_MEMORY` bytes lies in a temporary
file that is mapped, so that an hour of stereo costs no more memory than a minute.
"""

import math
import tempfile
from collections.abc import Iterator

import numpy as np

from mgen.audio import io
from mgen.audio.resample import fit_length, mix_channels, num_samples, resampled_length
from mgen.inputs import attributes, render
from mgen.inputs.record import Record

BLOCK = 30.0  # s
IN_MEMORY = 256 << 20  # bytes


def whole_mix(
    record: Record, config: render.RenderConfig, seed: int, max_seconds: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """The mix float32 [T, C] of a piece from its start, and its attributes int32 [A].

    Args:
      config: how a score is played; of a recording only the sample rate and the channels count.
      seed: of the performance of a score; `render.perform` gives the same one again.
      max_seconds: what is longer is cut.
    """
    if record.is_score:
        performance = render.perform(record, seed=seed, config=config)
        duration, tempo = performance.duration, performance.tempo_scale
    else:
        performance, duration, tempo = None, record.duration, 1.0
    seconds = min(duration, max_seconds)
    mix = _allocate(num_samples(seconds, config.sample_rate), config.channels)
    for start in _starts(seconds):
        length = min(BLOCK, seconds - start)
        first = num_samples(start, config.sample_rate)
        if performance is not None:
            block = render.render_crop(performance, start=start, duration=length).mix
        else:
            block = _decoded(record, config, start, length)
        mix[first : first + len(block)] = block[: len(mix) - first]
    return mix, attributes.from_record(record, tempo)


def converted(audio: np.ndarray, sample_rate: int, target_rate: int, channels: int) -> np.ndarray:
    """`audio` [T, C] at `target_rate` with `channels`: `mix_channels`, then resampling by soxr."""
    if sample_rate == target_rate:
        return mix_channels(audio, channels)
    import soxr

    result = _allocate(resampled_length(len(audio), sample_rate, target_rate), channels)
    stream = soxr.ResampleStream(sample_rate, target_rate, channels, dtype="float32", quality="HQ")
    size, at = num_samples(BLOCK, sample_rate), 0
    for start in range(0, len(audio), size):
        block = np.ascontiguousarray(mix_channels(audio[start : start + size], channels))
        out = stream.resample_chunk(block, last=start + size >= len(audio))
        out = out[: len(result) - at]
        result[at : at + len(out)] = out
        at += len(out)
    return result


def _starts(seconds: float) -> Iterator[float]:
    yield from (BLOCK * i for i in range(max(1, math.ceil(seconds / BLOCK))))


def _decoded(
    record: Record, config: render.RenderConfig, start: float, length: float
) -> np.ndarray:
    layout = dict(sample_rate=config.sample_rate, channels=config.channels)
    samples = num_samples(length, config.sample_rate)
    mix = np.zeros((samples, config.channels), np.float32)
    for stem in record.audio:
        # A stem may end before the others.
        if stem and num_samples(start, config.sample_rate) < math.floor(
            io.info(stem).duration * config.sample_rate
        ):
            mix += fit_length(io.read(stem, start=start, duration=length, **layout), samples)
    return mix


def _allocate(samples: int, channels: int) -> np.ndarray:
    """Zeros float32 [samples, channels], in memory or in a file without a name."""
    if samples * channels * 4 <= IN_MEMORY:
        return np.zeros((samples, channels), np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(samples, channels))
