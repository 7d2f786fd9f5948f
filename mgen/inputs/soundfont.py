"""Single notes from a SoundFont: SF2 2.04 read with numpy, played one note at a time.

The synthesiser in symusic 0.5.9 plays most programs out of tune (a piano's A4 sounds near 1660 Hz),
and the packages that bind a correct one need system libraries that pip cannot bring. The renderer
wants single notes and keeps them, so speed does not matter here; pitch does. Implemented (SF2 2.04,
sections 7, 8.1 and 9): presets, zones with their ranges and globals, tuning, loops, the volume
envelope, attenuation, pan, and the low-pass filter with its envelope. Left out: LFOs, pitch
envelopes, modulators (a note's velocity chooses the zone; its level is the caller's), chorus and
reverberation.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from mgen.errors import UserError

DRUM_BANK = 128
_FILTER_BLOCK = 128  # samples
_TAGS = ("phdr", "pbag", "pgen", "inst", "ibag", "igen", "shdr")
_BAG = np.dtype([("gen", "<u2"), ("mod", "<u2")])
_GEN = np.dtype([("oper", "<u2"), ("amount", "<i2")])
_DTYPES = {
    "phdr": np.dtype(
        [("name", "S20"), ("preset", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("rest", "<u4", 3)]
    ),
    "pbag": _BAG,
    "pgen": _GEN,
    "inst": np.dtype([("name", "S20"), ("bag", "<u2")]),
    "ibag": _BAG,
    "igen": _GEN,
    "shdr": np.dtype(
        [
            ("name", "S20"),
            ("start", "<u4"),
            ("end", "<u4"),
            ("loop_start", "<u4"),
            ("loop_end", "<u4"),
            ("rate", "<u4"),
            ("root", "u1"),
            ("correction", "i1"),
            ("link", "<u2"),
            ("type", "<u2"),
        ]
    ),
}
# Generator numbers (section 8.1.2).
START, END, LOOP_START, LOOP_END, START_COARSE = 0, 1, 2, 3, 4
FILTER_FC, FILTER_Q, ENVELOPE_TO_FC, END_COARSE, PAN = 8, 9, 11, 12, 17
MOD_DELAY, MOD_ATTACK, MOD_HOLD, MOD_DECAY, MOD_SUSTAIN = 25, 26, 27, 28, 29
KEY_TO_MOD_HOLD, KEY_TO_MOD_DECAY = 31, 32
DELAY, ATTACK, HOLD, DECAY, SUSTAIN = 33, 34, 35, 36, 37
KEY_TO_HOLD, KEY_TO_DECAY, INSTRUMENT, KEY_RANGE, VELOCITY_RANGE = 39, 40, 41, 43, 44
LOOP_START_COARSE, KEY, ATTENUATION, LOOP_END_COARSE = 45, 46, 48, 50
COARSE_TUNE, FINE_TUNE, SAMPLE, MODES, SCALE, ROOT = 51, 52, 53, 54, 56, 58
_DEFAULTS = {FILTER_FC: 13500, SCALE: 100, ROOT: -1, KEY: -1} | dict.fromkeys(
    (DELAY, ATTACK, HOLD, DECAY, MOD_DELAY, MOD_ATTACK, MOD_HOLD, MOD_DECAY), -12000
)
# What a preset may not add to (section 9.4).
_ABSOLUTE = {START, END, LOOP_START, LOOP_END, START_COARSE, END_COARSE, LOOP_START_COARSE}
_ABSOLUTE |= {LOOP_END_COARSE, KEY, SAMPLE, MODES, ROOT, KEY_RANGE, VELOCITY_RANGE, INSTRUMENT}

Generators = dict[int, int]


@dataclasses.dataclass(frozen=True)
class SoundFont:
    """The tables of an SF2 file as structured arrays, and its samples, int16."""

    tables: dict[str, np.ndarray]
    samples: np.ndarray

    def zones(self, bank: int, program: int, key: int, velocity: int) -> Iterator[Generators]:
        """The generators of every zone that sounds; a program that is missing is played by the
        first of its bank."""
        presets = self.tables["phdr"][:-1]
        found = np.flatnonzero((presets["bank"] == bank) & (presets["preset"] == program))
        if not len(found):
            found = np.flatnonzero(presets["bank"] == bank)
        if not len(found):
            return
        for outer in self._zones("p", int(found[0]), key, velocity, INSTRUMENT):
            for inner in self._zones("i", outer[INSTRUMENT] & 0xFFFF, key, velocity, SAMPLE):
                added = {n: v for n, v in outer.items() if n not in _ABSOLUTE}
                names = {*_DEFAULTS, *inner, *added}
                yield {n: inner.get(n, _DEFAULTS.get(n, 0)) + added.get(n, 0) for n in names}

    def _zones(
        self, kind: str, index: int, key: int, velocity: int, terminal: int
    ) -> Iterator[Generators]:
        """The zones of a preset ("p") or an instrument ("i") that hold `terminal`, over its global
        one."""
        headers = self.tables["phdr" if kind == "p" else "inst"]
        bags, generators = self.tables[kind + "bag"]["gen"], self.tables[kind + "gen"]
        common: Generators = {}
        first, last = int(headers["bag"][index]), int(headers["bag"][index + 1])
        for bag in range(first, last):
            part = generators[int(bags[bag]) : int(bags[bag + 1])]
            zone = common | dict(zip(part["oper"].tolist(), part["amount"].tolist()))
            if terminal not in zone:
                common = zone if bag == first else common
            elif _within(zone, KEY_RANGE, key) and _within(zone, VELOCITY_RANGE, velocity):
                yield zone


@functools.lru_cache(maxsize=4)
def load(path: Path) -> SoundFont:
    """Reads an SF2 file; `UserError` where it is none, truncated or compressed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: no readable SoundFont ({error.strerror})") from error
    if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
        raise UserError(f"{path}: not a SoundFont; expected a RIFF file of type sfbk")
    chunks = dict(_chunks(data, 12, len(data)))
    missing = [tag for tag in (*_TAGS, "smpl") if tag not in chunks]
    if missing:
        raise UserError(f"{path}: SoundFont without chunk {missing[0]!r}; truncated?")
    try:
        tables = {tag: np.frombuffer(chunks[tag], _DTYPES[tag]) for tag in _TAGS}
        samples = np.frombuffer(chunks["smpl"], "<i2")
    except ValueError as error:
        raise UserError(f"{path}: damaged SoundFont ({error})") from error
    if tables["shdr"]["end"].max(initial=0) > len(samples):
        raise UserError(f"{path}: SoundFont whose samples are cut off")
    return SoundFont(tables, samples)


def play(
    font: SoundFont, *, bank: int, program: int, key: int, velocity: int, rate: int, length: int
) -> np.ndarray:
    """A held note from its onset on, mono float32 [length]; zeros where the font has no sound for
    it.

    Args:
      bank: 0 melodic, `DRUM_BANK` percussion. program: 0-127. key, velocity: MIDI.
      rate: Hz of the output. length: samples.
    """
    out = np.zeros(length, np.float64)
    for zone in font.zones(bank, program, key, velocity):
        wave = _pitched(font, zone, key, rate, length)
        wave = wave * _envelope(zone, key, rate, len(wave))
        wave = _filtered(zone, wave, key, rate)
        # Half of a linear pan's two channels; the attenuation of real synthesisers is 0.4 of the
        # specification's, for which most fonts are made.
        angle = (np.clip(zone.get(PAN, 0), -500, 500) / 1000 + 0.5) * math.pi / 2
        gain = (math.cos(angle) + math.sin(angle)) / math.sqrt(2)
        out[: len(wave)] += wave * gain * 10 ** (-0.4 * zone.get(ATTENUATION, 0) / 200)
    return out.astype(np.float32)


def _pitched(font: SoundFont, zone: Generators, key: int, rate: int, length: int) -> np.ndarray:
    """The zone's sample, looped, at the pitch of `key`; without aliasing (soxr filters)."""
    sample = font.tables["shdr"][zone[SAMPLE] & 0xFFFF]

    def point(field: str, fine: int, coarse: int) -> int:
        at = int(sample[field]) + zone.get(fine, 0) + 32768 * zone.get(coarse, 0)
        return min(max(at, 0), len(font.samples))

    start, end = point("start", START, START_COARSE), point("end", END, END_COARSE)
    loop = (
        point("loop_start", LOOP_START, LOOP_START_COARSE),
        point("loop_end", LOOP_END, LOOP_END_COARSE),
    )
    played = key if zone[KEY] < 0 else zone[KEY]
    root = int(sample["root"]) if zone[ROOT] < 0 else zone[ROOT]
    root = 60 if root > 127 else root
    cents = (played - root) * zone[SCALE] + 100 * zone.get(COARSE_TUNE, 0)
    cents += zone.get(FINE_TUNE, 0) + int(sample["correction"])
    source_rate = float(sample["rate"]) * 2 ** (cents / 1200)
    needed = math.ceil(length * source_rate / rate) + 64
    raw = font.samples[start:end]
    if zone.get(MODES, 0) & 1 and start <= loop[0] < loop[1] <= end:
        head, body = font.samples[start : loop[0]], font.samples[loop[0] : loop[1]]
        turns = max(0, math.ceil((needed - len(head)) / len(body)))
        raw = np.concatenate([head, np.tile(body, turns)])
    raw = raw[:needed].astype(np.float32) / 32768
    if not len(raw):
        return np.zeros(0)
    return soxr.resample(raw, source_rate, rate)[:length].astype(np.float64)


def _envelope(zone: Generators, key: int, rate: int, length: int) -> np.ndarray:
    """Amplitude of a held note: attack linear, decay linear in dB (100 dB in DECAY seconds)."""
    stages = (DELAY, ATTACK, HOLD, DECAY, KEY_TO_HOLD, KEY_TO_DECAY)
    rising, falling = _stages(zone, key, np.arange(length) / rate, stages)
    fall = np.minimum(100 * falling, zone.get(SUSTAIN, 0) / 10)
    return rising * np.where(fall >= 96, 0.0, 10 ** (-fall / 20))


def _stages(
    zone: Generators, key: int, time: np.ndarray, stages: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """How far an envelope has risen (0 to 1, linear), and for how many decay times it has
    fallen."""
    delay, attack, hold, decay = (2 ** (zone[stage] / 1200) for stage in stages[:4])
    hold, decay = (
        seconds * 2 ** ((60 - key) * zone.get(by_key, 0) / 1200)
        for seconds, by_key in zip((hold, decay), stages[4:])
    )
    return (
        np.clip((time - delay) / attack, 0.0, 1.0),
        np.maximum(time - delay - attack - hold, 0.0) / decay,
    )


def _filtered(zone: Generators, wave: np.ndarray, key: int, rate: int) -> np.ndarray:
    """The two-pole low-pass filter; its cutoff follows the modulation envelope block by block."""
    from scipy.signal import lfilter  # slow to import

    swing = zone.get(ENVELOPE_TO_FC, 0)
    if not len(wave) or (zone[FILTER_FC] >= 13500 and swing >= 0):
        return wave
    starts = np.arange(0, len(wave), _FILTER_BLOCK)
    stages = (MOD_DELAY, MOD_ATTACK, MOD_HOLD, MOD_DECAY, KEY_TO_MOD_HOLD, KEY_TO_MOD_DECAY)
    rising, falling = _stages(zone, key, starts / rate, stages)
    level = rising * np.maximum(1 - falling, 1 - zone.get(MOD_SUSTAIN, 0) / 1000)
    cutoffs = np.minimum(8.176 * 2 ** ((zone[FILTER_FC] + swing * level) / 1200), 0.45 * rate)
    # Most envelopes soon stand still: one run of the filter for each stretch of equal cutoff.
    edges = [0, *np.flatnonzero(np.diff(cutoffs)) + 1]
    q = 10 ** (zone.get(FILTER_Q, 0) / 200) / math.sqrt(2)
    state, out = np.zeros(2), np.empty_like(wave)
    for first, last in zip(edges, [*edges[1:], len(starts)]):
        part = slice(first * _FILTER_BLOCK, last * _FILTER_BLOCK)
        numerator, denominator = _low_pass(float(cutoffs[first]), q, rate)
        out[part], state = lfilter(numerator, denominator, wave[part], zi=state)
    return out


def _low_pass(cutoff: float, q: float, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Biquad coefficients by the bilinear transform (R. Bristow-Johnson's cookbook)."""
    angle = 2 * math.pi * cutoff / rate
    alpha, cosine = math.sin(angle) / (2 * q), math.cos(angle)
    one = 1 - cosine
    return np.array([one / 2, one, one / 2]), np.array([1 + alpha, -2 * cosine, 1 - alpha])


def _within(zone: Generators, name: int, value: int) -> bool:
    """Ranges are two bytes, low and high."""
    bounds = zone.get(name, 127 << 8) & 0xFFFF
    return bounds & 0xFF <= value <= bounds >> 8


def _chunks(data: bytes, start: int, stop: int) -> Iterator[tuple[str, Any]]:
    """(tag, content) of a RIFF chunk's parts, lists opened."""
    while start + 8 <= stop:
        tag = data[start : start + 4].decode("latin-1")
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        content = start + 8
        if tag == "LIST":
            yield from _chunks(data, content + 4, min(content + size, stop))
        else:
            yield tag, memoryview(data)[content : content + size]
        start = content + size + size % 2
