"""The mix or the stems of a whole piece: rendered or decoded once, at any number of sample rates,
in bounded memory.

A piece is made in blocks of `BLOCK` seconds. Audio beyond `IN_MEMORY` bytes lies in a temporary
file that is mapped, so that an hour of stereo costs no more memory than a minute.
"""

import dataclasses
import math
import tempfile
from collections.abc import Iterator

import numpy as np

from mgen.audio import io
from mgen.audio.resample import (
    fit_length,
    mix_channels,
    num_samples,
    resample_blocks,
    resampled_length,
)
from mgen.inputs import attributes, render
from mgen.inputs.record import Record
from mgen.inputs.records import RecordSource

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
    seconds, fields, blocks = _played(record, config, seed, max_seconds)
    mix = _allocate(num_samples(seconds, config.sample_rate), config.channels)
    for first, stems in blocks:
        mix[first : first + stems.shape[1]] = stems.sum(axis=0)[: len(mix) - first]
    return mix, fields


@dataclasses.dataclass(frozen=True)
class Mixes:
    """`whole_mix` of each piece of a source."""

    source: RecordSource
    config: render.RenderConfig
    seed: int
    max_seconds: float

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> np.ndarray:
        return whole_mix(self.source[index], self.config, self.seed, self.max_seconds)[0]


def whole_stems(
    record: Record, config: render.RenderConfig, seed: int, max_seconds: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """The stems float32 [S, T, C] of a piece, whose sum is `whole_mix`, and its attributes."""
    seconds, fields, blocks = _played(record, config, seed, max_seconds)
    samples = num_samples(seconds, config.sample_rate)
    whole = _allocate(len(record.stem_mask), samples, config.channels)
    for first, stems in blocks:
        whole[:, first : first + stems.shape[1]] = stems[:, : samples - first]
    return whole, fields


def _played(
    record: Record, config: render.RenderConfig, seed: int, max_seconds: float
) -> tuple[float, np.ndarray, Iterator[tuple[int, np.ndarray]]]:
    """Length in s, attributes, and blocks of stems [S, t, C] with the sample where each begins."""
    performance, duration, tempo = None, record.duration, 1.0
    if record.is_score:
        performance = render.perform(record, seed=seed, config=config)
        duration, tempo = performance.duration, performance.tempo_scale
    seconds = min(duration, max_seconds)

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        for start in (BLOCK * i for i in range(max(1, math.ceil(seconds / BLOCK)))):
            length = min(BLOCK, seconds - start)
            if performance is not None:
                stems = render.render_crop(performance, start=start, duration=length).stems
            else:
                stems = _decoded(record, config, start, length)
            yield num_samples(start, config.sample_rate), stems

    return seconds, attributes.from_record(record, tempo), blocks()


def converted(audio: np.ndarray, sample_rate: int, target_rate: int, channels: int) -> np.ndarray:
    """`audio` [T, C] at `target_rate` with `channels`: `mix_channels`, then resampling by soxr."""
    if sample_rate == target_rate:
        return mix_channels(audio, channels)
    result = _allocate(resampled_length(len(audio), sample_rate, target_rate), channels)
    size, at = num_samples(BLOCK, sample_rate), 0
    blocks = (
        mix_channels(audio[start : start + size], channels) for start in range(0, len(audio), size)
    )
    for out in resample_blocks(blocks, sample_rate, target_rate):
        out = out[: len(result) - at]
        result[at : at + len(out)] = out
        at += len(out)
    return result


def _decoded(
    record: Record, config: render.RenderConfig, start: float, length: float
) -> np.ndarray:
    layout = dict(sample_rate=config.sample_rate, channels=config.channels)
    samples = num_samples(length, config.sample_rate)
    stems = np.zeros((len(record.audio), samples, config.channels), np.float32)
    for number, stem in enumerate(record.audio):
        # A stem may end before the others.
        if stem and num_samples(start, config.sample_rate) < math.floor(
            io.info(stem).duration * config.sample_rate
        ):
            audio = io.read(stem, start=start, duration=length, **layout)
            stems[number] = fit_length(audio, samples)
    return stems


def _allocate(*shape: int) -> np.ndarray:
    """Zeros float32, in memory or in a file without a name."""
    if math.prod(shape) * 4 <= IN_MEMORY:
        return np.zeros(shape, np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)
