"""MIDI that belongs to a recording: every time in seconds by the file's own tempo map, nothing
tidied up.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mgen.data.corpus_scores.score import bar_length, beat_length
from mgen.errors import UserError
from mgen.inputs.record import DRUM_KIT

_DEFAULT_TEMPO = 500_000  # microseconds a quarter note until the first tempo mark (MIDI 1.0)


@dataclasses.dataclass(frozen=True)
class MidiTrack:
    """One track: notes float64 [n, 4] of onset s, offset s, MIDI pitch, velocity."""

    name: str
    program: int
    notes: np.ndarray


@dataclasses.dataclass(frozen=True)
class AlignedMidi:
    """A MIDI file in seconds; `tempi`, `metres`, `beats` and `downbeats` as in `Record`."""

    tracks: list[MidiTrack]
    tempi: np.ndarray
    metres: np.ndarray
    beats: np.ndarray
    downbeats: np.ndarray


class _TempoMap:
    """Ticks to seconds."""

    def __init__(self, ticks: np.ndarray, microseconds: np.ndarray, resolution: int):
        order = np.argsort(ticks, kind="stable")
        # Before the first mark MIDI's default holds; where that mark is at 0, this stretch has no
        # length.
        self.ticks = np.concatenate([[0], ticks[order]]).astype(np.float64)
        self.microseconds = np.concatenate([[_DEFAULT_TEMPO], microseconds[order]])
        self.rates = self.microseconds / (1e6 * resolution)
        self.times = np.concatenate([[0], np.cumsum(np.diff(self.ticks) * self.rates[:-1])])

    def __call__(self, ticks: np.ndarray) -> np.ndarray:
        ticks = np.asarray(ticks, np.float64)
        index = np.searchsorted(self.ticks, ticks, "right") - 1
        return self.times[index] + (ticks - self.ticks[index]) * self.rates[index]

    def table(self) -> np.ndarray:
        """float32 [n, 2]: s, quarter notes a minute; of marks at one time the last counts."""
        last = np.append(np.diff(self.times) > 0, True)
        return np.column_stack([self.times, 60e6 / self.microseconds])[last].astype(np.float32)


def read_midi(path: Path) -> AlignedMidi:
    """Reads a MIDI file (through symusic).

    Raises:
      UserError: not a MIDI file, or a damaged one.
    """
    import symusic

    try:
        score: Any = symusic.Score(str(path))
    except RuntimeError as error:
        raise UserError(f"{path}: not a readable MIDI file ({error})") from error
    resolution = score.ticks_per_quarter
    marks = score.tempos.numpy()
    seconds = _TempoMap(marks["time"], marks["mspq"], resolution)
    tracks = []
    for track in score.tracks:
        columns = track.notes.numpy()
        start, length = columns["time"].astype(np.int64), columns["duration"].astype(np.int64)
        notes = np.column_stack(
            [seconds(start), seconds(start + length), columns["pitch"], columns["velocity"]]
        )
        program = DRUM_KIT if track.is_drum else int(track.program)
        tracks.append(MidiTrack(str(track.name), program, notes))
    metres, beats, downbeats = _metre_grid(score, resolution)
    return AlignedMidi(
        tracks=tracks,
        tempi=seconds.table(),
        metres=np.column_stack([seconds(metres[:, 0]), metres[:, 1:]]).astype(np.float32),
        beats=seconds(beats).astype(np.float32),
        downbeats=seconds(downbeats).astype(np.float32),
    )


def _metre_grid(score: Any, resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Metres [n, 3] (tick, numerator, denominator; 4/4 until the first), ticks of beats and of
    downbeats.
    """
    marks = score.time_signatures.numpy()
    metres = [
        (int(tick), int(numerator), int(denominator))
        for tick, numerator, denominator in zip(
            marks["time"], marks["numerator"], marks["denominator"], strict=True
        )
        if numerator > 0 and denominator > 0
    ]
    if not metres or metres[0][0] > 0:
        metres.insert(0, (0, 4, 4))
    ends = [tick for tick, _, _ in metres[1:]] + [int(score.end())]
    beats, downbeats = [np.zeros(0)], [np.zeros(0)]
    for (start, numerator, denominator), end in zip(metres, ends, strict=True):
        beats.append(np.arange(start, end, beat_length(numerator, denominator) * resolution))
        downbeats.append(np.arange(start, end, bar_length(numerator, denominator) * resolution))
    return np.array(metres, np.float64), np.concatenate(beats), np.concatenate(downbeats)
