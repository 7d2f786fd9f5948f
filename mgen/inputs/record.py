"""One record type for scores and recordings, so that every model trains on any dataset.

A record is a piece (scores: notes, no audio; the loader renders it) or a segment of at most 30 s of
a recording (one FLAC a stem, decoded from memory). Times are seconds from the start of the record.
`data/*` write records with TFDS; Grain reads them.
"""

import dataclasses
from typing import Any

import numpy as np

# Columns of `Record.notes`.
ONSET, OFFSET, PITCH, VELOCITY, STEM = range(5)
DRUM_KIT = 128  # `programs` value of a stem played on the General MIDI drum channel; -1 is unknown.


@dataclasses.dataclass
class Record:
    """A piece or a recorded segment with its stems.

    Attributes:
      id: unique in its dataset and stable from build to build.
      collection, licence, composer, title: provenance; empty where unknown.
      key: such as "G major"; empty where unknown.
      duration: length in seconds.
      stem_names: S names, the slots of the dataset in order ("bass", "drums", "guitar", "piano").
      stem_mask: bool [S], False where the stem is missing (its audio is zeros).
      programs: int32 [S], General MIDI program 0-127, 128 drum kit, -1 unknown.
      notes: float32 [N, 5]: onset s, offset s, MIDI pitch, velocity 1-127, stem index; sorted by
          (onset, stem, pitch).
      tempi: float32 [n, 2]: time s, quarter notes a minute.
      metres: float32 [n, 3]: time s, numerator, denominator.
      beats, downbeats: float32 [n], times in s.
      chord_times: float32 [n] and chords: n labels in Harte's syntax ("G:maj", "D:min7", "N"); a
          label holds until the next time.
      captions: descriptions of the record, possibly none.
      audio: S FLAC byte strings (b"" where the stem is missing), or empty for a score.
      sample_rate: Hz of `audio`; 0 for a score.
      channels: 1 or 2; 0 for a score.
      segment_start: s, where the segment starts in its source track; 0 for a score.
    """

    id: str
    stem_names: list[str]
    stem_mask: np.ndarray
    programs: np.ndarray
    duration: float
    collection: str = ""
    licence: str = ""
    composer: str = ""
    title: str = ""
    key: str = ""
    notes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 5), np.float32))
    tempi: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.float32))
    metres: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3), np.float32))
    beats: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0,), np.float32))
    downbeats: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0,), np.float32))
    chord_times: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0,), np.float32))
    chords: list[str] = dataclasses.field(default_factory=list)
    captions: list[str] = dataclasses.field(default_factory=list)
    audio: list[bytes] = dataclasses.field(default_factory=list)
    sample_rate: int = 0
    channels: int = 0
    segment_start: float = 0.0

    @property
    def is_score(self) -> bool:
        return not self.audio


def features() -> Any:
    """The TFDS feature spec of a record (imports tensorflow_datasets, not TensorFlow)."""
    import tensorflow_datasets as tfds

    text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())

    def table(*shape: int | None, dtype: Any = np.float32) -> Any:
        return tfds.features.Tensor(shape=shape, dtype=dtype)

    return tfds.features.FeaturesDict(
        {
            "id": text,
            "stem_names": texts,
            "stem_mask": table(None, dtype=np.bool_),
            "programs": table(None, dtype=np.int32),
            "duration": np.float32,
            "collection": text,
            "licence": text,
            "composer": text,
            "title": text,
            "key": text,
            "notes": table(None, 5),
            "tempi": table(None, 2),
            "metres": table(None, 3),
            "beats": table(None),
            "downbeats": table(None),
            "chord_times": table(None),
            "chords": texts,
            "captions": texts,
            "audio": texts,
            "sample_rate": np.int32,
            "channels": np.int32,
            "segment_start": np.float32,
        }
    )


def to_example(record: Record) -> dict[str, Any]:
    """The dict that a TFDS builder yields for `record`."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def from_example(example: dict[str, Any]) -> Record:
    """Inverse of `to_example` on what a TFDS data source returns (text comes back as bytes)."""
    decoded = dict(example)
    for name in ("id", "collection", "licence", "composer", "title", "key"):
        decoded[name] = example[name].decode()
    for name in ("stem_names", "chords", "captions"):
        decoded[name] = [text.decode() for text in example[name]]
    decoded["audio"] = [bytes(data) for data in example["audio"]]
    for name in ("sample_rate", "channels"):
        decoded[name] = int(example[name])
    for name in ("duration", "segment_start"):
        decoded[name] = float(example[name])
    return Record(**decoded)
