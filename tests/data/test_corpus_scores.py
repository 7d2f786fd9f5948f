"""The bundled scores: notes, beats, chords, arrangement, splits, determinism, what is left out."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.inputs.record import OFFSET, ONSET, PITCH, STEM, VELOCITY, Record, from_example

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("music21")

from mgen.data.corpus_scores import assemble, catalogue, midi, parse, splits  # noqa: E402
from mgen.data.corpus_scores import chords as harmony  # noqa: E402
from mgen.data.corpus_scores.arrange import BAND, DRUMS, GUITAR, PIANO, arrange  # noqa: E402
from mgen.data.corpus_scores.corpus_scores_dataset_builder import (  # noqa: E402
    Builder,
    Piece,
    joins,
    make_piece,
)
from mgen.data.corpus_scores.score import Bar, Clock, make_bars, note_table, skyline  # noqa: E402

JIG = """X:1
T:Test Jig, The
R:jig
M:6/8
L:1/8
K:G
D|"G"GAB "4"B2d|"D7"cAF A2f|"C"gfe "G"dBG|"D"AFD "G"G2:|
|:f|gfg "Am/c"afd|^cde =c2A|
BGB AFA|1 G3 G2:|2 G3 G3|]
"""


@pytest.fixture(scope="module")
def band(tmp_path_factory) -> tuple[Path, list[Record], dict[str, list[Record]]]:
    folder = Builder.prepare(
        data_dir=tmp_path_factory.mktemp("band"), config="band", limit=8, workers=1
    )
    by_split = read(folder)
    return folder, [record for held in by_split.values() for record in held], by_split


def read(folder: Path) -> dict[str, list[Record]]:
    builder = tfds.builder_from_directory(folder)
    return {
        split: [from_example(example) for example in builder.as_data_source(split)]
        for split in builder.info.splits
    }


def shards(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if "array_record" in path.name or path.name == "build_report.json"
    }


def check_record(record: Record) -> None:
    """What every record of scores promises."""
    notes, stems = record.notes, len(record.stem_names)
    assert len(notes) and notes.dtype == np.float32
    assert (notes[:, ONSET] < notes[:, OFFSET]).all() and (notes[:, ONSET] >= 0).all()
    assert (notes[:, OFFSET] <= record.duration + 1e-3).all()
    assert ((notes[:, PITCH] >= 0) & (notes[:, PITCH] <= 127)).all()
    assert (notes[:, PITCH] == np.round(notes[:, PITCH])).all()
    assert ((notes[:, VELOCITY] >= 1) & (notes[:, VELOCITY] <= 127)).all()
    order = np.lexsort((notes[:, PITCH], notes[:, STEM], notes[:, ONSET]))
    assert (order == np.arange(len(notes))).all()
    assert set(notes[:, STEM].astype(int)) == set(np.flatnonzero(record.stem_mask))
    assert len(record.programs) == len(record.stem_mask) == stems
    assert (np.diff(record.beats) > 0).all() and record.beats[-1] < record.duration
    assert np.isin(record.downbeats, record.beats).all()
    assert record.tempi[0, 0] == record.metres[0, 0] == record.chord_times[0] == 0
    assert len(record.chords) == len(record.chord_times)
    assert (np.diff(record.chord_times) > 0).all() and record.chord_times[-1] < record.duration
    for label in record.chords:
        assert label == "N" or harmony.split_label(label)
    assert record.duration <= assemble.MAX_SECONDS
    assert record.licence and record.collection and record.key


def test_band_records_are_valid_and_have_four_stems(band):
    _, records, _ = band
    assert len(records) == 8
    for record in records:
        check_record(record)
        assert tuple(record.stem_names) == BAND and record.stem_mask.all()
        assert record.programs[DRUMS] == 128


def test_beats_follow_the_metre(band):
    for record in band[1]:
        numerator, denominator = map(int, record.metres[0, 1:])
        quarter = 60 / record.tempi[0, 1]
        compound = numerator % 3 == 0 and (numerator > 3 or denominator >= 8)
        beat = quarter * 4 / denominator * (3 if compound else 1)
        per_bar = numerator // 3 if compound else numerator
        np.testing.assert_allclose(np.median(np.diff(record.beats)), beat, rtol=1e-4)
        np.testing.assert_allclose(np.median(np.diff(record.downbeats)), beat * per_bar, rtol=1e-4)


def test_melody_survives_in_one_stem(band):
    _, records, _ = band
    tasks = {task.id: task for task in Builder(config="band", limit=8).tasks()}
    for record in records:
        line = skyline(parse.parse_tune(tasks[record.id].tune).parts[0].notes)
        clock = Clock([(0.0, float(record.tempi[0, 1]))])
        want = np.column_stack([clock(line[:, 0]), line[:, 2]])
        stems = [record.notes[record.notes[:, STEM] == stem] for stem in (GUITAR, PIANO)]
        same = [
            len(held) == len(want) and np.allclose(held[:, [ONSET, PITCH]], want, atol=1e-3)
            for held in stems
        ]
        assert sum(same) == 1


def test_both_guitar_and_piano_get_melodies():
    line = note_table([(float(i), i + 1.0, 60.0 + i, 80.0) for i in range(8)])
    bars = make_bars([(0.0, 4.0), (4.0, 4.0)], [(0.0, 4, 4)])
    chosen = set()
    for seed in range(20):
        stems = arrange(line, bars, [(0.0, "C:maj")], "C major", str(seed))
        chosen |= {
            stem for stem in (GUITAR, PIANO) if np.array_equal(stems[stem][:, 2], line[:, 2])
        }
    assert chosen == {GUITAR, PIANO}


def test_tune_with_upbeat_repeats_endings_and_chord_symbols():
    score = parse.parse_tune(JIG)
    assert (score.title, score.tune_type, score.key) == ("The Test Jig", "jig", "G major")
    assert score.bars[0].upbeat and score.bars[0].length == 0.5
    # AABB of four bars; the upbeats of the repeats complete the bars before them.
    assert [bar.length for bar in score.bars[1:]] == [3.0] * 16
    assert score.end == score.bars[-1].end == 0.5 + 16 * 3
    labels = [label for _, label in score.chords]
    assert labels[:6] == ["G:maj", "D:7", "C:maj", "G:maj", "D:maj", "G:maj"]
    # The fingering "4" is no chord; "Am/c" loses its bass; repeats repeat the chords.
    assert labels.count("A:min") == 2 and labels.count("D:7") == 2
    assert [bar.beats for bar in score.bars[:2]] == [[], [0.5, 2.0]]
    pitches = score.parts[0].notes[:, 2]
    assert 73 in pitches and 72 in pitches  # ^c holds in its bar until =c


def test_names_are_made_presentable():
    assert parse.clean_title("BAG OF MEAL, THE.") == "The Bag Of Meal"
    assert parse.clean_title("movement1.mxl") == ""
    assert parse.clean_composer("J. HAND.") == "J. Hand"
    assert parse.clean_composer("Gratiosus I-Pu 684") == "Gratiosus"
    for remark in ("Trad.", "Anonymous", "collected by McFadden", "Play it after the March."):
        assert parse.clean_composer(remark) == ""


def test_accidental_holds_to_the_end_of_the_bar():
    tune = "X:1\nT:x\nM:4/4\nL:1/4\nK:C\n^F F G F|F4|G4|F4|]\n"
    assert parse.parse_tune(tune).parts[0].notes[:, 2].tolist() == [66, 66, 67, 66, 65, 67, 65]


@pytest.mark.parametrize(
    ("starts", "ends", "endings", "want"),
    [
        (set(), {1: 2, 3: 2}, {}, [0, 1, 0, 1, 2, 3, 2, 3]),  # the second strain has no start sign
        ({1}, {2: 2}, {}, [0, 1, 2, 1, 2, 3]),
        (set(), {1: 2}, {1: {1}, 2: {2}}, [0, 1, 0, 2, 3]),
        (set(), {1: 2, 2: 2}, {1: {1}, 2: {2}}, [0, 1, 0, 2, 3]),
        (set(), {3: 3}, {}, [0, 1, 2, 3] * 3),
        (set(), {0: 2, 3: 2}, {0: {1}, 1: {2}}, [0, 1, 2, 3, 2, 3]),  # a strain after endings
    ],
)
def test_playing_order(starts, ends, endings, want):
    assert parse.playing_order(4, starts, ends, endings) == want


def test_default_tempo_depends_on_the_dance():
    jig, air = parse.parse_tune(JIG), parse.parse_tune(JIG.replace("R:jig", "R:air"))
    assert assemble.default_tempo(jig, True) == 168 and assemble.default_tempo(air, True) == 108
    declared = parse.parse_tune(JIG.replace("L:1/8", "L:1/8\nQ:3/8=90"))
    assert declared.tempi == [(0.0, 135.0)]


def test_quartets_and_tunes(tmp_path):
    for config, limit in (("quartets", 6), ("tunes", 6)):
        folder = Builder.prepare(data_dir=tmp_path, config=config, limit=limit, workers=1)
        records = [record for held in read(folder).values() for record in held]
        report = json.loads((folder / "build_report.json").read_text())
        left_out = sum(map(len, report["left_out"].values()))
        assert len(records) == report["pieces"] and len(records) + left_out == limit
        for record in records:
            check_record(record)
            means = [
                np.average(held[:, PITCH], weights=held[:, OFFSET] - held[:, ONSET])
                for stem in np.flatnonzero(record.stem_mask)
                if len(held := record.notes[record.notes[:, STEM] == stem])
            ]
            if config == "quartets":
                assert record.stem_mask.sum() >= 3 and means == sorted(means, reverse=True)
            else:
                ends, onsets = record.notes[:-1, OFFSET], record.notes[1:, ONSET]
                assert (ends <= onsets + 1e-4).all()


def test_same_bytes_with_one_and_two_workers(band, tmp_path):
    again = Builder.prepare(data_dir=tmp_path, config="band", limit=8, workers=2)
    assert shards(again) == shards(band[0])


def test_limit_is_a_prefix_of_a_fixed_order():
    eight = [task.id for task in Builder(config="band", limit=8).tasks()]
    assert [task.id for task in Builder(config="band", limit=5).tasks()] == eight[:5]
    many = Builder(config="band", limit=60).tasks()
    assert len({task.collection for task in many}) >= 4
    everything = Builder(config="band").tasks()
    assert len({task.id for task in everything}) == len(everything) > 4000


def test_reserved_collections_are_off_until_named():
    for config, name in (("quartets", "palestrina"), ("tunes", "essenFolksong")):
        off = {found.name for found in catalogue.choose(config, None)}
        assert name not in off and off
        assert [found.name for found in catalogue.choose(config, [name])] == [name]
    essen = Builder(config="tunes", collections="essenFolksong", limit=2).tasks()
    assert {task.licence for task in essen} == {"non-commercial use only"}
    with pytest.raises(UserError, match="'nope' is not one of band's: airdsAirs"):
        Builder(config="band", collections=["nope"])


def test_splits_share_no_content_and_keep_works_together():
    keys = {f"c/{i}": [f"work {i // 3}", f"opening {i // 7}"] for i in range(300)}
    groups = splits.components(keys)
    split = splits.assign(groups, dict.fromkeys(keys, "c"))
    for group in groups:
        assert len({split[name] for name in group}) == 1
    for key in {key for held in keys.values() for key in held}:
        assert len({split[name] for name, held in keys.items() if key in held}) == 1


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=6), st.sampled_from("xyz"), min_size=3))
def test_every_split_gets_pieces_and_every_piece_a_split(collection):
    groups = splits.components({name: [name] for name in collection})
    split = splits.assign(groups, collection)
    assert split.keys() == collection.keys() and set(split.values()) == set(splits.SPLITS)


def test_works_and_titles_join_pieces(band):
    root = Path("/corpus")
    bach = [catalogue.work_of("bach", root / "bach" / f"bwv{n}.mxl", root) for n in ("1.6", "1.7")]
    assert bach[0] == bach[1] != catalogue.work_of("bach", root / "bach" / "bwv10.7.mxl", root)
    movements = [f"haydn/opus1no1/movement{n}.mxl" for n in (1, 2)]
    assert len({catalogue.work_of("haydn", root / name, root) for name in movements}) == 1
    assert (
        splits.title_key("The Blackbird - Reel") == splits.title_key("Blackbird, The") is not None
    )
    assert splits.title_key("A Favourite Quick March") is None
    piece = Piece(band[1][0], "content", "opening", "work")
    assert len(joins(piece, by_title=False)) == 2 <= len(joins(piece, by_title=True))


def test_collections_are_cut_alike():
    collection = {f"a/{i}": "a" for i in range(1000)} | {f"b/{i}": "b" for i in range(100)}
    split = splits.assign(splits.components({name: [name] for name in collection}), collection)
    for name, count in (("a", 50), ("b", 5)):
        held = [split[piece] for piece, owner in collection.items() if owner == name]
        assert held.count("test") == held.count("validation") == count


def test_fingerprint_ignores_key_and_tempo_but_not_notes():
    jig = parse.parse_tune(JIG)
    higher = parse.parse_tune(JIG.replace("L:1/8", "L:1/8\nQ:3/8=90"))
    higher.parts[0].notes[:, 2] += 5
    assert assemble.fingerprint(jig) == assemble.fingerprint(higher)
    higher.parts[0].notes[3, 2] += 1
    assert assemble.fingerprint(jig)[0] != assemble.fingerprint(higher)[0]


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(harmony.MAJOR_NAMES), st.sampled_from(["major", "minor"]))
def test_key_finder_knows_scales_and_their_chords(tonic, mode):
    root = harmony.pitch_class(tonic)
    profile = np.zeros(12)
    for step, weight in zip(
        (0, 2, 4 - (mode == "minor"), 5, 7, 8 + (mode == "major")), (4, 1, 2, 1, 3, 1)
    ):
        profile[(root + step) % 12] += weight
    found = harmony.split_key(harmony.find_key(profile))
    assert found == (root, mode)


def test_harmoniser_finds_the_cadence():
    def span(*pitches):
        return harmony.Span(0.0, np.bincount(pitches, minlength=12).astype(float), True)

    spans = [span(0, 4, 7), span(5, 9, 0), span(7, 11, 2), span(0, 4, 7)]
    assert harmony.harmonise(spans, "C major") == ["C:maj", "F:maj", "G:maj", "C:maj"]


def test_bars_either_side_of_a_repeat_sign_are_one():
    bars = make_bars([(0, 1), (1, 4), (5, 3), (8, 1), (9, 4), (13, 3)], [(0.0, 4, 4)])
    assert [(bar.start, bar.length) for bar in bars] == [(0, 1), (1, 4), (5, 4), (9, 4), (13, 3)]
    assert bars[0].upbeat and bars[0].beats == [0]
    assert Bar(0, 1.5, 6, 8).beat == Bar(0, 1.5, 3, 8).beat == 1.5 and Bar(0, 4, 2, 2).beat == 2


def write_midi(path: Path, seconds: float = 8.0) -> None:
    import pretty_midi

    file = pretty_midi.PrettyMIDI(initial_tempo=120)
    for program, drum, pitch in (
        (33, False, 40),
        (0, True, 36),
        (25, False, 64),
        (0, False, 72),
        (40, False, 76),
    ):
        instrument = pretty_midi.Instrument(program, drum)
        for start in np.arange(0, seconds, 0.5):
            high = pitch + int(start) % 5
            instrument.notes.append(pretty_midi.Note(90, high, start, start + 0.4))
        file.instruments.append(instrument)
    file.write(str(path))


def test_midi_folder_failures_and_long_pieces_are_reported(tmp_path):
    source = tmp_path / "midi" / "sub"
    source.mkdir(parents=True)
    write_midi(source / "good.mid")
    write_midi(source / "copy.mid")
    write_midi(source.parent / "long.mid", seconds=800)
    write_midi(source.parent / "other.mid", seconds=21)
    (source / "broken.mid").write_bytes(b"MThd not a midi file")
    options = {"midi_dir": source.parent, "data_dir": tmp_path, "workers": 1}
    folder = Builder.prepare(config="band", **options)
    left_out = json.loads((folder / "build_report.json").read_text())["left_out"]
    assert [item["name"] for item in left_out["failed"]] == ["midi/sub/broken.mid"]
    assert [item["name"] for item in left_out["too_long"]] == ["midi/long.mid"]
    assert len(left_out["duplicate"]) == 1
    records = [record for held in read(folder).values() for record in held]
    assert {record.id.split("/")[-1] for record in records} in (
        {"good.mid", "other.mid"},
        {"copy.mid", "other.mid"},
    )
    for record in records:
        assert record.programs.tolist() == [33, 128, 25, 0] and record.stem_mask.all()
        assert abs(record.tempi[0, 1] - 120) < 0.01
        np.testing.assert_allclose(np.diff(record.downbeats), 2.0, atol=1e-3)
    quartet = Builder.prepare(config="quartets", **options)
    assert sum(map(len, read(quartet).values())) == 2


def test_midi_folder_without_midi_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="midi_dir: "):
            Builder(config="band", midi_dir=folder)
    assert midi.measures([(0.0, 4, 4), (6.0, 3, 4)], 10.0) == [
        (0.0, 4.0),
        (4.0, 2.0),
        (6.0, 3.0),
        (9.0, 3.0),
    ]


def test_build_imports_no_tensorflow(tmp_path):
    code = f"""
import sys
from mgen.data.corpus_scores.corpus_scores_dataset_builder import Builder
import tensorflow_datasets as tfds
folder = Builder.prepare(data_dir={str(tmp_path)!r}, config="tunes", limit=3, workers=1)
len(tfds.builder_from_directory(folder).as_data_source("train")[0]["notes"])
print([name for name in ("tensorflow", "torch", "jax") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Builder, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Builder.prepare(data_dir=tmp_path, config="tunes", limit=3, workers=1)
    assert not list(tmp_path.glob("corpus_scores/tunes/*"))


def test_reuse_other_options_and_overwrite(band, capsys):
    folder = band[0]
    before = shards(folder)
    options = {"data_dir": folder.parents[2], "config": "band", "workers": 1}
    assert Builder.prepare(limit=8, **options) == folder
    assert "already built" in capsys.readouterr().out
    with pytest.raises(UserError, match="built with limit=8, asked for 9"):
        Builder.prepare(limit=9, **options)
    with pytest.raises(UserError, match="stems: corpus_scores has no such option"):
        Builder.prepare(stems="a", **options)
    assert shards(folder) == before
    (folder / "dataset_info.json").write_text('{"name"')
    with pytest.raises(UserError, match=r"no readable dataset_info.json, so it is no finished"):
        Builder.prepare(limit=8, **options)
    assert shards(Builder.prepare(limit=8, overwrite=True, **options)) == before


def test_make_piece_is_the_same_twice():
    task = Builder(config="band", limit=1).tasks()[0]
    first, second = make_piece(task), make_piece(task)
    assert np.array_equal(first.record.notes, second.record.notes)
    assert first.record.chords == second.record.chords
