"""Notes from the SoundFont are in tune, shaped by their envelopes, and pure functions."""

import numpy as np
import pytest

from mgen.errors import UserError
from mgen.inputs import instruments, soundfont, synth

pytest.importorskip("pretty_midi")
RATE = 22050
PROGRAMS = sorted(
    p for name, group in instruments.GROUPS.items() if name != "drums" for p in group.programs
)


def play(program, key, rate=RATE, seconds=1.0, bank=0):
    font = soundfont.load(synth.soundfont_path(""))
    return soundfont.play(
        font, bank=bank, program=program, key=key, velocity=100, rate=rate,
        length=round(seconds * rate),
    )  # fmt: skip


def detuning(wave, key, rate=RATE):
    """Cents by which a comb of harmonics fits best around `key`, a semitone and a half to each
    side."""
    size = 1 << 17
    start = len(wave) // 10
    spectrum = np.abs(np.fft.rfft(wave[start:] * np.hanning(len(wave) - start), size))
    cents = np.arange(-150, 151, 5)
    f0 = 440 * 2 ** ((key - 69 + cents / 100) / 12)
    partials = f0[:, None] * np.arange(1, 7)
    bins = np.rint(partials * size / rate).astype(int)
    heard = np.where(bins < len(spectrum), spectrum[np.minimum(bins, len(spectrum) - 1)], 0.0)
    return cents[np.argmax(heard.sum(1))]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_instrument_that_is_drawn_plays_in_tune(program):
    low, high = instruments.RANGES.get(program, (40, 80))
    for key in (low + 5, (low + high) // 2, high - 5):
        # Choruses are detuned on purpose, and a sample may be a few cents off.
        assert abs(detuning(play(program, key), key)) <= 35, (program, key)


def test_tuning_does_not_depend_on_the_rate():
    for rate in (8000, 16000, 44100):
        assert abs(detuning(play(0, 60, rate), 60, rate)) <= 15


def test_plucked_notes_die_away_and_bowed_ones_stay():
    def later_over_early(program):
        wave = play(program, 60, seconds=3.0)
        early, later = wave[RATE // 4 : RATE // 2], wave[5 * RATE // 2 :]
        return np.sqrt(np.mean(later**2) / np.mean(early**2))

    assert later_over_early(24) < 0.3  # nylon guitar
    assert later_over_early(40) > 0.5  # violin


def test_nothing_folds_above_the_output_rate():
    """A high note at 8 kHz is the low-passed one of 44.1 kHz, not its aliases."""
    wave, reference = play(73, 90, 8000), play(73, 90, 44100)
    spectra = [np.abs(np.fft.rfft(x * np.hanning(len(x)))) / len(x) for x in (wave, reference)]
    bins = slice(50, 3000)  # 1 Hz each: both are 1 s long
    np.testing.assert_allclose(spectra[0][bins], spectra[1][bins], atol=0.05 * spectra[1].max())


def test_drum_keys_sound_and_missing_presets_are_silent():
    loud = [np.abs(play(0, key, bank=soundfont.DRUM_BANK)).max() for key in range(35, 82)]
    assert min(loud) > 1e-3
    assert not play(0, 60, bank=77).any()


def test_envelope_follows_the_specification():
    """Attack 1 s linear, hold 0.5 s, then 100 dB in 2 s down to 40 dB (section 9.1.7)."""
    cents = lambda seconds: round(1200 * np.log2(seconds))  # noqa: E731
    zone = {
        soundfont.DELAY: -12000,
        soundfont.ATTACK: cents(1.0),
        soundfont.HOLD: cents(0.5),
        soundfont.DECAY: cents(2.0),
        soundfont.SUSTAIN: 400,
    }
    level = soundfont._envelope(zone, 60, 1000, 4000)
    expected = {500: 0.5, 1200: 1.0, 1499: 1.0, 1900: 0.1, 2301: 0.01, 3999: 0.01}
    for sample, value in expected.items():
        assert level[sample] == pytest.approx(value, rel=0.03), sample


def test_damaged_files_are_refused_by_name(tmp_path):
    good = synth.soundfont_path("").read_bytes()
    for name, content in (
        ("text.sf2", b"no font"),
        ("cut.sf2", good[: len(good) // 2]),
        ("head.sf2", good[:20]),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=name):
            soundfont.load(path)
