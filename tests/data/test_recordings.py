"""slakh2100, folder_stems and folder_audio from tiny folders in the published layouts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import yaml

from mgen.audio import io
from mgen.data import aligned_midi, recordings
from mgen.data.folder_audio.folder_audio_dataset_builder import Builder as FolderAudio
from mgen.data.folder_stems.folder_stems_dataset_builder import Builder as FolderStems
from mgen.data.slakh2100.slakh2100_dataset_builder import Builder as Slakh
from mgen.errors import UserError
from mgen.inputs.record import DRUM_KIT, OFFSET, ONSET, PITCH, STEM, Record, from_example

RATE = 8000


def noise(seconds: float, seed: int, channels: int = 1, scale: float = 0.2) -> np.ndarray:
    """float32 [T, C] on the 16-bit grid."""
    rng = np.random.default_rng(seed)
    samples = rng.uniform(-scale, scale, (round(seconds * RATE), channels))
    return (np.rint(samples * 32768) / 32768).astype(np.float32)


def write_midi(path: Path, tracks: dict[str, tuple[int, list[tuple[float, float, int]]]]) -> None:
    """Tracks by name: program (128 drums), notes (onset s, offset s, pitch); 120 a minute, 100 from
    4 s on, 3/4.
    """
    import symusic

    score = symusic.Score(480, ttype="tick")
    score.tempos.append(symusic.Tempo(0, 120))
    score.tempos.append(symusic.Tempo(8 * 480, 100))
    score.time_signatures.append(symusic.TimeSignature(0, 3, 4))

    def ticks(seconds: float) -> int:
        quarters = seconds * 2 if seconds <= 4 else 8 + (seconds - 4) * 100 / 60
        return round(quarters * 480)

    for name, (program, notes) in tracks.items():
        track = symusic.Track(name, min(program, 127), program == DRUM_KIT)
        for onset, offset, pitch in notes:
            length = ticks(offset) - ticks(onset)
            track.notes.append(symusic.Note(ticks(onset), length, pitch, 90))
        score.tracks.append(track)
    path.parent.mkdir(parents=True, exist_ok=True)
    score.dump_midi(str(path))


def build(
    builder: type, source: Path, out: Path, **options
) -> tuple[dict[str, list[Record]], dict]:
    """Builds and reads back: split -> records, and the report."""
    folder = builder.prepare(source=source, data_dir=out, workers=1, **options)
    dataset = tfds.builder_from_directory(folder)
    splits = {
        split: [from_example(example) for example in dataset.as_data_source(split)]
        for split in dataset.info.splits
    }
    return splits, json.loads((folder / "build_report.json").read_text())


def joined(records: list[Record], stem: int) -> np.ndarray:
    """A stem of consecutive segments laid end to end; zeros where it is missing."""
    parts = [
        io.read(r.audio[stem])
        if r.audio[stem]
        else np.zeros((round(r.duration * r.sample_rate), r.channels), np.float32)
        for r in sorted(records, key=lambda r: r.segment_start)
    ]
    return np.concatenate(parts)


def names(items: list[dict[str, str]]) -> list[str]:
    return [item["name"] for item in items]


SLAKH_STEMS = {
    "S00": ("Guitar", 27, False, True),
    "S01": ("Drums", 128, True, True),
    "S02": ("Guitar", 30, False, True),
    "S03": ("Strings (continued)", 49, False, True),
    "S04": ("Bass", 33, False, True),
    "S05": ("Piano", 0, False, False),
}


def slakh_track(folder: Path, seconds: float, seed: int, suffix: str = ".flac") -> None:
    """A track as published: two guitars, drums, strings, bass; its piano was never rendered."""
    stems = {}
    for index, (stem, (inst_class, program, is_drum, rendered)) in enumerate(SLAKH_STEMS.items()):
        stems[stem] = {
            "audio_rendered": rendered,
            "inst_class": inst_class,
            "integrated_loudness": -20.0,
            "is_drum": is_drum,
            "midi_program_name": "x",
            "midi_saved": True,
            "plugin_name": "y.nkm",
            "program_num": program,
        }
        pitch = 40 + index
        write_midi(
            folder / "MIDI" / f"{stem}.mid",
            {"": (program, [(0.5, 1.0, pitch), (seconds / 2 - 1, seconds / 2 + 1, pitch)])},
        )
        if rendered:
            audio = noise(seconds, 100 * seed + index)
            io.write(folder / "stems" / f"{stem}{suffix}", audio, RATE)
    metadata = {"UUID": "1a81ae", "audio_dir": "stems", "midi_dir": "MIDI", "stems": stems}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    (folder / f"mix{suffix}").write_bytes((folder / "stems" / f"S00{suffix}").read_bytes())


@pytest.fixture(scope="module")
def slakh(tmp_path_factory):
    root = tmp_path_factory.mktemp("slakh")
    release = root / "slakh2100_flac_redux"
    slakh_track(release / "train" / "Track00001", 61.0, 1)
    slakh_track(release / "train" / "Track00002", 2.0, 2)
    slakh_track(release / "validation" / "Track01501", 2.0, 3, ".wav")
    slakh_track(release / "test" / "Track01876", 2.0, 4)
    slakh_track(release / "omitted" / "Track00003", 2.0, 5)
    damaged = release / "train" / "Track00002" / "stems" / "S04.flac"
    damaged.write_bytes(damaged.read_bytes()[:9000])
    return root, *build(Slakh, root, root / "out")


def test_slakh_splits_and_report(slakh):
    _, splits, report = slakh
    assert {split: len(records) for split, records in splits.items()} == {
        "train": 3,
        "validation": 1,
        "test": 1,
    }
    left_out = report["left_out"]
    assert names(left_out["failed"]) == ["Track00002"]
    assert "S04.flac" in left_out["failed"][0]["reason"]
    assert "truncated" in left_out["failed"][0]["reason"]
    assert names(left_out["omitted"]) == ["Track00003"]
    assert "Track00001/S03" in names(left_out["other_class"])
    assert "Track00001/S05" in names(left_out["not_rendered"])
    assert report["licences"]["CC BY 4.0"]["pieces"] == 5


def test_slakh_groups_and_mask(slakh):
    root, splits, _ = slakh
    records = splits["train"]
    record = records[0]
    assert record.stem_names == ["bass", "drums", "guitar", "piano"]
    np.testing.assert_array_equal(record.stem_mask, [True, True, True, False])
    np.testing.assert_array_equal(record.programs, [33, DRUM_KIT, 27, -1])
    assert record.audio[3] == b""
    assert (record.sample_rate, record.channels) == (RATE, 1)
    stems = root / "slakh2100_flac_redux" / "train" / "Track00001" / "stems"
    np.testing.assert_array_equal(joined(records, 0), io.read(stems / "S04.flac"))
    guitars = io.read(stems / "S00.flac") + io.read(stems / "S02.flac")
    np.testing.assert_array_equal(joined(records, 2), guitars)
    wav = root / "slakh2100_flac_redux" / "validation" / "Track01501" / "stems" / "S01.wav"
    np.testing.assert_array_equal(joined(splits["validation"], 1), io.read(wav))


def test_segments_are_equal_and_short_enough(slakh):
    _, splits, _ = slakh
    records = splits["train"]
    assert [r.id for r in records] == [f"Track00001/{i:03}" for i in range(3)]
    lengths = [io.info(r.audio[0]).samples for r in records]
    assert sum(lengths) == 61 * RATE and max(lengths) - min(lengths) <= 1
    assert max(lengths) <= 30 * RATE
    np.testing.assert_allclose([r.segment_start for r in records], [0, 61 / 3, 122 / 3], atol=1e-3)


def test_slakh_notes_are_cut_to_the_segment(slakh):
    _, splits, _ = slakh
    first, second, third = splits["train"]
    # (0.5, 1.0) in the first segment; (29.5, 31.5) in the second, which is 20.33 s to 40.67 s. A
    # tick is 1 ms.
    np.testing.assert_allclose(first.notes[:, ONSET], 0.5, atol=2e-3)
    assert sorted(zip(first.notes[:, STEM], first.notes[:, PITCH])) == [
        (0, 44),
        (1, 41),
        (2, 40),
        (2, 42),
    ]
    np.testing.assert_allclose(second.notes[:, ONSET], 29.5 - 61 / 3, atol=2e-3)
    np.testing.assert_allclose(second.notes[:, OFFSET], 31.5 - 61 / 3, atol=2e-3)
    assert len(third.notes) == 0
    np.testing.assert_allclose(first.tempi, [[0, 120], [4, 100]], atol=1e-3)
    np.testing.assert_allclose(second.tempi, [[0, 100]], atol=1e-3)
    np.testing.assert_allclose(second.metres, [[0, 3, 4]])
    # Beats of 0.5 s up to 4 s, then of 0.6 s; bars of three.
    np.testing.assert_allclose(first.beats[:10], [*np.arange(9) * 0.5, 4.6], atol=1e-3)
    np.testing.assert_allclose(first.downbeats[:4], [0, 1.5, 3, 4.6], atol=1e-3)
    expected = 4 + 0.6 * np.ceil((61 / 3 - 4) / 0.6) - 61 / 3
    assert second.beats[0] == pytest.approx(expected, abs=1e-3)


def test_a_note_held_over_the_cut_is_in_both_segments(tmp_path):
    write_midi(tmp_path / "a.mid", {"bass": (33, [(9.0, 11.0, 40)])})
    track = recordings.Track(
        "t", "train", ("bass",), ((tmp_path / "a.wav",),), (33,), ((tmp_path / "a.mid", 0),)
    )
    before = recordings._labels(track, 0.0, 10.0)["notes"]
    after = recordings._labels(track, 10.0, 10.0)["notes"]
    np.testing.assert_allclose(before[:, [ONSET, OFFSET]], [[9, 10]], atol=2e-3)
    np.testing.assert_allclose(after[:, [ONSET, OFFSET]], [[0, 1]], atol=2e-3)


def test_flat_slakh_is_split_by_published_number(tmp_path):
    for number in (20, 1600, 2000):
        slakh_track(tmp_path / "flat" / f"Track{number:05}", 0.5, number, ".wav")
    splits, _ = build(Slakh, tmp_path / "flat", tmp_path / "out")
    assert {split: r[0].title for split, r in splits.items()} == {
        "train": "Track00020",
        "validation": "Track01600",
        "test": "Track02000",
    }


def test_a_sum_beyond_full_scale_is_halved_with_its_track(tmp_path):
    folder = tmp_path / "slakh" / "train" / "Track00001"
    slakh_track(folder, 0.5, 1)
    loud = {name: noise(0.5, i, scale=0.9) for i, name in enumerate(("S00", "S02"))}
    for name, audio in loud.items():
        io.write(folder / "stems" / f"{name}.flac", audio, RATE)
    splits, _ = build(Slakh, tmp_path / "slakh", tmp_path / "out")
    records = splits["train"]
    np.testing.assert_array_equal(joined(records, 2), 0.5 * (loud["S00"] + loud["S02"]))
    bass = io.read(folder / "stems" / "S04.flac")
    np.testing.assert_array_equal(joined(records, 0), 0.5 * bass)


def test_slakh_refuses_other_folders(tmp_path):
    with pytest.raises(UserError, match=r"Track00001, expected"):
        Slakh.prepare(source=tmp_path, data_dir=tmp_path / "out", workers=1)
    with pytest.raises(UserError, match="no such folder"):
        Slakh.prepare(source=tmp_path / "none", data_dir=tmp_path / "out", workers=1)
    with pytest.raises(UserError, match="missing"):
        Slakh.prepare(data_dir=tmp_path / "out", workers=1)
    (tmp_path / "train" / "Track00001").mkdir(parents=True)
    with pytest.raises(UserError, match=r"metadata\.yaml"):
        Slakh.prepare(source=tmp_path, data_dir=tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "slakh2100" / "1.0.0").exists()


@pytest.fixture(scope="module")
def stems(tmp_path_factory):
    root = tmp_path_factory.mktemp("stems")
    source = root / "songs"
    for index in range(4):
        folder = source / f"song{index}"
        io.write(folder / "vocals.wav", noise(2.0, index), RATE)
        io.write(folder / "bass.flac", noise(1.0, 10 + index, channels=2), RATE)
        io.write(folder / "mixture.wav", noise(2.0, 20 + index), RATE)
    io.write(source / "song3" / "drums.wav", noise(2.0, 30)[::2], RATE // 2)
    io.write(source / "song2" / "vocals.wav", noise(2.0, 2), RATE, subtype="PCM_24")
    (source / "song0" / "vocals.wav").write_bytes(b"nothing")
    io.write(source / "loose.wav", noise(1.0, 9), RATE)
    write_midi(source / "song1" / "bass.mid", {"whatever": (0, [(0.1, 0.2, 33)])})
    write_midi(
        source / "song1" / "track.mid",
        {"Vocals": (52, [(0.3, 0.4, 70)]), "low": (34, [(0.5, 0.6, 31)]), "x": (80, [(0, 1, 9)])},
    )
    lines = [
        {"file": "song1", "caption": "slow and sad"},
        {"id": "song1", "caption": ["second", "third"]},
        {"id": "gone", "caption": "x"},
    ]
    text = "\n".join(map(json.dumps, lines))
    (source / "captions.jsonl").write_text(text + "\n")
    return source, *build(FolderStems, source, root / "out", licence="mine")


def by_title(splits: dict[str, list[Record]]) -> dict[str, Record]:
    return {record.title: record for records in splits.values() for record in records}


def test_folder_stems(stems):
    source, splits, report = stems
    assert set(splits) == {"train", "validation", "test"}
    records = by_title(splits)
    assert set(records) == {"song1", "song2", "song3"}
    record = records["song1"]
    assert record.stem_names == ["bass", "drums", "vocals"]
    np.testing.assert_array_equal(record.stem_mask, [True, False, True])
    assert (record.licence, record.collection, record.channels) == ("mine", "songs", 2)
    assert record.captions == ["slow and sad", "second", "third"]
    # Mono to stereo, and silence after the shorter stem's end.
    vocals, bass = io.read(record.audio[2]), io.read(record.audio[0])
    np.testing.assert_array_equal(vocals, io.read(source / "song1" / "vocals.wav", channels=2))
    np.testing.assert_array_equal(bass[:RATE], io.read(source / "song1" / "bass.flac"))
    assert len(bass) == 2 * RATE and not bass[RATE:].any()
    left_out = report["left_out"]
    assert names(left_out["failed"]) == ["song0"]
    assert names(left_out["outside_track_folders"]) == ["loose.wav"]
    assert names(left_out["captions_without_track"]) == ["gone"]


def test_folder_stems_notes(stems):
    _, splits, _ = stems
    notes = by_title(splits)["song1"].notes
    np.testing.assert_allclose(
        notes[:, [ONSET, PITCH, STEM]], [[0.1, 33, 0], [0.3, 70, 2], [0.5, 31, 0]], atol=2e-3
    )


def test_folder_stems_formats(stems):
    source, splits, _ = stems
    records = by_title(splits)
    assert io.info(records["song1"].audio[2]).subtype == "PCM_16"
    assert io.info(records["song2"].audio[2]).subtype == "PCM_24"
    drums = io.read(records["song3"].audio[1], channels=1)
    expected = io.read(source / "song3" / "drums.wav", sample_rate=RATE)
    # A 16-bit step: the resampled stem is stored in 16 bits.
    np.testing.assert_allclose(drums, expected, atol=1 / 32768)


def test_folder_stems_options_and_split_folders(tmp_path):
    source = tmp_path / "songs"
    for name in ("train/a", "validation/b", "train/deep/c", "elsewhere/d"):
        for stem in ("bass", "lead", "mix"):
            io.write(source / name / f"{stem}.wav", noise(0.3, len(name)), RATE)
    splits, report = build(FolderStems, source, tmp_path / "out", stems="mix, bass")
    ids = {split: [r.id for r in records] for split, records in splits.items()}
    assert {split: sorted(found) for split, found in ids.items()} == {
        "train": ["train/a/000", "train/deep/c/000"],
        "validation": ["validation/b/000"],
    }
    assert splits["validation"][0].stem_names == ["mix", "bass"]
    assert names(report["left_out"]["outside_split_folders"]) == ["elsewhere/d"]
    assert "train/a/lead.wav" in names(report["left_out"]["other_stem"])
    with pytest.raises(UserError, match="built with stems"):
        FolderStems.prepare(source=source, data_dir=tmp_path / "out", workers=1)


def test_folder_stems_refuses_a_folder_of_files(tmp_path):
    io.write(tmp_path / "songs" / "a.wav", noise(0.1, 0), RATE)
    with pytest.raises(UserError, match="1 loose files"):
        FolderStems.prepare(source=tmp_path / "songs", data_dir=tmp_path / "out", workers=1)


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    root = tmp_path_factory.mktemp("audio")
    source = root / "songs"
    for index in range(6):
        io.write(source / "deep" / f"{index}.wav", noise(0.5, index), RATE)
    io.write(source / "stereo.flac", noise(0.5, 9, channels=2), 2 * RATE)
    io.write(source / "tone.ogg", noise(0.5, 8), RATE, subtype="VORBIS")
    io.write(source / "silent.wav", np.zeros((4000, 1)), RATE)
    (source / "notes.txt").write_text("not audio")
    (source / "._0.wav").write_bytes(b"what a file manager leaves behind")
    long = io.encode_flac(noise(20.0, 77), RATE)
    (source / "cut.flac").write_bytes(long[: len(long) // 2])
    captions = [{"file": "deep/0.wav", "caption": "zero"}, {"file": "stereo", "caption": "wide"}]
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    return source, root, *build(FolderAudio, source, root / "out")


def test_folder_audio(audio):
    source, _, splits, report = audio
    assert set(splits) == {"train", "validation", "test"}
    records = by_title(splits)
    assert set(records) == {"0", "1", "2", "3", "4", "5", "stereo", "tone"}
    assert records["0"].id == "deep/0.wav/000"
    assert records["0"].stem_names == ["mix"]
    assert records["0"].captions == ["zero"] and records["stereo"].captions == ["wide"]
    assert (records["stereo"].sample_rate, records["stereo"].channels) == (2 * RATE, 2)
    np.testing.assert_array_equal(
        io.read(records["stereo"].audio[0]), io.read(source / "stereo.flac")
    )
    assert names(report["left_out"]["failed"]) == ["cut.flac"]
    assert "truncated" in report["left_out"]["failed"][0]["reason"]
    assert names(report["left_out"]["silent"]) == ["silent.wav"]


def test_same_inputs_same_bytes_whatever_the_workers(audio, tmp_path):
    source, root, _, _ = audio
    again = FolderAudio.prepare(source=source, data_dir=tmp_path, workers=2)
    first = root / "out" / "folder_audio" / "1.0.0"
    shards = sorted(path.name for path in first.glob("*.array_record*"))
    assert len(shards) == 3
    for name in [*shards, "build_report.json"]:
        assert (again / name).read_bytes() == (first / name).read_bytes(), name


def test_limit_serves_every_split(audio, tmp_path):
    source, _, _, _ = audio
    splits, _ = build(FolderAudio, source, tmp_path, limit=4)
    assert set(splits) == {"train", "validation", "test"}
    order = recordings.choose({f"{i}": "train" if i < 90 else "test" for i in range(100)}, 50)
    assert list(order.values()).count("test") in (5, 6)


def test_folder_audio_bad_input(tmp_path):
    source = tmp_path / "songs"
    source.mkdir()
    with pytest.raises(UserError, match="no audio files"):
        FolderAudio.prepare(source=source, data_dir=tmp_path / "out", workers=1)
    (source / "a.wav").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no pieces left to write"):
        FolderAudio.prepare(source=source, data_dir=tmp_path / "out", workers=1)
    (source / "captions.jsonl").write_text('{"file": "a.wav", "caption": "ok"}\n{"file": 3}\n')
    with pytest.raises(UserError, match=r"captions.jsonl:2: .*expected"):
        FolderAudio.prepare(source=source, data_dir=tmp_path / "out", workers=1)


def test_damaged_midi_names_the_file(tmp_path):
    path = tmp_path / "a.mid"
    for data in (b"", b"MThd\x00\x00\x00\x06\x00\x01", b"no midi at all, but long enough to open"):
        path.write_bytes(data)
        with pytest.raises(UserError, match="not a readable MIDI file") as error:
            aligned_midi.read_midi(path)
        assert str(error.value).startswith(str(path))


def test_building_imports_no_tensorflow(tmp_path):
    io.write(tmp_path / "songs" / "a.wav", noise(0.2, 0), RATE)
    script = (
        "import sys\n"
        "from mgen.data.folder_audio.folder_audio_dataset_builder import Builder\n"
        "Builder.prepare(source=sys.argv[1], data_dir=sys.argv[2], workers=1)\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "songs", tmp_path], check=True, timeout=120
    )
