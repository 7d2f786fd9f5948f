"""Plays a score: notes, a crop and a seed in, aligned stems out.

  mix[t, c] = sum_s stems[s, t, c]                                            exactly, in float32
  stems[s]  = gain * ((delta + wet_s * h_s) convolved with sum_n a_n * w_n(t - onset_n))

w_n is the waveform of one note (`mgen.inputs.soundfont`, played once and kept),
a_n = (velocity / 127)^2 (SoundFont 2.04, section 8.4.1: a concave curve of 40 dB a decade), h_s an
impulse response of exponentially decaying noise (the statistical model of late reverberation:
Moorer, "About this reverberation business", CMJ 3(2), 1979). Everything is linear and
time-invariant, so a crop is a slice of the whole rendering.

All draws depend on (piece id, seed) only; the crop, and so the batch or the worker, never changes
them.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from mgen.errors import UserError
from mgen.inputs import instruments, synth
from mgen.inputs.record import DRUM_KIT, OFFSET, ONSET, PITCH, STEM, VELOCITY, Record

MAX_TIMING_JITTER = 0.010  # s; beyond it the parts audibly fall apart
INSTRUMENTS = ("role", "free", "score")
NORM, HEADROOM = 1.5, 1.4  # see `_peak_estimate`


@dataclasses.dataclass(frozen=True)
class RenderConfig:
    """How scores are played. Ranges are (low, high), drawn uniformly for each piece and seed.

    Attributes:
      sample_rate: Hz.
      channels: 1 or 2; in stereo every stem has a place and the reverberation of the two channels
        is independent.
      soundfont: path of an SF2 file; "" is TimGM6mb, which comes with pretty_midi.
      instruments: "role" draws one that fits the role of each stem, "free" any melodic one (bass
        and drums stay), "score" keeps the record's programs (unknown ones are drawn by role).
      tempo: factor on the tempo.
      transpose: semitones, whole; both ends included. Drums stay.
      velocity: factor on the velocities of a stem.
      velocity_jitter: largest change of a note's velocity, in MIDI units.
      timing_jitter: s, largest shift of a note; at most 0.010.
      level: dB, level of each stem against the others.
      reverb: whether to add reverberation.
      reverb_time: s, time to fall by 60 dB.
      wet: amplitude of the reverberation against the direct sound, for each stem.
      pan: largest distance of a stem from the centre, 0 to 1 (stereo only).
      peak: what |mix| should stay below; the gain of a piece is set by an estimate
        (`_peak_estimate`).
    """

    sample_rate: int = 16000
    channels: int = 1
    soundfont: str = ""
    instruments: str = "role"
    tempo: tuple[float, float] = (0.9, 1.1)
    transpose: tuple[int, int] = (-3, 3)
    velocity: tuple[float, float] = (0.8, 1.1)
    velocity_jitter: float = 8.0
    timing_jitter: float = 0.008
    level: tuple[float, float] = (-6.0, 0.0)
    reverb: bool = True
    reverb_time: tuple[float, float] = (0.2, 0.5)
    wet: tuple[float, float] = (0.05, 0.25)
    pan: float = 0.6
    peak: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                pair = tuple(value)
                if len(pair) != 2 or pair[0] > pair[1]:
                    raise UserError(f"render.{field.name} is {value!r}, expected (low, high)")
                object.__setattr__(self, field.name, pair)
        if self.instruments not in INSTRUMENTS:
            raise UserError(
                f"render.instruments is {self.instruments!r}, expected one of {INSTRUMENTS}"
            )
        if self.channels not in (1, 2):
            raise UserError(f"render.channels is {self.channels}, expected 1 or 2")
        if not 4000 <= self.sample_rate <= 192_000:
            raise UserError(f"render.sample_rate is {self.sample_rate}, expected 4000 to 192000 Hz")
        if not 0 <= self.timing_jitter <= MAX_TIMING_JITTER:
            raise UserError(
                f"render.timing_jitter is {self.timing_jitter}, expected 0 to {MAX_TIMING_JITTER} s"
            )
        if self.tempo[0] <= 0 or self.reverb_time[0] <= 0 or self.velocity[0] <= 0:
            raise UserError("render.tempo, render.reverb_time and render.velocity must be positive")
        if self.wet[0] < 0 or self.velocity_jitter < 0 or not 0 <= self.pan <= 1 or self.peak <= 0:
            raise UserError("render.wet, velocity_jitter, pan (0 to 1) or peak is out of range")


PLAIN: dict[str, Any] = {
    "instruments": "score",
    "tempo": (1.0, 1.0),
    "transpose": (0, 0),
    "velocity": (1.0, 1.0),
    "velocity_jitter": 0.0,
    "timing_jitter": 0.0,
    "level": (0.0, 0.0),
}
"""Fields of a `RenderConfig` that plays the score as written: `RenderConfig(sample_rate=44100,
**PLAIN)`."""


@dataclasses.dataclass(frozen=True)
class Performance:
    """A piece as it will be played: everything drawn, nothing rendered yet. Times are s of the
    performance.

    Attributes:
      notes: float32 [N, 5], columns as `Record.notes`, sorted by (onset, stem, pitch).
      programs: int32 [S].
      stem_mask: bool [S].
      duration: s; reverberation and releases ring on after it.
      tempo_scale, transpose: what was drawn.
      amplitudes: float32 [S, C], factor of each stem in each channel, the gain of the piece
        included.
      gain: the gain of the piece.
      wet: float32 [S]; room: impulse response (reverberation time s, index of each stem).
      config: how it was drawn.
    """

    notes: np.ndarray
    programs: np.ndarray
    stem_mask: np.ndarray
    duration: float
    tempo_scale: float
    transpose: int
    amplitudes: np.ndarray
    gain: float
    wet: np.ndarray
    reverb_time: float
    rooms: np.ndarray
    beats: np.ndarray
    downbeats: np.ndarray
    chord_times: np.ndarray
    chords: list[str]
    config: RenderConfig


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A rendered crop. Times are s from its start.

    Attributes:
      stems: float32 [S, T, C]; zeros where the stem is missing.
      mix: float32 [T, C], `stems.sum(0)`.
      stem_mask: bool [S].
      programs: int32 [S], the instruments that play.
      notes: float32 [N, 5], the notes that sound in the crop, cut to it.
      beats, downbeats: float32 [n].
      chord_times: float32 [n], and chords: n labels (transposed); the first holds from 0 if a chord
        sounds there.
      gain, tempo_scale, transpose: of the piece.
      sample_rate: Hz.
    """

    stems: np.ndarray
    mix: np.ndarray
    stem_mask: np.ndarray
    programs: np.ndarray
    notes: np.ndarray
    beats: np.ndarray
    downbeats: np.ndarray
    chord_times: np.ndarray
    chords: list[str]
    gain: float
    tempo_scale: float
    transpose: int
    sample_rate: int


def render(
    record: Record, *, start: float, duration: float, seed: int, config: RenderConfig
) -> Rendered:
    """Renders `duration` s from `start` s of `record` as performed with `seed`; see `perform` and
    `render_crop`."""
    return render_crop(perform(record, seed=seed, config=config), start=start, duration=duration)


def perform(record: Record, *, seed: int, config: RenderConfig) -> Performance:
    """Draws instruments, tempo, transposition, dynamics, timing and room of a piece from
    (record.id, seed).

    Raises:
      UserError: `record` is a recording, or the SoundFont cannot be read.
    """
    if not record.is_score:
        raise UserError(f"record {record.id}: is a recording, only scores can be rendered")
    rng = np.random.default_rng([_integer(record.id), seed])
    count, stems = len(record.notes), len(record.stem_names)
    tempo_scale = rng.uniform(*config.tempo)
    transpose = int(rng.integers(config.transpose[0], config.transpose[1] + 1))
    velocity_scale = rng.uniform(*config.velocity, size=stems)
    level = 10 ** (rng.uniform(*config.level, size=stems) / 20)
    pan = rng.uniform(-config.pan, config.pan, size=stems)
    wet = rng.uniform(*config.wet, size=stems)
    # In steps of 0.05 s: impulse responses are shared between pieces.
    reverb_time = max(0.05, round(rng.uniform(*config.reverb_time) * 20) / 20)
    rooms = rng.integers(synth.ROOMS, size=stems)
    shift = rng.uniform(-1, 1, count) * config.timing_jitter
    velocity_change = rng.uniform(-1, 1, count) * config.velocity_jitter

    stem = record.notes[:, STEM].astype(np.int64)
    programs = _programs(record, transpose, config, rng)
    pitched = programs[stem] != DRUM_KIT
    notes = record.notes.astype(np.float64)
    notes[:, [ONSET, OFFSET]] /= tempo_scale
    notes[:, [ONSET, OFFSET]] += np.maximum(shift, -notes[:, ONSET])[:, None]
    notes[:, PITCH] = np.clip(notes[:, PITCH] + transpose * pitched, 0, 127)
    notes[:, VELOCITY] *= velocity_scale[stem]
    notes[:, VELOCITY] = np.clip(notes[:, VELOCITY] + velocity_change, 1, 127)
    notes = notes.astype(np.float32)
    notes = notes[np.lexsort((notes[:, PITCH], notes[:, STEM], notes[:, ONSET]))]

    # The nearer channel at full level, the other one lower: no channel is ever above the mono
    # level.
    sides = (
        np.ones((stems, 1)) if config.channels == 1 else np.minimum(1, 1 + np.outer(pan, (-1, 1)))
    )
    loudness = np.array(
        [synth.levels(config.soundfont, config.sample_rate, p)[1] for p in programs.tolist()]
    )
    amplitudes = level * record.stem_mask * loudness
    gain = config.peak / _peak_estimate(notes, programs, amplitudes, config)
    return Performance(
        notes=notes,
        programs=programs,
        stem_mask=np.asarray(record.stem_mask, bool),
        duration=record.duration / tempo_scale,
        tempo_scale=tempo_scale,
        transpose=transpose,
        amplitudes=(gain * amplitudes[:, None] * sides).astype(np.float32),
        gain=gain,
        wet=wet.astype(np.float32),
        reverb_time=reverb_time,
        rooms=rooms,
        beats=record.beats / np.float32(tempo_scale),
        downbeats=record.downbeats / np.float32(tempo_scale),
        chord_times=record.chord_times / np.float32(tempo_scale),
        chords=[transpose_chord(label, transpose) for label in record.chords],
        config=config,
    )


def performed(record: Record, performance: Performance) -> Record:
    """`record` as `performance` plays it: what captions and labels of the sound are made from."""
    scale = np.float32(performance.tempo_scale)
    tonic, _, mode = record.key.partition(" ")
    return dataclasses.replace(
        record,
        programs=performance.programs,
        duration=performance.duration,
        key=f"{transpose_chord(tonic, performance.transpose)} {mode}" if mode else "",
        notes=performance.notes,
        tempi=record.tempi * np.array([1 / scale, scale], np.float32),
        metres=record.metres * np.array([1 / scale, 1, 1], np.float32),
        beats=performance.beats,
        downbeats=performance.downbeats,
        chord_times=performance.chord_times,
        chords=performance.chords,
    )


def render_crop(performance: Performance, *, start: float, duration: float) -> Rendered:
    """Renders a crop; equal to the same span of any longer rendering to float32 rounding (2e-6).

    Args:
      performance: from `perform`.
      start: s, at least 0; past the end there is silence.
      duration: s; T = round(duration * sample_rate).
    """
    import scipy.fft

    if start < 0 or duration <= 0:
        raise ValueError(f"crop of {duration} s from {start} s: expected start >= 0, duration > 0")
    config = performance.config
    rate = config.sample_rate
    length = round(duration * rate)
    pre_roll = synth.response_length(performance.reverb_time, rate) - 1 if config.reverb else 0
    dry = _direct_sound(performance, round(start * rate) - pre_roll, pre_roll + length)
    stems = np.zeros((len(dry), length, config.channels), np.float32)
    sounding = np.flatnonzero(dry.any(1) & (performance.amplitudes.max(1) > 0))
    amplitudes = performance.amplitudes[sounding]
    if config.reverb and len(sounding):
        wet = performance.wet[sounding, None, None]
        size = scipy.fft.next_fast_len(dry.shape[1], real=True)
        filters = synth.room_spectra(performance.reverb_time, rate, config.channels, size)
        spectra = scipy.fft.rfft(dry[sounding], size)[:, None]  # [S, 1, bins]
        # Circular convolution wraps into the pre-roll only, which is cut away.
        spectra = spectra * (
            amplitudes[:, :, None] * (1 + wet * filters[performance.rooms[sounding]])
        )
        played = scipy.fft.irfft(spectra, size)[:, :, pre_roll : pre_roll + length]
        stems[sounding] = played.transpose(0, 2, 1)
    elif len(sounding):
        stems[sounding] = dry[sounding, :, None] * amplitudes[:, None]
    return Rendered(
        stems=stems,
        mix=stems.sum(0),
        stem_mask=performance.stem_mask,
        programs=performance.programs,
        gain=performance.gain,
        tempo_scale=performance.tempo_scale,
        transpose=performance.transpose,
        sample_rate=rate,
        **_labels(performance, start, duration),
    )


def transpose_chord(label: str, semitones: int) -> str:
    """Transposes a chord label in Harte's syntax ("F#:min7", "Bb:maj/3", "N"); flats are respelt as
    in `SPELLING`."""
    root, separator, quality = label.partition(":")
    if not root or root[0] not in _NATURAL:
        return label
    if not separator:
        root, separator, quality = (*root.partition("/"),)
    return SPELLING[(pitch_class(root) + semitones) % 12] + separator + quality


def pitch_class(name: str) -> int:
    """0 for "C" to 11 for "B", of a note name with any accidentals ("F#", "Bb")."""
    return (_NATURAL[name[0]] + name.count("#") - name.count("b")) % 12


SPELLING = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_NATURAL = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def _integer(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _programs(
    record: Record, transpose: int, config: RenderConfig, rng: np.random.Generator
) -> np.ndarray:
    """int32 [S]: drawn, or the record's where `instruments` is "score" and it has them."""
    spans: list[tuple[float, float]] = []
    for stem in range(len(record.stem_names)):
        pitches = record.notes[record.notes[:, STEM] == stem, PITCH]
        # Without the outer twentieths: one odd note should not choose the instrument.
        pitches = np.sort(pitches)[len(pitches) // 20 : len(pitches) - len(pitches) // 20]
        spans.append(
            (pitches[0] + transpose, pitches[-1] + transpose) if len(pitches) else (60, 60)
        )
    free = config.instruments == "free"
    drawn = instruments.draw_programs(record.stem_names, spans, rng, free)
    recorded = np.asarray(record.programs, np.int32)
    # The kit's notes are keys, not pitches: they must stay drums, and pitched notes must not become
    # drums.
    keep = (recorded == DRUM_KIT) | (recorded >= 0) & (config.instruments == "score")
    return np.where(keep, recorded, drawn).astype(np.int32)


def _peak_estimate(
    notes: np.ndarray, programs: np.ndarray, amplitudes: np.ndarray, config: RenderConfig
) -> float:
    """What |mix| stays below at gain 1: `HEADROOM` times the largest p-norm, p = `NORM`, of the
    peaks of the notes that sound together.

    An estimate, not a bound: a sum of the peaks (p = 1) would be three times what is reached, a sum
    of powers (p = 2) misses notes in unison.
    """
    if not len(notes):
        return 1.0
    stem, pitch = notes[:, STEM].astype(np.int64), notes[:, PITCH].astype(np.int64)
    players = programs.tolist()
    peaks = np.stack([synth.levels(config.soundfont, config.sample_rate, p)[0] for p in players])
    release = np.array([instruments.group_of(p).release for p in players])
    height = (peaks * amplitudes[:, None])[stem, pitch] * (notes[:, VELOCITY] / 127) ** 2
    times = np.concatenate([notes[:, ONSET], notes[:, ONSET] + _hold(notes, programs)])
    times[len(notes) :] += release[stem]
    terms = height**NORM
    changes = np.concatenate([terms, -terms])[np.argsort(times, kind="stable")]
    return HEADROOM * max(float(np.cumsum(changes).max()), 1e-6) ** (1 / NORM)


def _hold(notes: np.ndarray, programs: np.ndarray) -> np.ndarray:
    """float32 [N], s from onset to the start of the release."""
    duration = notes[:, OFFSET] - notes[:, ONSET]
    drums = programs[notes[:, STEM].astype(np.int64)] == DRUM_KIT
    return np.where(drums, np.float32(instruments.DRUM_HOLD), duration)


def _direct_sound(performance: Performance, begin: int, length: int) -> np.ndarray:
    """float32 [S, length]: the notes without reverberation, stem amplitude or gain, from sample
    `begin` (may be < 0)."""
    config, rate = performance.config, performance.config.sample_rate
    notes, programs = performance.notes, performance.programs
    out = np.zeros((len(programs), length), np.float32)
    # Whole samples of the piece's time, so that every crop places a note alike.
    onsets = np.rint(notes[:, ONSET].astype(np.float64) * rate).astype(np.int64) - begin
    holds = np.maximum(1, np.rint(_hold(notes, programs).astype(np.float64) * rate)).astype(
        np.int64
    )
    fades = [synth.fade(instruments.group_of(p).release, rate) for p in programs.tolist()]
    ends = onsets + holds + np.array([len(fade) for fade in fades])[notes[:, STEM].astype(np.int64)]
    heights = (notes[:, VELOCITY] / 127) ** 2
    for n in np.flatnonzero((onsets < length) & (ends > 0)).tolist():
        onset, hold, end, stem = int(onsets[n]), int(holds[n]), int(ends[n]), int(notes[n, STEM])
        program, pitch = int(programs[stem]), int(notes[n, PITCH])
        wave = synth.note(config.soundfont, rate, program, pitch, end - onset)
        first, last = max(0, -onset), min(end, length) - onset
        piece = wave[first:last] * heights[n]
        if last > hold:
            piece[max(0, hold - first) :] *= fades[stem][max(0, first - hold) : last - hold]
        out[stem, onset + first : onset + last] += piece
    return out


def _labels(performance: Performance, start: float, duration: float) -> dict[str, Any]:
    """Notes, beats and chords of a crop, relative to it."""
    notes, end = performance.notes, start + duration
    notes = notes[(notes[:, ONSET] < end) & (notes[:, OFFSET] > start)].copy()
    notes[:, [ONSET, OFFSET]] = np.clip(notes[:, [ONSET, OFFSET]] - np.float32(start), 0, duration)
    times = performance.chord_times
    first = max(0, int(np.searchsorted(times, start, side="right")) - 1)
    last = int(np.searchsorted(times, end, side="left"))
    return {
        "notes": notes,
        "beats": _within(performance.beats, start, end),
        "downbeats": _within(performance.downbeats, start, end),
        "chord_times": np.maximum(times[first:last] - np.float32(start), 0),
        "chords": performance.chords[first:last],
    }


def _within(times: np.ndarray, start: float, end: float) -> np.ndarray:
    return times[(times >= start) & (times < end)] - np.float32(start)
