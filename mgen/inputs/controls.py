"""What a model may be told of a crop frame by frame: chords, beats and a melody.

Frame f stands for [f, f + 1) / frame_rate of the crop; chord and melody are those of its middle.
"""

import numpy as np

from mgen.errors import UserError
from mgen.inputs import labels
from mgen.inputs.record import OFFSET, ONSET, PITCH, STEM, Record

CHORDS = labels.NO_CHORD + 1  # classes; their number stands for unknown
NAMES = ("chords", "beats", "beats_mask", "melody", "melody_mask")


def of_crop(
    record: Record, mask: np.ndarray, start: float, frames: int, frame_rate: float
) -> dict[str, np.ndarray]:
    """Chords int32 [F], classes of `labels.chord_class`; beats float32 [F, 2], 1 where a beat or a
    downbeat falls; melody float32 [F, 12], the pitch class of the highest note but bass and drums,
    zeros in a rest; masks bool [F], False where the record does not know.

    Args:
      record: as it is played. mask: bool [S], the stems that sound.
      start: s, of the crop.
    """
    edges = start + np.arange(frames + 1) / frame_rate
    chords = np.full(frames, CHORDS, np.int32)
    if record.chords:
        classes = [labels.chord_class(label) for label in record.chords]
        middle = (edges[1:] + edges[:-1]) / 2
        chords = labels.held(record.chord_times, classes, middle, labels.NO_CHORD)
    marks = [np.histogram(times, edges)[0] > 0 for times in (record.beats, record.downbeats)]
    return {
        "chords": chords.astype(np.int32),
        "beats": np.stack(marks, axis=1).astype(np.float32),
        "beats_mask": np.full(frames, len(record.beats) > 0),
        "melody": _melody(record, mask, (edges[1:] + edges[:-1]) / 2),
        "melody_mask": np.full(frames, len(record.notes) > 0),
    }


def parse_chords(text: str, frames: int, frame_rate: float) -> np.ndarray:
    """Classes int32 [F] of the chords in "0:C; 2.5:A:min; 4:N", each until the next one, "N" for
    none; unknown before the first one. `UserError` for anything else."""
    times: list[float] = []
    classes: list[int] = []
    for part in filter(str.strip, text.split(";")):
        second, _, label = (piece.strip() for piece in part.partition(":"))
        known = label[:1] in "ABCDEFGN" and label
        try:
            time = float(second) if known else -1.0
        except ValueError:
            time = -1.0
        if time < (times[-1] if times else 0.0):
            raise UserError(f"chords: {part.strip()!r}, expected SECOND:CHORD; SECOND:CHORD ...")
        times.append(time)
        classes.append(labels.chord_class(label))
    middle = (np.arange(frames) + 0.5) / frame_rate
    return labels.held(np.asarray(times), classes, middle, CHORDS).astype(np.int32)


def unknown(frames: int) -> dict[str, np.ndarray]:
    """Of a crop of which nothing is known."""
    nothing = np.zeros(frames, bool)
    return {
        "chords": np.full(frames, CHORDS, np.int32),
        "beats": np.zeros((frames, 2), np.float32),
        "beats_mask": nothing,
        "melody": np.zeros((frames, 12), np.float32),
        "melody_mask": nothing,
    }


def _melody(record: Record, mask: np.ndarray, times: np.ndarray) -> np.ndarray:
    stems = labels.melodic_stems(record.programs, mask)
    notes = record.notes[np.isin(record.notes[:, STEM].astype(int), stems)]
    notes = notes[(notes[:, OFFSET] > times[0]) & (notes[:, ONSET] <= times[-1])]
    found = np.zeros((len(times), 12), np.float32)
    if not len(notes):
        return found
    sounds = (notes[:, ONSET] <= times[:, None]) & (times[:, None] < notes[:, OFFSET])
    highest = np.where(sounds, notes[:, PITCH], -1).max(axis=1)
    found[np.arange(len(times)), highest.astype(int) % 12] = 1.0
    return found * (highest >= 0)[:, None]
