"""Pairs of renditions: the same bars, tempo and key; other players; what is augmented and how."""

import dataclasses

import numpy as np
import pytest

from mgen.errors import UserError
from mgen.inputs import pairs, pipeline, render
from mgen.inputs.record import DRUM_KIT, OFFSET, ONSET, PITCH, STEM

RATE = 8000
PLAYER = render.RenderConfig(sample_rate=RATE, instruments="free")


def settings(dataset="", **overrides):
    fields = dict(
        dataset=str(dataset),
        view="audio_pair",
        sample_rate=RATE,
        seconds=1.0,
        batch_size=4,
        render=dict(instruments="free", reverb=False),
    )
    return pipeline.default_config(**(fields | overrides))


class Source(list):
    """Records in memory."""

    folder, scores = "memory", True


def example(records, seed=0, train=True, **overrides):
    config = settings(**overrides).to_dict()
    return pairs.PairExample([Source(records)], config, seed, train)


def test_both_play_the_same_notes_at_one_tempo_in_one_key_with_other_players(make_score):
    record = make_score(1)
    seen = set()
    for seed in range(0, 40, 2):
        duet = pairs.perform(record, seed, PLAYER)
        alone, together = duet.alone, duet.together
        assert alone.tempo_scale == together.tempo_scale
        assert alone.transpose == together.transpose and alone.duration == together.duration
        seen.add((alone.tempo_scale, alone.transpose))
        assert (alone.notes[:, STEM] == duet.melody).all()
        same = together.notes[together.notes[:, STEM] == duet.melody]
        # In the order of the score: the jitter may swap two notes.
        order = [np.lexsort((x[:, PITCH], np.rint(x[:, ONSET] * 10))) for x in (alone.notes, same)]
        first, second = alone.notes[order[0]], same[order[1]]
        np.testing.assert_array_equal(first[:, PITCH], second[:, PITCH])
        gap = np.abs(first[:, ONSET] - second[:, ONSET])
        assert 0 < gap.max() <= 2 * PLAYER.timing_jitter
    assert len(seen) == 20
    players = [pairs.perform(record, seed, PLAYER) for seed in range(0, 60, 2)]
    different = [d.alone.programs[d.melody] != d.together.programs[d.melody] for d in players]
    assert np.mean(different) > 0.8


def test_solo_is_the_stem_of_the_whole(make_score):
    performance = render.perform(make_score(2), seed=3, config=PLAYER)
    for stem in range(4):
        alone = pairs.solo(performance, stem)
        whole = render.render_crop(performance, start=1.0, duration=2.0)
        mix = render.render_crop(alone, start=1.0, duration=2.0).mix
        np.testing.assert_allclose(mix, whole.stems[stem], atol=1e-6)  # float32
        assert np.abs(mix).max() > 0.01 and alone.stem_mask.tolist() == [
            s == stem for s in range(4)
        ]


def test_melody_is_the_highest_voice(make_score):
    record = make_score(0)
    assert pairs.melody_stem(record) == 3
    without = dataclasses.replace(
        record,
        notes=record.notes[record.notes[:, STEM] != 3],
        stem_mask=np.array([True, True, True, False]),
    )
    assert pairs.melody_stem(without) == 2
    # Who is higher most of the time, not who has the highest note, nor the drums' high numbers.
    notes = record.notes.copy()
    notes[(notes[:, STEM] == 3) & (notes[:, ONSET] > 4), PITCH] -= 40
    notes[notes[:, STEM] == 1, PITCH] = 100
    assert pairs.melody_stem(dataclasses.replace(record, notes=notes)) == 2
    # A bass sings only where nobody else does, however high.
    notes = record.notes.copy()
    notes[notes[:, STEM] == 0, PITCH] += 60
    assert pairs.melody_stem(dataclasses.replace(record, notes=notes)) == 3
    bass = dataclasses.replace(record, notes=record.notes[record.notes[:, STEM] < 2])
    assert pairs.melody_stem(bass) == 0
    nothing = dataclasses.replace(record, notes=record.notes[:0])
    assert pairs.melody_stem(nothing) == 0
    assert record.programs[1] == DRUM_KIT


def test_crops_hold_the_melody(make_score):
    """It rests in the first three quarters: a few draws find the rest nearly always."""
    record = make_score(4, seconds=16.0)
    notes = record.notes
    late = dataclasses.replace(record, notes=notes[(notes[:, STEM] != 3) | (notes[:, ONSET] > 12)])
    duet = pairs.perform(dataclasses.replace(late, stem_mask=np.eye(4, dtype=bool)[3]), 0, PLAYER)
    rng = np.random.default_rng(0)
    starts = [duet.start(2.0, 30, rng) * duet.alone.tempo_scale for _ in range(20)]
    assert duet.melody == 3 and min(starts) > 10.0
    # Where no draw is good enough, the best of them.
    few = dataclasses.replace(duet.alone, notes=duet.alone.notes[:3])
    begins, ends = few.notes[0, ONSET], few.notes[-1, OFFSET]
    starts = [dataclasses.replace(duet, alone=few).start(2.0, 30, rng) for _ in range(20)]
    assert all(begins - 2.0 < start < ends for start in starts)
    # With one draw, where it falls.
    assert min(duet.start(2.0, 1, rng) for _ in range(20)) < 5.0


def test_other_is_what_source_says(make_score):
    """Without augmentation the parts can be told: the mix has all of the band, the stem one."""
    records = [make_score(i) for i in range(3)]
    batch = {
        source: [example(records, train=False, source=source)(g, (0, g % 3)) for g in range(12)]
        for source in ("mix", "stems", "any")
    }
    drawn = set()
    for mix, stem, either in zip(*batch.values()):
        assert mix["audio"].shape == mix["other"].shape == (RATE, 1)
        assert mix["audio"].dtype == mix["other"].dtype == np.float32
        assert mix["piece"].dtype == np.int32 and mix["piece"] == stem["piece"]
        np.testing.assert_array_equal(mix["audio"], stem["audio"])
        assert not np.array_equal(mix["other"], stem["other"])
        kind = [np.array_equal(either["other"], x["other"]) for x in (mix, stem)]
        assert sum(kind) == 1
        drawn.add(kind.index(True))
        # The stem is part of the mix: taken away, something else is left.
        assert np.std(mix["other"] - stem["other"]) > 0.1 * np.std(mix["other"])
    assert drawn == {0, 1}
    # Held-out pairs are heard as they are.
    changes = example(records, train=False, source="mix", stem_dropout=1.0, gain_db=(-20.0, -10.0))
    np.testing.assert_array_equal(changes(5, (0, 2))["other"], batch["mix"][5]["other"])
    assert len({int(x["piece"]) for x in batch["mix"]}) == 3


def test_sides_are_augmented_on_their_own_and_the_melody_stays(make_score):
    records = [make_score(0)]
    plain = render.PLAIN | dict(instruments="free", reverb=False)
    dry = example(records, render=plain)
    loud = example(records, render=plain, gain_db=(-12.0, 0.0))
    ratios = []
    for g in range(12):
        before, after = dry(g, (0, 0)), loud(g, (0, 0))
        ratios.append([np.std(after[n]) / np.std(before[n]) for n in ("audio", "other")])
    first, second = np.array(ratios).T
    assert 0.2 < first.min() < first.max() <= 1.0001 and np.abs(first - second).max() > 0.2
    # All others dropped but one, which always stays: the melody is there, and quieter company.
    alone = example(records, source="mix", stem_dropout=1.0, render=plain)
    full = example(records, source="mix", render=plain)
    stems = example(records, source="stems", render=plain)
    for g in range(4):
        melody = stems(g, (0, 0))["other"]
        few, all_ = (x(g, (0, 0))["other"] for x in (alone, full))
        rest = few - melody
        assert 0 < np.std(rest) < np.std(all_ - melody)
        overlap = np.sum(few * melody) / np.sum(melody * melody)
        assert abs(overlap - 1) < 0.35


def test_examples_depend_on_their_number_only(scores):
    config = settings(scores, stem_dropout=0.5, gain_db=(-6.0, 0.0))
    iterator = pipeline.make_iterator(config, split="train", seed=1, train=True)
    first = [next(iterator) for _ in range(2)]
    halves = [
        pipeline.make_iterator(
            config, split="train", seed=1, train=True, process_index=p, process_count=2
        )
        for p in (0, 1)
    ]
    for batch in first:
        parts = [next(half) for half in halves]
        assert set(batch) == {"audio", "other", "piece"}
        for name, value in batch.items():
            assert value.shape[0] == 4
            for p in (0, 1):
                np.testing.assert_array_equal(value[p::2], parts[p][name])
    assert not np.array_equal(first[0]["audio"], first[1]["audio"])
    held_out = [
        np.concatenate([b["audio"] for b in pipeline.make_iterator(config, split="validation",
                                                                   seed=1, train=False)])
        for _ in range(2)
    ]  # fmt: skip
    np.testing.assert_array_equal(*held_out)
    assert len(held_out[0]) == 8


def test_what_cannot_be_paired_is_refused(recordings, scores):
    with pytest.raises(UserError, match="holds recordings, expected scores with view 'audio_pair'"):
        pipeline.make_iterator(settings(recordings), split="train", seed=0, train=True)
    with pytest.raises(UserError, match=r"data\.remix: .* expected 0"):
        config = settings(scores, remix=0.5)
        pipeline.make_iterator(config, split="train", seed=0, train=True)
