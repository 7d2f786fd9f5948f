"""Laws of the renderer: labels are where the sound is, crops are slices, the mix is the sum."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.inputs import instruments, render, synth
from mgen.inputs.record import DRUM_KIT, OFFSET, ONSET, PITCH, STEM, VELOCITY, Record
from mgen.inputs.render import PLAIN, RenderConfig

RATE = 16000
VARIED = RenderConfig(sample_rate=RATE)


def single_notes(programs: list[int], onsets: list[float], pitch: int = 60) -> Record:
    """Every stem plays one short note at each onset."""
    rows = [
        (onset, onset + 0.3, 38 if program == DRUM_KIT else pitch, 100, stem)
        for onset in onsets
        for stem, program in enumerate(programs)
    ]
    return Record(
        id="single",
        stem_names=[f"part{stem}" for stem in range(len(programs))],
        stem_mask=np.ones(len(programs), bool),
        programs=np.array(programs, np.int32),
        duration=onsets[-1] + 1,
        notes=np.array(rows, np.float32),
    )


def onset_time(audio: np.ndarray, rate: int) -> float:
    """s until the sound first reaches a twentieth of its peak."""
    level = np.abs(audio)
    return float(np.argmax(level > level.max() / 20)) / rate


def test_mix_is_the_exact_sum_and_missing_stems_are_zeros(make_score: Any) -> None:
    out = render.render(make_score(2, drop=3), start=1, duration=2, seed=3, config=VARIED)
    assert out.stems.dtype == out.mix.dtype == np.float32
    assert out.stems.shape == (4, 2 * RATE, 1)
    assert np.array_equal(out.mix, out.stems.sum(0))
    assert out.stem_mask.tolist() == [True, True, True, False]
    assert not out.stems[3].any()
    assert all(np.abs(out.stems[stem]).max() > 0.01 for stem in range(3))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_sound_starts_where_the_varied_notes_say(rate: int) -> None:
    onsets = [0.5, 2.0, 3.5]
    record = single_notes([0, 25, 71, 45, DRUM_KIT], onsets)
    fields = {**PLAIN, "timing_jitter": 0.010, "tempo": (0.8, 1.2), "reverb": False}
    config = RenderConfig(sample_rate=rate, **fields)
    performance = render.perform(record, seed=5, config=config)
    shifts = []
    for onset, _, _, _, stem in performance.notes.tolist():
        crop = render.render_crop(performance, start=onset - 0.2, duration=0.6)
        found = onset_time(crop.stems[int(stem), :, 0], rate) + onset - 0.2
        # Some samples start softly: at most 20 ms until a twentieth of the peak is reached.
        assert -0.0005 <= found - onset < 0.020, (stem, onset, found)
        shifts.append(onset * performance.tempo_scale)
    plain = np.sort(np.tile(onsets, 5))
    shift = np.abs(np.sort(shifts) - plain) / performance.tempo_scale
    assert 0.001 < shift.max() <= 0.0101
    assert performance.tempo_scale != 1


def test_varied_notes_stay_within_the_stated_variations(make_score: Any) -> None:
    record = make_score(0)
    config = dataclasses.replace(VARIED, transpose=(2, 2), velocity=(1, 1), tempo=(1.25, 1.25))
    varied = render.perform(record, seed=1, config=config).notes
    assert (np.diff(varied[:, ONSET]) >= 0).all()
    for stem in range(4):
        before = record.notes[record.notes[:, STEM] == stem]
        after = varied[varied[:, STEM] == stem]
        # Jitter is far below the grid of the notes, so their order within a stem is kept.
        assert np.abs(after[:, ONSET] - before[:, ONSET] / 1.25).max() <= 0.0081
        lengths = after[:, OFFSET] - after[:, ONSET]
        assert np.allclose(lengths, (before[:, OFFSET] - before[:, ONSET]) / 1.25, atol=1e-5)
        assert np.array_equal(
            after[:, PITCH] - before[:, PITCH], np.full(len(after), 2 * (stem != 1))
        )
        assert 1 < np.abs(after[:, VELOCITY] - before[:, VELOCITY]).max() <= 8.001


@settings(deadline=None, max_examples=12)
@given(start=st.floats(0, 8), duration=st.floats(0.05, 3), seed=st.integers(0, 5))
def test_a_crop_is_the_slice_of_the_whole(
    make_score: Any, start: float, duration: float, seed: int
) -> None:
    performance = render.perform(make_score(1), seed=seed, config=VARIED)
    whole = render.render_crop(performance, start=0, duration=12)
    crop = render.render_crop(performance, start=start, duration=duration)
    first = round(start * RATE)
    expected = whole.stems[:, first : first + crop.stems.shape[1]]
    # float32 rounding of two FFTs of different length; there are no edges to keep away from.
    assert np.abs(crop.stems[:, : expected.shape[1]] - expected).max() < 2e-6
    assert crop.gain == whole.gain


def test_rendering_is_a_pure_function_of_its_arguments(make_score: Any) -> None:
    def run() -> render.Rendered:
        return render.render(make_score(4), start=2.5, duration=1.5, seed=7, config=VARIED)

    first = run()
    render.render(make_score(5), start=0, duration=8, seed=1, config=VARIED)
    synth._KEPT.clear()
    synth.room_spectra.cache_clear()
    again = run()
    for name, value in vars(first).items():
        assert np.array_equal(value, getattr(again, name)), name
    other = render.render(make_score(4), start=2.5, duration=1.5, seed=8, config=VARIED)
    assert not np.array_equal(first.mix, other.mix)


def test_kept_notes_stay_within_their_bytes() -> None:
    cache, size = synth.NoteCache(3 * 4 * 8000), 8000
    keys = [("", 16000, 0, pitch, size) for pitch in (60, 61, 62, 63)]
    waves = [cache.get(key) for key in keys[:3]]
    assert cache.get(keys[0]) is waves[0] and cache.bytes == 3 * 4 * size
    cache.get(keys[3])  # the least recently used, 61, makes room
    assert cache.bytes == 3 * 4 * size
    assert cache.get(keys[0]) is waves[0] and cache.get(keys[1]) is not waves[1]
    assert not waves[0].flags.writeable


def test_the_gain_keeps_the_whole_piece_within_range(make_score: Any) -> None:
    peaks = []
    for index in range(12):
        performance = render.perform(make_score(index), seed=index, config=VARIED)
        peaks.append(np.abs(render.render_crop(performance, start=0, duration=13).mix).max())
    assert max(peaks) <= 1
    assert np.median(peaks) > 0.3


def test_velocity_sets_the_level(make_score: Any) -> None:
    record = single_notes([71], [0.5, 2.0])
    record.notes[:, VELOCITY] = (127, 127 / np.sqrt(10))
    config = RenderConfig(sample_rate=RATE, **PLAIN, reverb=False)
    out = render.render(record, start=0, duration=3, seed=0, config=config)
    loud, soft = (np.abs(out.mix[round(t * RATE) :][:6000]).max() for t in (0.5, 2.0))
    assert loud / soft == pytest.approx(10, rel=1e-3)  # 40 dB a decade of velocity


def test_reverberation_adds_a_tail_and_nothing_before_the_note() -> None:
    record = single_notes([71], [0.5])
    dry, wet = (
        render.render(
            record,
            start=0,
            duration=2,
            seed=0,
            config=RenderConfig(sample_rate=RATE, **PLAIN, reverb=reverb, wet=(0.2, 0.2)),
        )
        for reverb in (False, True)
    )
    end = round((0.8 + 0.07 + 0.01) * RATE)  # note-off, release, and a little
    assert not dry.mix[end:].any()
    assert np.abs(wet.mix[end : end + 1600]).max() > 0.005 * np.abs(wet.mix).max()
    assert np.abs(wet.mix[: RATE // 2]).max() < 1e-6


def test_stereo_places_stems_and_never_raises_a_channel(make_score: Any) -> None:
    config = RenderConfig(sample_rate=RATE, channels=2, reverb=False)
    mono = dataclasses.replace(config, channels=1)
    record = make_score(3)
    wide = render.render(record, start=1, duration=1, seed=2, config=config).stems
    narrow = render.render(record, start=1, duration=1, seed=2, config=mono).stems
    assert wide.shape == (4, RATE, 2)
    assert np.allclose(np.abs(wide).max(2), np.abs(narrow[..., 0]), atol=1e-6)
    assert any(not np.allclose(stem[:, 0], stem[:, 1]) for stem in wide)


def test_labels_of_a_crop_are_relative_and_cut_to_it(make_score: Any) -> None:
    config = dataclasses.replace(VARIED, tempo=(1, 1), transpose=(2, 2))
    out = render.render(make_score(0), start=3, duration=2, seed=0, config=config)
    assert out.notes[:, ONSET].min() == 0 and out.notes[:, OFFSET].max() <= 2
    assert (out.notes[:, OFFSET] > out.notes[:, ONSET]).all()
    assert out.beats.tolist() == [0, 0.5, 1, 1.5]
    assert out.downbeats.tolist() == [1]
    # At 3 s the chord of 2 s holds, at 4 s the next one starts.
    assert out.chord_times.tolist() == [0, 1]
    assert out.chords == ["E:min7/b3", "N"]


@pytest.mark.parametrize(
    ("label", "semitones", "expected"),
    [
        ("G:maj", 2, "A:maj"),
        ("Bb:min7/b3", 1, "B:min7/b3"),
        ("F#:7", -1, "F:7"),
        ("Cb", 1, "C"),
        ("A/3", 3, "C/3"),
        ("N", 5, "N"),
        ("X", 5, "X"),
    ],
)
def test_transpose_chord(label: str, semitones: int, expected: str) -> None:
    assert render.transpose_chord(label, semitones) == expected


def test_instruments_follow_the_role() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        spans = [(28.0, 50.0), (36.0, 46.0), (45.0, 70.0), (50.0, 80.0)]
        band = instruments.draw_programs(["bass", "drums", "guitar", "piano"], spans, rng)
        groups = [
            name for p in band for name, group in instruments.GROUPS.items() if p in group.programs
        ]
        assert groups == ["bass", "drums", "guitar", "piano"]
        spans = [(60.0, 79.0), (55.0, 72.0), (48.0, 67.0), (40.0, 60.0)]
        voices = ["soprano", "alto", "tenor", "bass"]
        quartet = instruments.draw_programs(voices, spans, rng)
        assert len({id(instruments.group_of(p)) for p in quartet.tolist()}) == 4
        for program, (low, high) in zip(quartet.tolist(), spans):
            bottom, top = instruments.RANGES.get(program, instruments.ANY_PITCH)
            assert bottom <= low and high <= top


def test_recorded_programs_stay_unless_variation_is_asked_for(make_score: Any) -> None:
    record = make_score(0)
    record.programs[:] = (38, DRUM_KIT, 31, -1)  # two programs that no role draws, one unknown
    kept = render.perform(record, seed=0, config=RenderConfig(**PLAIN)).programs
    assert kept[:3].tolist() == [38, DRUM_KIT, 31]
    assert kept[3] in instruments.GROUPS["piano"].programs
    drawn = render.perform(record, seed=0, config=VARIED).programs
    assert drawn[0] != 38 and drawn[1] == DRUM_KIT and drawn[2] != 31


def test_empty_scores_and_crops_past_the_end_are_silent(make_score: Any) -> None:
    record = make_score(0)
    assert not render.render(record, start=20, duration=1, seed=0, config=VARIED).mix.any()
    record.notes = record.notes[:0]
    out = render.render(record, start=0, duration=1, seed=0, config=VARIED)
    assert out.stems.shape == (4, RATE, 1) and not out.mix.any() and not len(out.notes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timing_jitter": 0.02}, "timing_jitter is 0.02, expected 0 to 0.01"),
        ({"channels": 3}, "channels is 3, expected 1 or 2"),
        ({"tempo": (2, 1)}, "render.tempo"),
        ({"sample_rate": 100}, "sample_rate is 100"),
        ({"wet": (-1, 1)}, "render.wet"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RenderConfig(**fields)


def test_bad_soundfont_and_recording(make_score: Any, tmp_path: Path) -> None:
    def perform(soundfont: Path) -> None:
        render.perform(make_score(0), seed=0, config=RenderConfig(soundfont=str(soundfont)))

    with pytest.raises(UserError, match="no such SoundFont"):
        perform(tmp_path / "none.sf2")
    (tmp_path / "text.sf2").write_text("not a soundfont")
    with pytest.raises(UserError, match="not a SoundFont"):
        perform(tmp_path / "text.sf2")
    record = make_score(0)
    record.audio = [b"flac"] * 4
    with pytest.raises(UserError, match="only scores can be rendered"):
        render.perform(record, seed=0, config=VARIED)


def test_default_soundfont_needs_no_import_of_pretty_midi() -> None:
    path = synth.soundfont_path("")
    assert path.is_file() and path.name == "TimGM6mb.sf2"
    assert path.parent == Path(importlib.util.find_spec("pretty_midi").origin).parent
