"""What the probe of melodies measures, with embeddings that need no training."""

import types

import numpy as np
import pytest

from mgen import probe
from mgen.audio import chroma
from mgen.inputs.record import Record

RATE = 8000
OPTIONS = probe.Options(clips=12)


def tune(index):
    """Bass and a melody of eight notes a bar, each piece another."""
    rng = np.random.default_rng(index)
    onsets = np.arange(0, 12, 0.5)
    rows = [
        np.stack([onsets, onsets + 0.45, pitches, np.full(24, 100), np.full(24, stem)], 1)
        for stem, pitches in enumerate((rng.integers(38, 45, 24), rng.integers(60, 80, 24)))
    ]
    notes = np.concatenate(rows).astype(np.float32)
    return Record(
        id=str(index),
        stem_names=["bass", "piano"],
        stem_mask=np.ones(2, bool),
        programs=np.array([33, 0], np.int32),
        duration=12.0,
        notes=notes[np.lexsort((notes[:, 4], notes[:, 0]))],
    )


def model(embed):
    config = types.SimpleNamespace(sample_rate=RATE, channels=1, seconds=2.0)
    return types.SimpleNamespace(config=config, embed_audio=embed)


def pitches(audio):
    """Chroma over time, centred: what a good embedding of melodies is made of."""
    found = np.asarray(chroma.chroma(audio[:, 0], sample_rate=RATE, hop=2000, octaves=6))
    vector = (found - found.mean()).ravel()
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def source():
    return [tune(i) for i in range(5)]


def test_melodies_are_found_by_their_notes(source):
    rows = probe.joint_report(model(pitches), None, source, OPTIONS)
    assert set(rows) == {
        f"melody_to_{side}/{name}" for side in ("mix", "other") for name in probe.MEASURES
    }
    assert rows["melody_to_mix/recall_at_1"][1] == pytest.approx(1 / 12)
    assert rows["melody_to_mix/recall_at_10"][1] == pytest.approx(10 / 12)
    assert rows["melody_to_mix/recall_at_1"][0] > 0.6
    assert rows["melody_to_other/recall_at_1"][0] > 0.8


def test_an_embedding_that_hears_nothing_finds_nothing(source):
    rows = probe.melody_report(model(lambda audio: np.ones(4) / 2), source, OPTIONS)
    assert all(value <= chance for value, chance in rows.values())
    assert rows["melody_to_mix/recall_at_1"][0] == 0
