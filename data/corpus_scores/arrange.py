"""A tune and its chords to four stems: bass, drums, guitar, piano (Slakh2100's four).

Everything that a player would decide is drawn from a generator seeded by the piece's id: whether
guitar or piano plays the melody (the other accompanies), which patterns the strains take, where
fills come. Patterns are strings over the steps of a bar, one character a step. Positions are in
quarter notes.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np

from mgen.data.corpus_scores.chords import split_key, split_label
from mgen.data.corpus_scores.score import Bar, bar_length, note_table

BAND = ("bass", "drums", "guitar", "piano")
BASS, DRUMS, GUITAR, PIANO = range(4)
SECTION = 8  # bars of a strain: patterns change and fills come at its end

KICK, STICK, SNARE, HAT, OPEN_HAT, CRASH, RIDE = 36, 37, 38, 42, 46, 49, 51
TOMS = (50, 47, 45, 43)

BASS_LOWEST, BASS_HIGHEST = 28, 47  # E1 to B2
COMP_LOWEST, COMP_HIGHEST = 50, 72  # D3 to C5, under most of the melody
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}


@dataclasses.dataclass(frozen=True)
class Metre:
    """Patterns of one kind of bar: drums as (kick, snare, cymbal), chords as hits, all of `steps`
    characters.
    """

    steps: int
    drums: tuple[tuple[str, str, str], ...]
    comps: tuple[str, ...]


EIGHT = Metre(
    8,
    (
        ("x...x...", "..x...x.", "x.x.x.x."),
        ("x.....x.", "....x...", "xxxxxxxx"),
        ("x..xx...", "....x..x", "x.x.x.x."),
        ("x...x...", "....x...", "x.xxx.xx"),
    ),
    ("..x...x.", "x...x...", "x..x..x.", "x.......", "x.x.x.x."),
)
SIX = Metre(
    6,
    (
        ("x..x..", "..x..x", "x.xx.x"),
        ("x.....", "...x..", "xxxxxx"),
        ("x....x", "...x..", "x.xx.x"),
    ),
    ("x.xx.x", "x..x..", "x.....", "..x..x"),
)
NINE = Metre(
    9,
    (("x.....x..", "...x.....", "xxxxxxxxx"), ("x........", "...x..x..", "x.xx.xx.x")),
    ("x..x..x..", "x.xx.xx.x", "x........"),
)
TWELVE = Metre(
    12,
    (
        ("x.....x.....", "...x.....x..", "xxxxxxxxxxxx"),
        ("x....xx.....", "...x.....x..", "x.xx.xx.xx.x"),
    ),
    ("x..x..x..x..", "x.xx.xx.xx.x", "x.....x....."),
)
WALTZ = Metre(
    6,
    (
        ("x.....", "..x.x.", "x.x.x."),
        ("x.....", "....x.", "xxxxxx"),
        ("x....x", "..x...", "x.x.x."),
    ),
    ("..x.x.", "x.....", "x.x.x.", "x..x.."),
)
THREE = Metre(3, (("x..", "..x", "xxx"), ("x..", ".xx", "x..")), ("x..", ".xx", "x.x"))
METRES = {2: EIGHT, 4: EIGHT, 6: SIX, 9: NINE, 12: TWELVE}


def metre_of(bar: Bar) -> Metre:
    """Patterns for a bar; metres without patterns of their own get kick on one, snare on the other
    units.
    """
    if bar.numerator == 3:
        return THREE if bar.denominator >= 8 else WALTZ
    if bar.numerator in METRES:
        return METRES[bar.numerator]
    units = bar.numerator
    drums = ("x" + "." * (units - 1), "." + "x" * (units - 1), "x" * units)
    return Metre(units, (drums,), ("x" + "." * (units - 1), "x" * units))


@dataclasses.dataclass
class Segment:
    """One chord within one bar."""

    start: float
    end: float
    chord: tuple[int, tuple[int, ...]] | None
    next_root: int | None


def segments(bar: Bar, chords: Sequence[tuple[float, str]]) -> list[Segment]:
    """The chords that sound in a bar, each with the root that comes after it."""
    found = []
    ends = [position for position, _ in chords[1:]] + [float("inf")]
    for index, ((start, label), end) in enumerate(zip(chords, ends)):
        start, end = max(start, bar.start), min(end, bar.end)
        if end - start > 1e-6:
            following = split_label(chords[index + 1][1]) if index + 1 < len(chords) else None
            root = following[0] if following and end < bar.end + 1e-6 else None
            found.append(Segment(start, end, split_label(label), root))
    return found


def hits(pattern: str, bar: Bar) -> list[tuple[float, float]]:
    """Onset and length (to the next hit or the bar's end) of the marked steps that fall into the
    bar.
    """
    step = bar_length(bar.numerator, bar.denominator) / len(pattern)
    onsets = [bar.start + step * i for i, mark in enumerate(pattern) if mark == "x"]
    onsets = [onset for onset in onsets if onset < bar.end - 1e-6]
    return [(onset, end - onset) for onset, end in itertools.pairwise([*onsets, bar.end])]


class Arranger:
    """Draws the patterns of one piece and writes its bars."""

    def __init__(self, key: str, seed: str):
        digest = hashlib.sha256(f"arrange {seed}".encode()).digest()
        self.random = random.Random(int.from_bytes(digest[:8], "big"))
        self.melody_stem = self.random.choice((GUITAR, PIANO))
        self.comp_stem = PIANO if self.melody_stem == GUITAR else GUITAR
        self.bass_styles = [self.random.choice(("roots", "fifths", "walk", "pulse")) for _ in "AB"]
        self.arpeggio = [self.random.random() < 0.3 for _ in "AB"]
        self.variants = [self.random.random() for _ in "ABCD"]
        tonic, mode = split_key(key)
        self.scale = {(tonic + step) % 12 for step in SCALES.get(mode, SCALES["major"])}
        self.voicing: list[int] = []
        self.stems: dict[int, list[tuple[float, float, float, float]]] = {s: [] for s in range(4)}

    def add(self, stem: int, onset: float, length: float, pitch: int, velocity: float) -> None:
        velocity = min(127.0, max(1.0, round(velocity + self.random.uniform(-5, 5))))
        self.stems[stem].append((onset, onset + length, float(pitch), velocity))

    def melody(self, notes: np.ndarray, bars: Sequence[Bar]) -> None:
        """The tune as it is, accented on downbeats and beats."""
        downbeats = {round(bar.start, 4) for bar in bars if not bar.upbeat}
        beats = {round(beat, 4) for bar in bars for beat in bar.beats}
        for onset, offset, pitch, _ in notes:
            at = round(onset, 4)
            velocity = 102 if at in downbeats else 95 if at in beats else 88
            self.add(self.melody_stem, onset, offset - onset, int(pitch), velocity)

    def drums(self, bar: Bar, strain: int, fill: bool, crash: bool, last: bool) -> None:
        """Kick, snare and a cymbal; toms in the second half of a fill; one crash to end on."""
        metre = metre_of(bar)
        step = bar_length(bar.numerator, bar.denominator) / metre.steps
        if crash or last:
            self.add(DRUMS, bar.start, min(bar.length, 4 * step), CRASH, 96)
        if last:
            self.add(DRUMS, bar.start, step, KICK, 104)
            return
        variant = metre.drums[int(self.variants[strain] * len(metre.drums))]
        cymbal = RIDE if self.variants[strain] * 7 % 1 > 0.7 else HAT
        half = bar.start + bar_length(bar.numerator, bar.denominator) / 2
        for pattern, drum, loud in zip(variant, (KICK, SNARE, cymbal), (100, 92, 70)):
            for onset, _ in hits(pattern, bar):
                on_beat = any(abs(onset - beat) < 1e-6 for beat in bar.beats)
                if not (fill and onset > half - 1e-6 and drum != KICK):
                    self.add(DRUMS, onset, step, drum, loud + (6 if on_beat else -6))
        if fill:
            run = [onset for onset, _ in hits("x" * metre.steps, bar) if onset > half - 1e-6]
            for index, onset in enumerate(run):
                tom = (SNARE, *TOMS)[index * 5 // len(run)]
                self.add(DRUMS, onset, step, tom, 84 + 20 * index / len(run))

    def bass(self, bar: Bar, strain: int, last: bool) -> None:
        """Root first, then what the style adds on the beats that the chord lasts."""
        style = "roots" if last else self.bass_styles[strain]
        for segment in self.parts_of(bar):
            if segment.chord is None:
                continue
            inside = [b for b in bar.beats if segment.start + 1e-6 < b < segment.end - 1e-6]
            beats = [segment.start, *inside]
            if style == "roots":
                beats = beats[:1]
            elif style == "fifths":
                beats = [beats[0], beats[(len(beats) + 1) // 2]] if len(beats) > 1 else beats
            for index, (onset, end) in enumerate(itertools.pairwise([*beats, segment.end])):
                pitch = self.bass_pitch(segment, style, index, index == len(beats) - 1)
                gate = 0.7 if style == "pulse" else 0.95
                self.add(BASS, onset, (end - onset) * gate, pitch, 98 if index == 0 else 88)

    def bass_pitch(self, segment: Segment, style: str, index: int, is_last: bool) -> int:
        assert segment.chord is not None
        root, intervals = segment.chord
        low = BASS_LOWEST + (root - BASS_LOWEST) % 12
        fifth = low + intervals[2] if low + intervals[2] <= 43 else low + intervals[2] - 12
        fifth = fifth if fifth >= BASS_LOWEST else low + intervals[2]
        if style == "fifths":
            return low if index == 0 else fifth
        if style != "walk" or index == 0:
            return low
        if is_last and segment.next_root is not None and segment.next_root != root:
            goal = BASS_LOWEST + (segment.next_root - BASS_LOWEST) % 12
            steps = [goal + s for s in (-1, 1, -2, 2) if goal + s >= BASS_LOWEST]
            in_key = [pitch for pitch in steps if pitch % 12 in self.scale] or steps
            return min(in_key, key=lambda pitch: abs(pitch - low))
        return (low, low + intervals[1], fifth)[index % 3]

    def comp(self, bar: Bar, strain: int, last: bool) -> None:
        """Chords in the strain's rhythm, or broken; a chord that no hit falls on is struck where it
        begins.
        """
        metre = metre_of(bar)
        pattern = metre.comps[int(self.variants[2 + strain] * len(metre.comps))]
        broken = self.arpeggio[strain] and not last
        struck = hits("x" * metre.steps if broken else pattern, bar)
        for segment in self.parts_of(bar):
            if segment.chord is None:
                continue
            notes = self.voice(*segment.chord)
            inside = [h for h in struck if segment.start - 1e-6 <= h[0] < segment.end - 1e-6]
            if last or not inside:
                inside = [(segment.start, segment.end - segment.start)]
            order = [0, *range(1, len(notes)), *range(len(notes) - 2, 0, -1)]
            for index, (onset, length) in enumerate(inside):
                length = min(length, segment.end - onset) * 0.95
                sounding = [notes[order[index % len(order)]]] if broken else notes
                for pitch in sounding:
                    self.add(self.comp_stem, onset, length, pitch, 76 if index == 0 else 68)

    def voice(self, root: int, intervals: tuple[int, ...]) -> list[int]:
        """Close position nearest to the last voicing; the guitar doubles the lowest note above."""
        classes = [(root + interval) % 12 for interval in intervals[:4]]
        voicings = []
        for lowest in range(COMP_LOWEST, COMP_LOWEST + 12):
            if lowest % 12 in classes:
                stack = sorted(lowest + (pc - lowest) % 12 for pc in classes)
                if self.comp_stem == GUITAR and len(stack) == 3:
                    stack.append(lowest + 12)
                if stack[-1] <= COMP_HIGHEST:
                    voicings.append(stack)
        centre = float(np.mean(self.voicing)) if self.voicing else 60.0
        self.voicing = min(voicings, key=lambda stack: abs(float(np.mean(stack)) - centre))
        return self.voicing

    def parts_of(self, bar: Bar) -> Iterator[Segment]:
        yield from segments(bar, self.chords)

    def arrange(
        self, notes: np.ndarray, bars: Sequence[Bar], chords: Sequence[tuple[float, str]]
    ) -> dict[int, np.ndarray]:
        self.chords = chords
        self.melody(notes, bars)
        full = [bar for bar in bars if not bar.upbeat]
        for index, bar in enumerate(full):
            # Strains are played twice: AABB.
            strain = index // (2 * SECTION) % 2
            last = index == len(full) - 1
            ends = index % SECTION == SECTION - 1
            fill = ends and self.random.random() < 0.7
            crash = index > 0 and index % SECTION == 0
            self.drums(bar, strain, fill, crash, last)
            self.bass(bar, strain, last)
            self.comp(bar, strain, last)
        stems = {stem: note_table(notes) for stem, notes in self.stems.items()}
        for stem, table in stems.items():
            if not len(table):
                raise ValueError(f"nothing for the {BAND[stem]} to play: no full bar with a chord")
        return stems


def arrange(
    melody: np.ndarray,
    bars: Sequence[Bar],
    chords: Sequence[tuple[float, str]],
    key: str,
    seed: str,
) -> dict[int, np.ndarray]:
    """Stem index of `BAND` -> notes [n, 4] of onset, offset, pitch, velocity; the same for the same
    seed.

    Args:
      melody: [n, 4], a single line.
      bars: all bars of the piece.
      chords: (position, Harte label), covering the piece; "N" is silence for bass and chords.
      key: such as "G major".
      seed: the piece's id.

    Raises:
      ValueError: a stem would be empty.
    """
    return Arranger(key, seed).arrange(melody, bars, chords)
