"""Two renditions of one melody: what an embedding of melodies learns from (Agostinelli et al. 2023,
"MusicLM", melody conditioning).

The same bars of a score at one tempo and in one key are played twice, with other instruments,
dynamics, timing and rooms: once the melody alone, once everybody, or the melody alone again.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mgen.errors import UserError
from mgen.inputs import instruments, render, transforms
from mgen.inputs.record import DRUM_KIT, OFFSET, ONSET, PITCH, STEM, Record
from mgen.inputs.records import RecordSource

GRID = 0.05  # s, how finely it is asked who plays the highest note
# A crop in which the melody rests for longer is drawn again.
SOUNDING = 0.5


@dataclasses.dataclass(frozen=True)
class Duet:
    """A piece as it is played twice, at one tempo and in one key.

    Attributes:
      alone: the performance of the melody; together: that of all stems.
      melody: index of its stem.
    """

    alone: render.Performance
    together: render.Performance
    melody: int

    def start(self, seconds: float, attempts: int, rng: np.random.Generator) -> float:
        """s of the first of `attempts` random crops in which the melody sounds for `SOUNDING` of
        the time, else of that in which it sounds longest."""
        notes = self.alone.notes
        best, longest = 0.0, -1.0
        for _ in range(attempts):
            start = float(rng.uniform(0, max(0.0, self.alone.duration - seconds)))
            ends = np.minimum(notes[:, OFFSET], start + seconds)
            sounds = float(np.maximum(ends - np.maximum(notes[:, ONSET], start), 0).sum())
            if sounds > longest:
                best, longest = start, sounds
            if sounds >= SOUNDING * seconds:
                break
        return best


class PairExample:
    """{"audio": float32 [T, C], the melody alone, "other": float32 [T, C], "piece": int32, a hash
    of the piece's id}.

    `data.source` says what "other" is: "mix" (everybody), "stems" (the melody alone, played by
    someone else) or "any" of both. `data.stem_dropout` silences the accompaniment only.
    """

    def __init__(
        self, sources: Sequence[RecordSource], config: dict[str, Any], seed: int, train: bool
    ):
        for source in sources:
            if not source.scores:
                raise UserError(
                    f"{source.folder}: holds recordings, expected scores with view 'audio_pair'"
                )
        if config["remix"]:
            raise UserError("data.remix: pieces are not mixed with view 'audio_pair'; expected 0")
        self.sources = sources
        self.config = config
        self.seed = seed
        self.train = train
        self.render = render.RenderConfig(
            sample_rate=config["sample_rate"], channels=config["channels"], **config["render"]
        )

    def __call__(self, g: int, pair: tuple[int, int]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, g])
        config = self.config
        record = self.sources[pair[0]][pair[1]]
        first = int(rng.integers(2**31)) if self.train else self.seed
        duet = perform(record, first, self.render)
        start = duet.start(config["seconds"], config["attempts"], rng)
        other = duet.together
        if {"mix": 0.0, "stems": 1.0, "any": 0.5}[config["source"]] > rng.random():
            other = solo(other, duet.melody)
        audio, second = (
            self.play(performance, start, duet.melody, rng) for performance in (duet.alone, other)
        )
        # Signed, as a batch holds no other integers.
        piece = np.asarray(zlib.crc32(record.id.encode()) - 2**31, np.int32)
        return {"audio": audio, "other": second, "piece": piece}

    def play(
        self, performance: render.Performance, start: float, melody: int, rng: np.random.Generator
    ) -> np.ndarray:
        """float32 [T, C]: the mix of a crop, in training augmented: dropout, loudness, gain and
        channel swap."""
        config = self.config
        crop = render.render_crop(performance, start=start, duration=config["seconds"])
        if not self.train:
            return crop.mix
        stems, mask = crop.stems, crop.stem_mask
        if config["stem_dropout"]:
            is_melody = np.arange(len(mask)) == melody
            rate = config["stem_dropout"]
            stems, _ = transforms.drop_stems(stems, mask & ~is_melody, rate, rng)
            stems = np.where(is_melody[:, None, None], crop.stems, stems)
        return transforms.augment(stems, config, rng).sum(0)


def perform(record: Record, seed: int, config: render.RenderConfig) -> Duet:
    """Draws two performances of a score, of `seed` and the seed after it; raises `UserError` as
    `render.perform`."""
    alone = render.perform(record, seed=seed, config=config)
    tempo, transpose = alone.tempo_scale, alone.transpose
    same = dataclasses.replace(config, tempo=(tempo, tempo), transpose=(transpose, transpose))
    together = render.perform(record, seed=seed + 1, config=same)
    melody = melody_stem(record)
    return Duet(solo(alone, melody), together, melody)


def solo(performance: render.Performance, stem: int) -> render.Performance:
    """The performance of one stem alone; it sounds as in the whole."""
    mask = np.arange(len(performance.programs)) == stem
    return dataclasses.replace(
        performance,
        notes=performance.notes[performance.notes[:, STEM] == stem],
        stem_mask=performance.stem_mask & mask,
    )


def melody_stem(record: Record) -> int:
    """The stem that has the highest sounding note most of the time, among the pitched ones that are
    no bass (the skyline: Uitdenbogerd and Zobel 1999, "Melodic matching techniques for large music
    databases"); the first where nothing pitched sounds."""
    roles = [instruments.role_groups(name, record.stem_names) for name in record.stem_names]
    stem = record.notes[:, STEM].astype(np.int64)
    pitched = record.stem_mask & (record.programs != DRUM_KIT)
    pitched &= np.array([role != ("drums",) for role in roles])
    leading = pitched & np.array([role != ("bass",) for role in roles])
    sounding = np.bincount(stem, minlength=len(roles)) > 0
    candidates = leading if (leading & sounding).any() else pitched
    notes = record.notes[candidates[stem]]
    owner = np.full(int(np.ceil(notes[:, OFFSET].max(initial=0) / GRID)) + 1, len(roles))
    # The highest comes last and stays.
    for note in notes[np.argsort(notes[:, PITCH], kind="stable")]:
        first, last = np.rint(note[[ONSET, OFFSET]] / GRID).astype(int)
        owner[first : max(last, first + 1)] = int(note[STEM])
    return int(np.bincount(owner, minlength=len(roles) + 1)[:-1].argmax())
