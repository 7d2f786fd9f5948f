"""Labels of clips: against what the score says, and against the sound."""

import dataclasses

import numpy as np
import pytest

from mgen.inputs import labels, render
from mgen.inputs.record import DRUM_KIT
from mgen.inputs.records import open_records

PLAIN = render.RenderConfig(**{**render.PLAIN, "reverb": False})
OPTIONS = dict(seconds=4.0, frame_rate=20.0)


@pytest.mark.parametrize(
    ("key", "chord", "expected"),
    [("C major", "C:maj7", 0), ("Bb major", "Bb:7", 10), ("F# minor", "F#:min7/b3", 18)],
)
def test_classes(key, chord, expected):
    assert labels.key_class(key) == labels.chord_class(chord) == expected


def test_unknown_classes():
    assert labels.key_class("") == labels.key_class("D dorian") == labels.NOTHING
    assert labels.chord_class("N") == labels.NO_CHORD and labels.chord_class("B:dim") == 23


def test_chords_beats_and_key_follow_the_score(scores):
    """Pieces in 4/4 at 120 with a chord every bar of 2 s: the half beat tells the chord's age."""
    source = open_records(scores, "train")
    for clip in labels.clips(source, 4, config=PLAIN, **OPTIONS):
        assert clip.audio.shape == (64000, 1) and clip.key == 7
        change = np.flatnonzero(np.diff(clip.chord)) + 1
        assert len(change) and (clip.beat[change] == 0).all()
        assert (np.diff(clip.beat)[np.diff(clip.beat) != 0] % 8 == 1).all()
        assert set(clip.beat) == set(range(8)) and set(clip.chord) <= {7, 14, 24, 10}


def test_transposition_moves_key_and_chords_alike(scores):
    source = open_records(scores, "train")
    up = dataclasses.replace(PLAIN, transpose=(3, 3))
    plain, moved = (next(labels.clips(source, 1, config=c, **OPTIONS)) for c in (PLAIN, up))
    assert moved.key == (plain.key + 3) % 12
    pitched = plain.chord < labels.NO_CHORD
    quality, root = np.divmod(plain.chord[pitched], 12)
    np.testing.assert_array_equal(moved.chord[pitched], 12 * quality + (root + 3) % 12)


def test_loudest_instrument_is_the_soloist(scores):
    source = open_records(scores, "train")
    free = render.RenderConfig(instruments="free")
    seen = set()
    for clip in labels.clips(source, 12, config=free, solo=True, **OPTIONS):
        (stem,) = labels.melodic_stems(clip.record.programs, clip.record.stem_mask)
        assert clip.record.programs[stem] != DRUM_KIT and clip.record.stem_mask.sum() == 1
        group = labels.GROUPS.index(labels.instruments.group_name(int(clip.record.programs[stem])))
        assert set(clip.instrument) <= {group, labels.NOTHING} and (clip.instrument == group).any()
        seen.add(group)
    assert len(seen) > 3
