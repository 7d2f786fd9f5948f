"""A folder of MIDI files in place of the bundled scores."""

from pathlib import Path
from typing import Any

import numpy as np

from mgen.data.corpus_scores.arrange import BAND, BASS, DRUMS, GUITAR, PIANO
from mgen.data.corpus_scores.parse import valid_tempi
from mgen.data.corpus_scores.score import Part, Score, bar_length, make_bars, note_table
from mgen.errors import UserError
from mgen.inputs.record import DRUM_KIT

SUFFIXES = (".mid", ".midi")
# General MIDI programs of each slot of `band`, by instrument class as in Slakh2100.
SLOT_PROGRAMS = {PIANO: range(0, 8), GUITAR: range(24, 32), BASS: range(32, 40)}


def find_files(folder: Path) -> list[Path]:
    """The MIDI files under a folder, sorted; `UserError` where there are none."""
    if not folder.is_dir():
        raise UserError(f"midi_dir: {folder} is not a folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"midi_dir: no MIDI files ({', '.join(SUFFIXES)}) under {folder}")
    return found


def parse(path: Path) -> Score:
    """Tracks as parts (drums have program `DRUM_KIT`), bars from the time signatures (4/4 where
    there are none).
    """
    import symusic

    file: Any = symusic.Score(str(path)).to("quarter")  # type: ignore[union-attr]
    parts = [part for part in map(read_track, file.tracks) if len(part.notes)]
    if not parts:
        raise ValueError("no notes")
    score = Score(parts=parts, bars=[], played=True)
    marks = sorted(
        (float(m.time), int(m.numerator), int(m.denominator)) for m in file.time_signatures
    )
    metres = [mark for mark in marks if mark[1] > 0 and mark[2] > 0]
    if not metres or metres[0][0] > 0:
        metres.insert(0, (0.0, 4, 4))
    score.bars = make_bars(measures(metres, score.end), metres)
    score.tempi = valid_tempi(sorted((float(t.time), float(t.qpm)) for t in file.tempos))
    # The MIDI standard's tempo where a file has none.
    score.tempi = score.tempi or [(0.0, 120.0)]
    score.title = path.stem
    return score


def read_track(track: Any) -> Part:
    """A symusic track."""
    notes = [
        (
            float(note.time),
            float(note.time + note.duration),
            float(note.pitch),
            float(note.velocity),
        )
        for note in track.notes
    ]
    program = DRUM_KIT if track.is_drum else int(track.program)
    return Part(str(track.name), note_table(notes), program)


def measures(metres: list[tuple[float, int, int]], end: float) -> list[tuple[float, float]]:
    """Measures (start, length) that fill the piece; a change of metre cuts the bar that it falls
    into.
    """
    found = []
    changes = [start for start, _, _ in metres[1:]] + [end]
    for (start, numerator, denominator), stop in zip(metres, changes):
        length = bar_length(numerator, denominator)
        while start < min(stop, end) - 1e-6:
            # The last bar is whole.
            found.append((start, length if stop >= end else min(length, stop - start)))
            start += length
    return found


def band_slots(score: Score) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Stems of `band` by program class, and their programs: the one with most notes. Other tracks
    are left out.
    """
    members: dict[int, list[Part]] = {}
    for part in score.parts:
        if part.program == DRUM_KIT:
            members.setdefault(DRUMS, []).append(part)
        for slot, family in SLOT_PROGRAMS.items():
            if part.program in family:
                members.setdefault(slot, []).append(part)
    programs = np.full(len(BAND), -1, np.int32)
    stems = {}
    for slot, parts in sorted(members.items()):
        stems[slot] = note_table([tuple(note) for part in parts for note in part.notes])
        programs[slot] = max(parts, key=lambda part: len(part.notes)).program
    return stems, programs
