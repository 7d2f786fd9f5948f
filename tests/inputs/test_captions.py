"""Captions and edit instructions: deterministic, and true to the record."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.inputs import captions
from mgen.inputs.captions import PROGRAMS, edit_instruction
from mgen.inputs.record import Record


def record(**fields) -> Record:
    base = {
        "id": "a/1",
        "stem_names": ["soprano", "alto", "tenor", "bass"],
        "stem_mask": np.ones(4, bool),
        "programs": np.full(4, -1, np.int32),
        "duration": 8.0,
    }
    return Record(**{**base, **fields})


@st.composite
def records(draw) -> Record:
    """Records with any subset of facts, each with a value that nothing else would produce."""
    fields = {"id": draw(st.text("abc", min_size=1, max_size=3))}
    if draw(st.booleans()):
        fields["composer"] = "Zebedee Quux"
    if draw(st.booleans()):
        fields["key"] = "F# dorian"
    if draw(st.booleans()):
        fields["metres"] = np.array([[0, 13, 8]], np.float32)
    if draw(st.booleans()):
        fields["beats"] = np.arange(0, 8, 0.5, dtype=np.float32)
    if draw(st.booleans()):
        fields["programs"] = np.array([68, 40, 70, -1], np.int32)
    if draw(st.booleans()):
        rows = [[t, t + 0.4, 60, 80, s] for t in range(8) for s in range(4)]
        fields["notes"] = np.array(rows, np.float32)
    fields["stem_mask"] = np.array([draw(st.booleans()) for _ in range(4)])
    return record(**fields)


TEMPO = {word for _, words in captions.TEMPO_WORDS for word in words}
DENSITY = {word for _, words in captions.DENSITY_WORDS for word in words}


@settings(deadline=None, max_examples=80)
@given(records(), st.integers(0, 1000), st.integers(1, 6))
def test_captions_say_only_what_the_record_holds(piece, seed, count):
    written = captions.captions(piece, seed, count)
    assert written == captions.captions(piece, seed, count + 2)[:count]
    for text in written:
        assert text.strip() == text and "{" not in text and "  " not in text and len(text) > 2
        assert ("Quux" in text) <= bool(piece.composer)
        assert ("dorian" in text) <= bool(piece.key)
        assert ("13/8" in text) <= bool(len(piece.metres))
        words = set(re.findall(r"[a-z-]+", text.lower()))
        assert not words & TEMPO or len(piece.beats)
        assert not words & (DENSITY | {"homophonic", "polyphonic"}) or len(piece.notes)
        for stem, there in enumerate(piece.stem_mask):
            if not there:
                assert not {piece.stem_names[stem], captions.stem_name(piece, stem)} & words


def test_every_fact_is_said_and_dropped_somewhere():
    piece = record(
        composer="Zebedee Quux",
        key="F# dorian",
        metres=np.array([[0, 13, 8]], np.float32),
        beats=np.arange(0, 8, 0.5, dtype=np.float32),
        programs=np.array([68, 40, 70, -1], np.int32),
    )
    written = captions.captions(piece, 0, 200)
    for text in (
        "Quux",
        "dorian",
        "13/8",
        "oboe, violin, bassoon and bass",
        "four parts",
        "quartet",
    ):
        assert 20 < sum(text.lower() in caption.lower() for caption in written) < 180
    assert len(set(written)) > 100
    assert written != captions.captions(piece, 1, 200)


@pytest.mark.parametrize(
    ("gap", "word"),
    [(1.2, ("very slow", "solemn")), (0.3, ("fast", "rapid")), (0.5, ("lively", "brisk"))],
)
def test_tempo_word(gap, word):
    piece = record(beats=np.arange(0, 8, gap, dtype=np.float32), stem_mask=np.zeros(4, bool))
    for text in captions.captions(piece, 3, 20):
        assert any(choice in text.lower() for choice in word)


def test_texture_tells_chords_from_counterpoint():
    together = [[t, t + 0.9, 60 + s, 80, s] for t in range(8) for s in range(4)]
    apart = [[t + s / 4, t + 0.9 + s / 4, 60 + s, 80, s] for t in range(8) for s in range(4)]
    assert captions.texture(record(notes=np.array(together, np.float32))) == "homophonic"
    assert captions.texture(record(notes=np.array(apart, np.float32))) == "polyphonic"


def test_edit_instruction_names_the_part_and_the_instrument():
    piece = record(programs=np.array([68, 40, -1, 32], np.int32))
    texts = {edit_instruction(piece, 2, seed, program=70) for seed in range(100)}
    assert "add the tenor line on bassoon" in texts
    assert all("tenor" in text and "bassoon" in text for text in texts)
    assert all("oboe" in edit_instruction(piece, 0, seed) for seed in range(20))
    unknown = {edit_instruction(piece, 2, seed) for seed in range(20)}
    assert not any(name in text for text in unknown for name in PROGRAMS)
    assert edit_instruction(piece, 1, 5) == edit_instruction(piece, 1, 5)
    with pytest.raises(ValueError, match="stem 4"):
        edit_instruction(piece, 4, 0)


def test_band_and_program_names():
    band = record(
        stem_names=["bass", "drums", "guitar", "piano"],
        programs=np.array([33, 128, -1, -1], np.int32),
    )
    assert "drum" in edit_instruction(band, 1, 0) and "kit" not in edit_instruction(band, 1, 0)
    assert len(PROGRAMS) == len(set(PROGRAMS)) == 128
    assert (PROGRAMS[0], PROGRAMS[40], PROGRAMS[70], PROGRAMS[73]) == (
        "grand piano",
        "violin",
        "bassoon",
        "flute",
    )
