"""The plain form of a parsed piece, before it becomes a record. All positions are in quarter notes
from the start.
"""

import dataclasses
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np

VELOCITY = 80  # of notes whose file gives none


@dataclasses.dataclass
class Part:
    """One line or staff: notes [n, 4] float64 of onset, offset, MIDI pitch, velocity; sorted by
    (onset, pitch).
    """

    name: str
    notes: np.ndarray
    program: int = -1

    @property
    def mean_pitch(self) -> float:
        """Mean pitch weighted by duration."""
        weights = self.notes[:, 1] - self.notes[:, 0]
        return float(np.average(self.notes[:, 2], weights=weights))


@dataclasses.dataclass
class Bar:
    """A bar as it sounds. `length` differs from the metre's where the bar is an upbeat or is cut
    short.

    `upbeat` is True for a first bar shorter than its metre: its beats are counted back from its
    end.
    """

    start: float
    length: float
    numerator: int
    denominator: int
    upbeat: bool = False

    @property
    def end(self) -> float:
        return self.start + self.length

    @property
    def beat(self) -> float:
        """Length of a beat: a dotted unit in compound metres, a half note in 4/4 only when it is
        written 2/2.
        """
        return beat_length(self.numerator, self.denominator)

    @property
    def beats(self) -> list[float]:
        """Positions of the beats that fall into this bar."""
        if self.upbeat:
            count = int(np.ceil(self.length / self.beat - 1e-6))
            times = [self.end - self.beat * k for k in range(count, 0, -1)]
            return [time for time in times if time > self.start - 1e-6]
        count = max(1, int(np.ceil(self.length / self.beat - 1e-6)))
        return [self.start + self.beat * k for k in range(count)]


@dataclasses.dataclass
class Score:
    """A piece: parts, tempo marks (position, quarters a minute), bars, chord symbols (position,
    Harte label).
    """

    parts: list[Part]
    bars: list[Bar]
    tempi: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    chords: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    key: str = ""
    title: str = ""
    composer: str = ""
    tune_type: str = ""
    played: bool = False  # a MIDI file, whose parts say by program who plays them

    @property
    def end(self) -> float:
        return max(float(part.notes[:, 1].max()) for part in self.parts)


def beat_length(numerator: int, denominator: int) -> float:
    """Quarter notes in a beat of a metre: 3/4 -> 1, 6/8 -> 1.5, 4/2 -> 2."""
    unit = 4 / denominator
    compound = numerator % 3 == 0 and (numerator > 3 or denominator >= 8)
    return 3 * unit if compound else unit


def bar_length(numerator: int, denominator: int) -> float:
    """Quarter notes in a full bar."""
    return 4 * numerator / denominator


def make_bars(
    measures: Iterable[tuple[float, float]], metres: Sequence[tuple[float, int, int]]
) -> list[Bar]:
    """Bars from written measures (start, length): two fragments either side of a repeat sign are
    one bar.

    Args:
      measures: in order, without gaps.
      metres: (position, numerator, denominator), the first at or before the first measure.
    """
    bars: list[Bar] = []
    positions = [position for position, _, _ in metres]
    for start, length in measures:
        if length <= 1e-6:
            continue
        _, numerator, denominator = metres[max(0, bisect_right(positions, start + 1e-6) - 1)]
        full = bar_length(numerator, denominator)
        short = length < full - 1e-6
        last = bars[-1] if bars else None
        fits = last and not last.upbeat and abs(last.length + length - full) < 1e-6
        if (
            last
            and short
            and fits
            and (last.numerator, last.denominator) == (numerator, denominator)
        ):
            last.length = full
        else:
            bars.append(Bar(start, length, numerator, denominator, upbeat=short and not bars))
    return bars


def note_table(notes: Iterable[tuple[float, float, float, float]]) -> np.ndarray:
    """Sorted notes [n, 4]; a note that begins while the same pitch sounds ends it (one key, one
    string).
    """
    table = np.array(sorted(set(notes), key=lambda n: (n[0], n[2], n[1])), np.float64).reshape(
        -1, 4
    )
    table = table[table[:, 1] > table[:, 0] + 1e-6]
    last: dict[float, int] = {}
    keep = np.ones(len(table), bool)
    for index, (onset, offset, pitch, _) in enumerate(table):
        before = last.get(pitch)
        if before is not None and table[before, 1] > onset + 1e-9:
            if onset - table[before, 0] < 1e-6:  # doubled: the longer one stays
                table[before, 1] = max(table[before, 1], offset)
                keep[index] = False
                continue
            table[before, 1] = onset
        last[pitch] = index
    return table[keep]


def skyline(notes: np.ndarray) -> np.ndarray:
    """The single line of the highest notes: at each onset the highest pitch, cut where the next
    begins.
    """
    line: list[np.ndarray] = []
    for note in notes[np.lexsort((-notes[:, 2], notes[:, 0]))]:
        if line and note[0] - line[-1][0] < 1e-6:
            continue
        if line:
            line[-1][1] = min(line[-1][1], note[0])
        line.append(note.copy())
    return np.array(line, np.float64).reshape(-1, 4)


class Clock:
    """Quarter notes to seconds, from tempo marks (position, quarters a minute); the first holds
    from the start.
    """

    def __init__(self, tempi: Sequence[tuple[float, float]]):
        self.positions = np.array([0.0, *(position for position, _ in tempi[1:])])
        self.rates = 60 / np.array([qpm for _, qpm in tempi])
        self.times = np.concatenate([[0], np.cumsum(np.diff(self.positions) * self.rates[:-1])])

    def __call__(self, quarters: np.ndarray | Sequence[float]) -> np.ndarray:
        """Seconds (float64) of positions in quarter notes."""
        quarters = np.asarray(quarters, np.float64)
        index = np.clip(np.searchsorted(self.positions, quarters, "right") - 1, 0, None)
        return self.times[index] + (quarters - self.positions[index]) * self.rates[index]
