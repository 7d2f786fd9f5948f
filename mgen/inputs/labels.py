"""Clips of scores with what can be heard in them, frame by frame: the ground truth of probes.

A score knows what sounds when; rendered, it is an annotated recording in any key for any
instruments.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mgen.inputs import instruments, render
from mgen.inputs.record import DRUM_KIT, Record
from mgen.inputs.records import RecordSource

# The pitched instruments' groups but for the bass, which every band has.
GROUPS = instruments.MELODIC
QUALITIES = ("major", "minor")
NO_CHORD = 24  # classes of chords and keys: 12 roots major, 12 roots minor, none
NOTHING = -1  # no label: no beat known, silence


@dataclasses.dataclass(frozen=True)
class Clip:
    """A few seconds of a piece as it is played.

    Attributes:
      record: the whole piece as played; stems that do not sound are masked.
      audio: float32 [T, C], the mix.
      key: class of the key, `NOTHING` where unknown.
      chord: int [F], class of the sounding chord, 0 to `NO_CHORD`.
      instrument: int [F], index in `GROUPS` of the loudest stem that is neither bass nor drums;
        `NOTHING` in silence.
      beat: int [F], half beats since the downbeat; `NOTHING` before the first.
    """

    record: Record
    audio: np.ndarray
    key: int
    chord: np.ndarray
    instrument: np.ndarray
    beat: np.ndarray


def clips(
    source: RecordSource,
    count: int,
    *,
    seconds: float,
    frame_rate: float,
    config: render.RenderConfig,
    seed: int = 0,
    solo: bool = False,
) -> Iterator[Clip]:
    """`count` clips of the pieces of a split in turn, every time in another performance.

    Args:
      frame_rate: Hz of the labels; frame f stands for its middle, (f + 0.5) / frame_rate.
      solo: one pitched stem other than the bass sounds, alone.
    """
    for number in range(count):
        record, variant = source[number % len(source)], seed + number // len(source)
        rng = np.random.default_rng([variant, number])
        performance = render.perform(record, seed=variant, config=config)
        if solo:
            performance = _solo(performance, rng)
        start = rng.uniform(0, max(0.0, performance.duration - seconds))
        crop = render.render_crop(performance, start=start, duration=seconds)
        played = render.performed(record, performance)
        played = dataclasses.replace(played, stem_mask=performance.stem_mask)
        times = (np.arange(round(seconds * frame_rate)) + 0.5) / frame_rate
        yield Clip(
            record=played,
            audio=crop.mix,
            key=key_class(played.key),
            chord=held(crop.chord_times, [chord_class(c) for c in crop.chords], times, NO_CHORD),
            instrument=_loudest(crop, times, frame_rate),
            beat=_half_beats(performance, start + times),
        )


def key_class(key: str) -> int:
    """0 to 11 for C major to B major, 12 to 23 for the minor keys, `NOTHING` for others."""
    tonic, _, mode = key.partition(" ")
    if mode not in QUALITIES:
        return NOTHING
    return render.pitch_class(tonic) + 12 * QUALITIES.index(mode)


def chord_class(label: str) -> int:
    """As `key_class`, of a chord in Harte's syntax by its third; `NO_CHORD` for "N"."""
    root, _, quality = label.partition(":")
    if not root or root[0] not in "ABCDEFG":
        return NO_CHORD
    return render.pitch_class(root.partition("/")[0]) + 12 * quality.startswith(
        ("min", "dim", "hdim")
    )


def melodic_stems(programs: np.ndarray, mask: np.ndarray) -> list[int]:
    """Stems that sound and are neither bass nor drums."""
    return [
        stem
        for stem, (program, there) in enumerate(zip(programs.tolist(), mask))
        if there and program != DRUM_KIT and instruments.group_name(program) in GROUPS
    ]


def _solo(performance: render.Performance, rng: np.random.Generator) -> render.Performance:
    candidates = melodic_stems(performance.programs, performance.stem_mask)
    chosen = candidates[int(rng.integers(len(candidates)))] if candidates else 0
    mask = np.arange(len(performance.programs)) == chosen
    return dataclasses.replace(
        performance,
        stem_mask=mask,
        amplitudes=performance.amplitudes * mask[:, None],
        notes=performance.notes,
    )


def held(starts: np.ndarray, values: Sequence[int], times: np.ndarray, before: int) -> np.ndarray:
    """The value that holds at each time, `before` until the first start."""
    index = np.searchsorted(starts, times, side="right")
    return np.array([before, *values])[index]


def _loudest(crop: render.Rendered, times: np.ndarray, frame_rate: float) -> np.ndarray:
    stems = melodic_stems(crop.programs, crop.stem_mask)
    if not stems:
        return np.full(len(times), NOTHING)
    width = round(crop.sample_rate / frame_rate)
    length = min(len(times) * width, crop.stems.shape[1])
    power = np.square(crop.stems[stems, :length]).mean(-1)
    power = np.pad(power, ((0, 0), (0, len(times) * width - length)))
    power = power.reshape(len(stems), len(times), width).mean(-1)
    groups = np.array(
        [GROUPS.index(instruments.group_name(int(crop.programs[stem]))) for stem in stems]
    )
    return np.where(power.max(0) > 1e-7, groups[power.argmax(0)], NOTHING)


def _half_beats(performance: render.Performance, times: np.ndarray) -> np.ndarray:
    beats = performance.beats
    if len(beats) < 2 or not len(performance.downbeats):
        return np.full(len(times), NOTHING)
    index = np.searchsorted(beats, times, side="right") - 1
    after = np.clip(index, 0, len(beats) - 1)
    length = np.diff(beats, append=2 * beats[-1] - beats[-2])[after]
    half = (times - beats[after] >= length / 2).astype(int)
    # A downbeat may stand a rounding error before its beat.
    downbeat = np.searchsorted(performance.downbeats, beats[after] + 1e-3, side="right") - 1
    first = np.searchsorted(beats, performance.downbeats[np.maximum(downbeat, 0)] - 1e-3)
    known = (index >= 0) & (downbeat >= 0) & (index < len(beats))
    return np.where(known, 2 * (after - first) + half, NOTHING)
