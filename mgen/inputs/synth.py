"""The sounds that `render` is made of: waveforms of single notes, their levels, releases, and room responses.

symusic's synthesiser adds notes up linearly and does not depend on where a note starts, so one note rendered alone and kept
is all that is needed of it. Every function here is a pure function of its arguments; results are kept per process.
"""

import functools
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from mgen.errors import UserError
from mgen.inputs import instruments
from mgen.inputs.record import DRUM_KIT

NOTE_STEP = 0.5  # s, waveforms are rendered in multiples of it, so that notes share them
REFERENCE_RMS = 0.1  # every instrument is brought to this level before the mix
LOWEST, HIGHEST = 21, 108  # pitches whose levels are measured: the piano's; drum keys lie within
LOUDEST_LEVEL_FACTOR = 30.0  # an instrument that hardly sounds is not blown up to noise
ROOMS = 8  # distinct responses for each reverberation time
PRE_DELAY = 0.002  # s between a sound and its reverberation


def soundfont_path(soundfont: str) -> Path:
    """The SF2 file to use; "" is the TimGM6mb that pretty_midi carries.

    Raises:
      UserError: there is no such file.
    """
    if soundfont:
        path = Path(soundfont)
        if not path.is_file():
            raise UserError(f"{soundfont}: no such SoundFont; expected an .sf2 file")
        with path.open("rb") as file:
            header = file.read(12)
        if header[:4] != b"RIFF" or header[8:] != b"sfbk":
            raise UserError(f"{soundfont}: not a SoundFont; expected a RIFF file of type sfbk")
        return path
    spec = importlib.util.find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise UserError(
            "render.soundfont is '' and pretty_midi, which carries the default SoundFont, is not"
            " installed: pip install 'mgen[data]' or name an .sf2 file"
        )
    return Path(spec.origin).with_name("TimGM6mb.sf2")


@functools.lru_cache(maxsize=4)
def _synthesiser(soundfont: str, sample_rate: int) -> Any:
    import symusic

    # Without a path symusic would download one.
    return symusic.Synthesizer(sf_path=soundfont_path(soundfont), sample_rate=sample_rate)


def _waveform(
    soundfont: str, sample_rate: int, program: int, pitch: int, length: int
) -> np.ndarray:
    """float32 [length]: a note at full velocity that is held, from its onset on."""
    from symusic import core

    drums = program == DRUM_KIT
    octaves = 0 if drums else max(0, math.ceil((pitch - highest_pitch(sample_rate)) / 12))
    seconds = length * 2**octaves / sample_rate
    track = core.TrackSecond("", 0 if drums else program, drums)
    track.notes = core.NoteSecondList.from_numpy(
        np.zeros(1, np.float32),
        np.full(1, seconds, np.float32),
        np.full(1, pitch - 12 * octaves, np.int8),
        np.full(1, 127, np.int8),
    )
    score = core.ScoreSecond(480)
    score.tracks.append(track)
    raw = np.asarray(_synthesiser(soundfont, sample_rate).render(score, stereo=False))[0]
    if octaves:
        import scipy.signal

        raw = scipy.signal.resample_poly(raw, 1, 2**octaves)
    wave = np.zeros(length, np.float32)
    raw = raw[:length]
    wave[: len(raw)] = raw * _decay(program, len(raw), sample_rate)
    return wave


def highest_pitch(sample_rate: int) -> int:
    """Highest pitch asked of symusic 0.5.9: above, it never returns for some programs (a step longer than the sample's loop).

    Higher notes are made from lower ones, an octave at a time, by playing them twice as fast.
    """
    return int(83 + 10 * math.log2(sample_rate / 16000))


@functools.lru_cache(maxsize=512)
def note(soundfont: str, sample_rate: int, program: int, pitch: int, steps: int) -> np.ndarray:
    """float32 [steps * NOTE_STEP * sample_rate], read-only: `_waveform` of a shared length."""
    wave = _waveform(soundfont, sample_rate, program, pitch, steps * int(NOTE_STEP * sample_rate))
    wave.flags.writeable = False
    return wave


@functools.lru_cache(maxsize=256)
def levels(soundfont: str, sample_rate: int, program: int) -> tuple[np.ndarray, float]:
    """Levels of an instrument's notes at full velocity.

    Returns:
      float32 [128], the peak of a note at each pitch (the nearest measured one outside the piano's
      range), and the factor that brings the instrument to `REFERENCE_RMS` over the first
      `NOTE_STEP` of its notes (median of the pitches).
    """
    step = int(NOTE_STEP * sample_rate)
    waves = np.stack(
        [
            _waveform(soundfont, sample_rate, program, pitch, 2 * step)
            for pitch in range(LOWEST, HIGHEST + 1)
        ]
    )
    peaks = np.abs(waves).max(1)
    rms = np.sqrt(np.square(waves[:, :step]).mean(1))
    sounding = rms[peaks > 1e-4]
    factor = REFERENCE_RMS / float(np.median(sounding)) if len(sounding) else 0.0
    table = peaks[np.clip(np.arange(128), LOWEST, HIGHEST) - LOWEST]
    return table, min(factor, LOUDEST_LEVEL_FACTOR)


def _decay(program: int, length: int, sample_rate: int) -> np.ndarray:
    constant = instruments.group_of(program).decay
    if not constant:
        return np.ones(length, np.float32)
    return np.exp(np.arange(length) / (-constant * sample_rate)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def fade(seconds: float, sample_rate: int) -> np.ndarray:
    """float32 [seconds * sample_rate], from 1 to 0: a release (squared, so that it falls fast and ends softly)."""
    return np.square(np.linspace(1, 0, round(seconds * sample_rate), dtype=np.float32))


def response_length(reverb_time: float, sample_rate: int) -> int:
    """Samples of an impulse response: until it has fallen by 60 dB."""
    return round((PRE_DELAY + reverb_time) * sample_rate)


@functools.lru_cache(maxsize=8)
def room_spectra(reverb_time: float, sample_rate: int, channels: int, size: int) -> np.ndarray:
    """complex64 [ROOMS, C, size // 2 + 1]: spectra of impulse responses of unit energy."""
    import scipy.fft

    length, delay = response_length(reverb_time, sample_rate), round(PRE_DELAY * sample_rate)
    responses = np.zeros((ROOMS, channels, length), np.float32)
    time = np.arange(length - delay) / sample_rate
    for room in range(ROOMS):
        noise = np.random.default_rng(room).standard_normal((channels, length - delay))
        responses[room, :, delay:] = noise * 10 ** (-3 * time / reverb_time)
    responses /= np.sqrt(np.square(responses).sum(-1, keepdims=True))
    return scipy.fft.rfft(responses, size)
