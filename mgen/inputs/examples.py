"""One example of a batch: crop, render or decode, augment. `pipeline` maps these over the order of
the records.

Picklable callables (Grain's workers get copies) of (g, (source, index)), where g numbers the
examples of the run.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mgen.audio import io
from mgen.errors import UserError
from mgen.inputs import captions, controls, render, tokens, transforms
from mgen.inputs.record import STEM, Record
from mgen.inputs.records import RecordSource
from mgen.inputs.vocabulary import Vocabulary

VECTORS = "_embedding"  # ends the name of the vectors beside a stream of codes
TEXT = "text"  # vectors of a text encoder, one row a token of the piece's description


@dataclasses.dataclass(frozen=True)
class Pair:
    """index -> (source, index)."""

    source: int

    def __call__(self, index: int) -> tuple[int, int]:
        return self.source, int(index)


def usable(source: Any, config: Any) -> range | list[int]:
    """Indices of the pieces that a crop can be taken from: token sequences shorter than a crop are
    left out.

    Raises:
      UserError: all of them are.
    """
    if not isinstance(source, tokens.TokenSource):
        return range(len(source))
    fine = np.ones(len(source), bool)
    for stream in cut_streams(source, config.streams):
        length = crop_frames(source, stream, config.seconds)
        frames = source.frames[stream]
        fine &= frames >= length
        if not fine.any():
            raise UserError(
                f"{source.folder}: the longest piece of split {source.split!r} has"
                f" {frames.max()} frames of {stream}, expected {length} for"
                f" data.seconds={config.seconds}"
            )
    return np.flatnonzero(fine).tolist()


def cut_streams(source: tokens.TokenSource, streams: Sequence[str]) -> list[str]:
    """Those of the streams that are cut to a crop: neither vectors of windows nor what has one row
    for the whole piece."""
    about = source.manifest["streams"]
    return [name for name in streams if name in about and about[name]["frame_rate"]]


def frame_rate(source: tokens.TokenSource, stream: str) -> float:
    """Frames a second; of "joint_embedding", which belongs to the stream "joint", windows."""
    return source.manifest["streams"][stream.removesuffix(VECTORS)]["frame_rate"]


def crop_frames(source: tokens.TokenSource, stream: str, seconds: float) -> int:
    """Frames of a crop."""
    return max(1, round(seconds * frame_rate(source, stream)))


def slots(source: RecordSource, names: Sequence[str]) -> list[int]:
    """Where a dataset has the stems `names`; () stands for all of them.

    Raises:
      UserError: it lacks one.
    """
    known = list(source[0].stem_names)
    for name in names:
        if name not in known:
            raise UserError(
                f"data.stems: no stem {name!r} in {source.folder}; found {', '.join(known)}"
            )
    return [known.index(name) for name in names or known]


@dataclasses.dataclass(frozen=True)
class StreamsExample:
    """A random crop of each of `data.streams`, int32 [F, K], and "attributes" int32 [A].

    Vectors of windows [W, D] become the mean of those within the crop, float32 [D] (MusicLM,
    section 4.2); those of "text" float32 [data.text_length, D] and "text_mask".
    """

    sources: list[tokens.TokenSource]
    config: dict[str, Any]
    seed: int

    def __call__(self, g: int, pair: tuple[int, int]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, g])
        source, seconds = self.sources[pair[0]], self.config["seconds"]
        piece = source[pair[1]]
        cut = cut_streams(source, self.config["streams"])
        # Crops start where the slowest stream has a frame, so that all are of the same time.
        slowest = min(cut, key=lambda name: frame_rate(source, name))
        room = min(
            (len(piece[name]) - crop_frames(source, name, seconds)) / frame_rate(source, name)
            for name in cut
        )
        rate = frame_rate(source, slowest)
        start = int(rng.integers(int(room * rate + 1e-6) + 1)) / rate
        found = {"attributes": piece["attributes"]}
        for name in self.config["streams"]:
            if name in cut:
                first = round(start * frame_rate(source, name))
                found[name] = piece[name][first : first + crop_frames(source, name, seconds)]
            elif name == TEXT:
                found |= self.text(piece[name])
            elif name in source.manifest["streams"]:
                found[name] = piece[name]
            else:
                found[name] = self.mean(source, name, piece[name], start)
        return found

    def text(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """The vectors of a piece's description, cut or filled up to `data.text_length` rows."""
        length = self.config["text_length"]
        rows = vectors[:length]
        padded = np.pad(rows, ((0, length - len(rows)), (0, 0))).astype(np.float32)
        return {TEXT: padded, f"{TEXT}_mask": np.arange(length) < len(rows)}

    def mean(
        self, source: tokens.TokenSource, name: str, vectors: np.ndarray, start: float
    ) -> np.ndarray:
        """Of the windows that lie within the crop, or of the one that covers it best."""
        about = source.manifest["streams"][name.removesuffix(VECTORS)]
        room = max(0.0, self.config["seconds"] - about["window_seconds"])
        first = min(round(start * about["frame_rate"]), len(vectors) - 1)
        last = max(first, int((start + room) * about["frame_rate"]))
        return vectors[first : last + 1].mean(axis=0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Stems:
    """A crop: stems float32 [S, T, C], mask bool [S], programs int32 [S], the piece that it is
    from, as it is played, and the second where it begins; None of stems of several pieces."""

    stems: np.ndarray
    mask: np.ndarray
    programs: np.ndarray
    record: Record
    start: float | None


class AudioExample:
    """{"audio": ...}, {"audio", "text", "text_mask"} or {"stems", "mix", "stem_mask", "programs"}
    and `controls.NAMES`, see `pipeline.default_config`."""

    def __init__(
        self, sources: Sequence[RecordSource], config: dict[str, Any], seed: int, train: bool
    ):
        self.sources = sources
        self.config = config
        self.seed = seed
        self.train = train
        self.render = render.RenderConfig(
            sample_rate=config["sample_rate"], channels=config["channels"], **config["render"]
        )
        self.vocabulary = (
            Vocabulary(config["vocabulary"]) if config["view"] == "audio_text" else None
        )
        # All datasets have their stems in the same places.
        stems = config["view"] == "stems"
        self.slots = slots(sources[0], config["stems"]) if stems else []

    def __call__(self, g: int, pair: tuple[int, int]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, g])
        config = self.config
        crop = self.crop(self.sources[pair[0]][pair[1]], rng, self.slots)
        if self.train:
            if rng.random() < config["remix"]:
                crop = self.remix(crop, pair, rng)
            crop = self.augment(crop, rng)
        if config["view"] == "stems":
            return {
                "stems": crop.stems[self.slots],
                "mix": crop.stems.sum(0),
                "stem_mask": crop.mask[self.slots],
                "programs": crop.programs[self.slots],
                **self.controls(crop),
            }
        if self.vocabulary is not None:
            caption = self.caption(crop, int(rng.integers(2**31)))
            (text,), (mask,) = self.vocabulary.encode([caption], config["text_length"])
            return {"audio": crop.stems.sum(0), "text": text, "text_mask": mask}
        return {"audio": self.select(crop, rng)}

    def controls(self, crop: Stems) -> dict[str, np.ndarray]:
        """What is known of each frame; {} at a `control_rate` of 0."""
        rate = self.config["control_rate"]
        frames = round(self.config["seconds"] * rate)
        if not rate:
            return {}
        if crop.start is None:
            return controls.unknown(frames)
        return controls.of_crop(crop.record, crop.mask, crop.start, frames, rate)

    def caption(self, crop: Stems, seed: int) -> str:
        """One of the record's own captions, or one written from what is known of the crop."""
        own = crop.record.captions
        if own:
            return own[seed % len(own)]
        record, mask = crop.record, crop.mask
        # Of the stems that are left: a dropped one must not be spoken of.
        notes = record.notes[mask[record.notes[:, STEM].astype(np.int64)]]
        left = dataclasses.replace(record, stem_mask=mask, notes=notes)
        dropout = captions.DROPOUT if self.train else 0.0
        return captions.captions(left, seed, 1, dropout)[0]

    def crop(self, record: Record, rng: np.random.Generator, wanted: Sequence[int] = ()) -> Stems:
        """A random crop of all stems, drawn again while its mix is too quiet or fewer than
        `data.min_sounding` of the stems `wanted` (of all of these, where they are fewer) sound."""
        config = self.config
        if record.is_score:
            seed = int(rng.integers(2**31)) if self.train else self.seed
            performance = render.perform(record, seed=seed, config=self.render)
            record = render.performed(record, performance)

        drawn: list[tuple[float, np.ndarray]] = []

        def draw() -> np.ndarray:
            start = rng.uniform(0, max(0.0, record.duration - config["seconds"]))
            if record.is_score:
                span = dict(start=start, duration=config["seconds"])
                stems = render.render_crop(performance, **span).stems
            else:
                stems = self.decode(record, start)
            drawn.append((start, stems))
            return stems

        least = min(config["min_sounding"], len(wanted))
        stems = transforms.loudest_crop(
            draw, config["min_loudness"], config["attempts"], wanted, least
        )
        programs = np.asarray(record.programs, np.int32)
        start = next(start for start, crop in drawn if crop is stems)
        return Stems(stems, np.asarray(record.stem_mask, bool), programs, record, start)

    def decode(self, record: Record, start: float) -> np.ndarray:
        """A crop of a recording's stems, zeros past its end."""
        config = self.config
        length = round(config["seconds"] * config["sample_rate"])
        stems = np.zeros((len(record.audio), length, config["channels"]), np.float32)
        for stem, data in enumerate(record.audio):
            if data:
                stems[stem] = io.read(
                    data,
                    start=start,
                    duration=config["seconds"],
                    sample_rate=config["sample_rate"],
                    channels=config["channels"],
                )
        return stems

    def remix(self, crop: Stems, pair: tuple[int, int], rng: np.random.Generator) -> Stems:
        """Every stem but the first present one from another random piece of the same dataset."""
        stems, mask, programs = crop.stems.copy(), crop.mask.copy(), crop.programs.copy()
        for stem in np.flatnonzero(mask)[1:]:
            source = self.sources[pair[0]]
            other = self.crop(source[int(rng.integers(len(source)))], rng, [int(stem)])
            stems[stem], mask[stem] = other.stems[stem], other.mask[stem]
            programs[stem] = other.programs[stem]
        return Stems(transforms.limit_peak(stems), mask, programs, crop.record, None)

    def augment(self, crop: Stems, rng: np.random.Generator) -> Stems:
        """Dropout, loudness, gain, channel swap: in this order, so that the gain is that of what is
        left."""
        config, stems, mask = self.config, crop.stems, crop.mask
        if config["stem_dropout"]:
            stems, mask = transforms.drop_stems(stems, mask, config["stem_dropout"], rng)
        stems = transforms.augment(stems, config, rng)
        return dataclasses.replace(crop, stems=np.ascontiguousarray(stems), mask=mask)

    def select(self, crop: Stems, rng: np.random.Generator) -> np.ndarray:
        """float32 [T, C]: the mix or one of the stems that sound in the crop."""
        mix = crop.stems.sum(0)
        floor = self.config["min_loudness"]
        sounding = [stem for stem in crop.stems if transforms.level_db(stem) >= floor]
        choices = {"mix": [mix], "stems": sounding or [mix], "any": [mix, *sounding]}
        choice = choices[self.config["source"]]
        return choice[int(rng.integers(len(choice)))]
