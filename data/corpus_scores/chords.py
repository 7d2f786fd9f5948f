"""Keys and chords: Krumhansl's key finder, chord symbols to Harte's labels, and the Viterbi
harmoniser.

Sources: key profiles of Krumhansl and Kessler (1982), correlated as in Krumhansl (1990), chapter 4;
chord labels of Harte et al. (ISMIR 2005). The harmoniser's costs are ours: they favour the primary
chords, changes on bar lines and dominant-tonic ends.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
MAJOR_NAMES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MINOR_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")
SHARPS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
FLATS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}

# Semitones above the root of each quality of Harte's shorthand.
QUALITIES = {
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "7": (0, 4, 7, 10),
    "min7": (0, 3, 7, 10),
    "maj7": (0, 4, 7, 11),
    "maj6": (0, 4, 7, 9),
    "min6": (0, 3, 7, 9),
    "dim": (0, 3, 6),
    "dim7": (0, 3, 6, 9),
    "aug": (0, 4, 8),
    "sus4": (0, 5, 7),
    "9": (0, 4, 7, 10, 2),
}
SYMBOL = re.compile(
    r"\(?([A-G])([#b]?)"
    r"(maj7|M7|maj|min7|m7|min6|m6|min|m|dim7|dim|o7|o|aug7?|\+7?|sus4?|9|7|6)?"
    r"(/[A-Ga-g][#b+-]?)?\)?"
)
SUFFIXES = {
    None: "maj", "maj": "maj", "m": "min", "min": "min", "7": "7", "m7": "min7", "min7": "min7",
    "maj7": "maj7", "M7": "maj7", "6": "maj6", "m6": "min6", "min6": "min6", "dim": "dim",
    "o": "dim", "dim7": "dim7", "o7": "dim7", "aug": "aug", "+": "aug", "aug7": "aug", "+7": "aug",
    "sus": "sus4", "sus4": "sus4", "9": "9",
}  # fmt: skip

# Chords of each mode: (semitones of the root above the tonic, quality, cost of using it).
MAJOR_CHORDS = (
    (0, "maj", 0.0), (7, "maj", 0.1), (5, "maj", 0.25), (9, "min", 0.6), (2, "min", 0.8),
    (7, "7", 0.15), (4, "min", 1.2), (2, "7", 1.0),
)  # fmt: skip
MINOR_CHORDS = (
    (0, "min", 0.0), (7, "maj", 0.2), (7, "7", 0.3), (5, "min", 0.3), (8, "maj", 0.6),
    (10, "maj", 0.5), (3, "maj", 0.6), (7, "min", 0.9), (2, "dim", 1.5),
)  # fmt: skip
DORIAN_CHORDS = (
    (0, "min", 0.0), (10, "maj", 0.1), (5, "maj", 0.4), (3, "maj", 0.6), (7, "min", 0.6),
    (2, "min", 1.2),
)  # fmt: skip
MIXOLYDIAN_CHORDS = (
    (0, "maj", 0.0), (10, "maj", 0.15), (5, "maj", 0.3), (7, "maj", 0.5), (7, "min", 0.6),
    (2, "min", 0.6), (9, "min", 0.7),
)  # fmt: skip
MODES = {
    "major": MAJOR_CHORDS,
    "ionian": MAJOR_CHORDS,
    "lydian": MAJOR_CHORDS,
    "minor": MINOR_CHORDS,
    "aeolian": MINOR_CHORDS,
    "phrygian": MINOR_CHORDS,
    "dorian": DORIAN_CHORDS,
    "mixolydian": MIXOLYDIAN_CHORDS,
}
# Fifths from the major key on the same tonic, to choose sharps or flats.
MODE_FIFTHS = {
    "lydian": 1,
    "mixolydian": -1,
    "dorian": -2,
    "minor": -3,
    "aeolian": -3,
    "phrygian": -4,
}


@dataclasses.dataclass
class Span:
    """A stretch of time that takes one chord: duration-weighted pitch classes [12], and where its
    bar begins.
    """

    start: float
    profile: np.ndarray
    starts_bar: bool


def pitch_class(name: str) -> int:
    """ "Bb" -> 10."""
    return (LETTERS[name[0]] + name.count("#") - name[1:].count("b")) % 12


def split_key(key: str) -> tuple[int, str]:
    """ "A dorian" -> (9, "dorian")."""
    tonic, mode = key.split()
    return pitch_class(tonic), mode


def find_key(profile: np.ndarray) -> str:
    """The major or minor key whose profile correlates best with duration-weighted pitch classes
    [12].
    """
    best, name = -2.0, "C major"
    if np.ptp(profile) == 0:
        return name
    for mode, reference, names in (
        ("major", MAJOR_PROFILE, MAJOR_NAMES),
        ("minor", MINOR_PROFILE, MINOR_NAMES),
    ):
        for tonic in range(12):
            score = float(np.corrcoef(np.roll(profile, -tonic), reference)[0, 1])
            if score > best + 1e-12:
                best, name = score, f"{names[tonic]} {mode}"
    return name


def spell(root: int, key: str) -> str:
    """Name of a pitch class, with flats in flat keys."""
    tonic, mode = key.split()
    letter_fifths = {"F": -1, "C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5}[tonic[0]]
    fifths = (
        letter_fifths + 7 * (tonic.count("#") - tonic[1:].count("b")) + MODE_FIFTHS.get(mode, 0)
    )
    return (FLATS if fifths < 0 else SHARPS)[root % 12]


def parse_symbol(text: str) -> str | None:
    """A chord symbol ("Am/c", "E7") as a Harte label without its bass ("A:min", "E:7"); None for
    other text.
    """
    found = SYMBOL.fullmatch(text.strip())
    return f"{found[1]}{found[2]}:{SUFFIXES[found[3]]}" if found else None


def split_label(label: str) -> tuple[int, tuple[int, ...]] | None:
    """ "G:7" -> (7, (0, 4, 7, 10)); None for "N"."""
    if label == "N":
        return None
    root, quality = label.split(":")
    return pitch_class(root), QUALITIES[quality]


def _emissions(spans: Sequence[Span], tonic: int, chords: Sequence[tuple]) -> np.ndarray:
    """Cost [spans, chords] of each chord against the notes that sound."""
    fit = np.full((len(chords), 12), -0.5)
    for row, (root, quality, _) in enumerate(chords):
        for interval, value in zip(QUALITIES[quality], (1.0, 0.9, 0.9, 0.6)):
            fit[row, (tonic + root + interval) % 12] = value
    profiles = np.stack([span.profile / max(span.profile.sum(), 1e-9) for span in spans])
    return -4 * profiles @ fit.T + np.array([cost for _, _, cost in chords])


def _transitions(chords: Sequence[tuple]) -> np.ndarray:
    """Cost [from, to] of a change of chord on a bar line; a chord that stays costs nothing."""
    count = len(chords)
    cost = np.full((count, count), 0.25)
    for i, (here, quality, _) in enumerate(chords):
        for j, (there, _, _) in enumerate(chords):
            falls = (
                here - there
            ) % 12 == 7  # by a fifth: dominant to tonic, supertonic to dominant
            if i == j:
                cost[i, j] = 0
            elif falls:
                cost[i, j] -= 0.3
            elif (here, there) == (7, 5):
                cost[i, j] += 0.4
            if quality == "7" and i != j and not falls:
                cost[i, j] += 0.6
    return cost


def harmonise(spans: Sequence[Span], key: str) -> list[str]:
    """One chord of the key a span by Viterbi: notes that fit, primary chords, changes on bar lines,
    tonic at the ends.
    """
    tonic, mode = split_key(key)
    chords = MODES.get(mode, MAJOR_CHORDS)
    emissions = _emissions(spans, tonic, chords)
    change = _transitions(chords)
    emissions[0, 0] -= 0.5
    emissions[-1, 0] -= 1.5
    cost, back = emissions[0], []
    inside_bar = 0.5 * (1 - np.eye(len(chords)))
    for span, emission in zip(spans[1:], emissions[1:]):
        total = cost[:, None] + change + (0 if span.starts_bar else inside_bar)
        back.append(total.argmin(0))
        cost = total.min(0) + emission
    path = [int(cost.argmin())]
    for pointers in reversed(back):
        path.append(int(pointers[path[-1]]))
    labels = [f"{spell(tonic + root, key)}:{quality}" for root, quality, _ in chords]
    return [labels[state] for state in reversed(path)]
