"""The sounds that `render` is made of: waveforms of single notes, their levels, releases, and room
responses.

Every function here is a pure function of its arguments; results are kept per process.
"""

import collections
import functools
import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np

from mgen.errors import UserError
from mgen.inputs import soundfont
from mgen.inputs.record import DRUM_KIT

SHORTEST_NOTE = 0.5  # s
LEVEL_SECONDS = 0.5  # from a note's onset, over which its level is measured
REFERENCE_RMS = 0.1  # every instrument is brought to this level before the mix
LOWEST, HIGHEST = 21, 108  # pitches whose levels are measured: the piano's; drum keys lie within
LEVEL_STEP = 6  # semitones between them
ZONE_VELOCITY = 100  # picks a velocity layer; loudness is the renderer's
LOUDEST_LEVEL_FACTOR = 30.0  # an instrument that hardly sounds is not blown up to noise
ROOMS = 8  # distinct responses for each reverberation time
PRE_DELAY = 0.002  # s between a sound and its reverberation


def soundfont_path(font: str) -> Path:
    """The SF2 file to use; "" is the TimGM6mb that pretty_midi carries.

    Raises:
      UserError: there is no such file.
    """
    if font:
        path = Path(font)
        if not path.is_file():
            raise UserError(f"{font}: no such SoundFont; expected an .sf2 file")
        return path
    spec = importlib.util.find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise UserError(
            "render.soundfont is '' and pretty_midi, which carries the default SoundFont, is not"
            " installed: pip install 'mgen[data]' or name an .sf2 file"
        )
    return Path(spec.origin).with_name("TimGM6mb.sf2")


def _waveform(font: str, sample_rate: int, program: int, pitch: int, length: int) -> np.ndarray:
    """float32 [length]: a note at full velocity that is held, from its onset on."""
    drums = program == DRUM_KIT
    return soundfont.play(
        soundfont.load(soundfont_path(font)),
        bank=soundfont.DRUM_BANK if drums else 0,
        program=0 if drums else program,
        key=pitch,
        velocity=ZONE_VELOCITY,
        rate=sample_rate,
        length=length,
    )


def note(font: str, sample_rate: int, program: int, pitch: int, length: int) -> np.ndarray:
    """float32 [at least length], read-only: a held note at full velocity, from its onset on.

    Lengths grow by factors of two from `SHORTEST_NOTE`, so that notes share waveforms.
    """
    size = int(SHORTEST_NOTE * sample_rate)
    while size < length:
        size *= 2
    return _KEPT.get((font, sample_rate, program, pitch, size))


class NoteCache:
    """Waveforms by the arguments of `_waveform`, at most `size` bytes of them: the least recently
    used go first. Safe in threads."""

    def __init__(self, size: int):
        self.size, self.bytes = size, 0
        self._waves: collections.OrderedDict[tuple[Any, ...], np.ndarray] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int, int, int, int]) -> np.ndarray:
        with self._lock:
            if key in self._waves:
                self._waves.move_to_end(key)
                return self._waves[key]
        wave = _waveform(*key)
        wave.flags.writeable = False
        with self._lock:
            if key not in self._waves:
                self._waves[key] = wave
                self.bytes += wave.nbytes
            while self.bytes > self.size and len(self._waves) > 1:
                self.bytes -= self._waves.popitem(last=False)[1].nbytes
            return wave

    def clear(self) -> None:
        with self._lock:
            self._waves.clear()
            self.bytes = 0


# All notes of all instruments at 16 kHz take some 400 MB.
_KEPT = NoteCache(512 << 20)


@functools.lru_cache(maxsize=256)
def levels(font: str, sample_rate: int, program: int) -> tuple[np.ndarray, float]:
    """Levels of an instrument's notes at full velocity.

    Returns:
      float32 [128], the peak of a note at each pitch (interpolated), and the factor that brings the
      instrument to `REFERENCE_RMS` over the first `LEVEL_SECONDS` of its notes (median of the
      pitches).
    """
    step = int(LEVEL_SECONDS * sample_rate)
    pitches = range(LOWEST, HIGHEST + 1, LEVEL_STEP)
    # Kept: many of them will be played.
    waves = np.stack([note(font, sample_rate, program, pitch, 2 * step) for pitch in pitches])
    peaks = np.abs(waves).max(1)
    rms = np.sqrt(np.square(waves[:, :step]).mean(1))
    sounding = rms[peaks > 1e-4]
    factor = REFERENCE_RMS / float(np.median(sounding)) if len(sounding) else 0.0
    table = np.interp(np.arange(128), pitches, peaks).astype(np.float32)
    return table, min(factor, LOUDEST_LEVEL_FACTOR)


@functools.lru_cache(maxsize=64)
def fade(seconds: float, sample_rate: int) -> np.ndarray:
    """float32 [seconds * sample_rate], from 1 to 0: a release (squared, so that it falls fast and
    ends softly)."""
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
