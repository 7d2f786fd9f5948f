"""Chords, beats and melody of a crop, frame by frame, on a piece written out by hand."""

import dataclasses

import numpy as np
import pytest

from mgen.errors import UserError
from mgen.inputs import controls, labels, pipeline
from mgen.inputs.record import Record

# Onset and offset in s, pitch, velocity, stem: a tune on the piano over a bass, drums throughout.
NOTES = [
    (0.0, 4.0, 36, 90, 1),
    (0.0, 1.0, 60, 90, 2),
    (0.0, 1.0, 64, 90, 2),
    (0.0, 4.0, 40, 90, 0),
    (1.0, 2.0, 67, 90, 2),
    (1.2, 1.4, 72, 90, 3),
]


@pytest.fixture
def record():
    return Record(
        id="piece",
        stem_names=["bass", "drums", "piano", "guitar"],
        stem_mask=np.ones(4, bool),
        programs=np.asarray([32, 128, 0, 25], np.int32),
        duration=4.0,
        notes=np.asarray(NOTES, np.float32),
        beats=np.arange(0.0, 4.0, 0.5, dtype=np.float32),
        downbeats=np.asarray([0.0, 2.0], np.float32),
        chord_times=np.asarray([0.5, 2.0], np.float32),
        chords=["C:maj", "A:min7"],
    )


def test_frames_of_a_crop(record):
    """Ten frames a second from 0.27 s; frame f is of [0.27 + f / 10, 0.37 + f / 10)."""
    found = controls.of_crop(record, record.stem_mask, 0.27, 20, 10.0)
    assert set(found) == set(controls.NAMES)
    # 0.5 s lies in frame 2, and so does its middle; C major until 2.0 s in frame 17.
    np.testing.assert_array_equal(found["chords"], [24] * 2 + [0] * 15 + [21] * 3)
    assert found["chords"].dtype == np.int32
    beats = np.zeros((20, 2))
    beats[[2, 7, 12, 17], 0] = 1  # 0.5, 1.0, 1.5 and 2.0 s
    beats[17, 1] = 1
    np.testing.assert_array_equal(found["beats"], beats)
    # E above C until 1.0 s, G, C of the guitar from 1.2 to 1.4 s, G until 2.0 s, then a rest.
    classes = [4] * 7 + [7] * 2 + [0] * 2 + [7] * 6
    np.testing.assert_array_equal(found["melody"][:17].argmax(axis=1), classes)
    np.testing.assert_array_equal(found["melody"].sum(axis=1), [1] * 17 + [0] * 3)
    assert found["beats_mask"].all() and found["melody_mask"].all()


def test_a_stem_that_is_left_out_plays_no_melody(record):
    mask = np.asarray([True, True, True, False])
    found = controls.of_crop(record, mask, 1.0, 10, 10.0)["melody"]
    np.testing.assert_array_equal(found.argmax(axis=1), [7] * 10)
    silent = controls.of_crop(record, np.asarray([True, True, False, False]), 1.0, 10, 10.0)
    assert not silent["melody"].any() and silent["melody_mask"].all()


def test_what_a_record_does_not_know_is_unknown(record):
    bare = dataclasses.replace(
        record, notes=record.notes[:0], beats=record.beats[:0], chords=[], chord_times=np.zeros(0)
    )
    found = controls.of_crop(bare, bare.stem_mask, 0.0, 5, 10.0)
    nothing = controls.unknown(5)
    assert set(found) == set(nothing)
    for name in ("chords", "beats_mask", "melody_mask", "melody"):
        np.testing.assert_array_equal(found[name], nothing[name])
        assert found[name].dtype == nothing[name].dtype
    assert nothing["chords"][0] == controls.CHORDS == 25


def test_controls_of_a_batch_are_of_the_crop(tmp_path, make_score, write_records):
    """A piano that plays every other second, an octave of C: it is heard where its melody says."""
    piece = make_score(0, seconds=30.0)
    onsets = np.arange(0.0, 28.0, 2.0)
    columns = onsets, onsets + 1.0, np.full(14, 60.0), np.full(14, 100.0), np.full(14, 3.0)
    piece.notes = np.stack(columns, axis=1).astype(np.float32)
    folder = write_records(tmp_path, {"train": [piece]})
    settings = dict(
        dataset=str(folder), view="stems", sample_rate=8000, seconds=4.0, batch_size=8,
        control_rate=10.0, prefetch=0,
    )  # fmt: skip

    def batch(**changes):
        config = pipeline.default_config(**settings | changes)
        config.render.update(reverb=False, timing_jitter=0.0, transpose=(0, 0))
        return next(pipeline.make_iterator(config, split="train", seed=0, train=True))

    found = batch()
    assert {name: found[name].shape for name in controls.NAMES} == {
        "chords": (8, 40),
        "beats": (8, 40, 2),
        "beats_mask": (8, 40),
        "melody": (8, 40, 12),
        "melody_mask": (8, 40),
    }
    power = np.square(found["stems"][:, 3, :, 0]).reshape(8, 40, -1).mean(axis=2)
    heard, told = power > 1e-6, found["melody"][..., 0] > 0
    # A release rings on for a frame or two of twenty.
    assert (heard == told).mean() > 0.85 and 0.3 < told.mean() < 0.7
    remixed = batch(remix=1.0)
    np.testing.assert_array_equal(remixed["chords"], controls.CHORDS)
    assert not remixed["melody_mask"].any() and not remixed["beats_mask"].any()
    assert not set(controls.NAMES) & set(batch(control_rate=0.0))


def test_chords_in_words():
    """Two frames a second; the middle of a frame counts."""
    found = controls.parse_chords("0.5: C; 1.3:A:min7;2:N", 6, 2.0)
    assert found.tolist() == [controls.CHORDS, 0, 0, 12 + 9, labels.NO_CHORD, labels.NO_CHORD]
    assert controls.parse_chords("", 2, 2.0).tolist() == [controls.CHORDS] * 2
    for wrong in ("C", "0:H", "soon:C", "2:C; 1:G", "-1:C", "1:"):
        with pytest.raises(UserError, match="SECOND:CHORD"):
            controls.parse_chords(wrong, 4, 2.0)
