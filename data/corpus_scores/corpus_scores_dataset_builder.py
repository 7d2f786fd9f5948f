"""The embedded dataset: scores that music21 ships, or a folder of MIDI files, as `Record`s without
audio.
"""

import dataclasses
import importlib.util
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from mgen.data.corpus_scores import catalogue, midi, splits
from mgen.data.corpus_scores.assemble import Unsuitable, assemble, fingerprint
from mgen.data.corpus_scores.parse import parse_file, parse_tune, read_text, split_tunes
from mgen.data.record_builder import RecordBuilder
from mgen.errors import UserError
from mgen.inputs.record import Record


@dataclasses.dataclass(frozen=True)
class Task:
    """One piece to parse: a file, or the text of a tune out of a book."""

    id: str
    config: str
    collection: str
    licence: str
    composer: str
    work: str
    path: str
    tune: str = ""


@dataclasses.dataclass
class Piece:
    """A parsed piece, with the hashes and names by which it is joined to others."""

    record: Record
    content: str
    opening: str
    work: str


def make_piece(task: Task) -> Piece | Unsuitable:
    """Parses and assembles one piece (in a worker process)."""
    path = Path(task.path)
    if path.suffix.lower() in midi.SUFFIXES:
        score = midi.parse(path)
    else:
        # music21 warns of every bar that is too full; what matters is counted in the report.
        with warnings.catch_warnings(action="ignore"):
            score = parse_tune(task.tune) if task.tune else parse_file(path)
    content, opening = fingerprint(score)
    provenance = {name: getattr(task, name) for name in ("id", "collection", "licence", "composer")}
    try:
        return Piece(assemble(score, task.config, **provenance), content, opening, task.work)
    except Unsuitable as reason:
        return reason


def joins(piece: Piece, by_title: bool) -> list[str]:
    """What a piece must share with another to be put into the same split.

    One tune has one title in several books; but a hundred masses have a Gloria.
    """
    title = splits.title_key(piece.record.title) if by_title else None
    return [f"opening {piece.opening}", f"work {piece.work}", *filter(None, [title])]


class Builder(RecordBuilder):
    """Scores as note tables with tempo map, metre, key, chords, beats; audio is rendered by the
    loader.

    Configs: `quartets` (soprano, alto, tenor, bass by register; a missing slot is masked), `band`
    (bass, drums, guitar, piano arranged from the tune books), `tunes` (single lines).

    Args:
      collections: names from `catalogue.COLLECTIONS`, or one string of them with commas between;
        None is all that are on by default.
      midi_dir: a folder of MIDI files to read in place of the bundled scores.
      **kwargs: `limit`, `workers`, `data_dir`, `config` (see `RecordBuilder`).
    """

    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="quartets", description="Scores in four parts by register."),
        tfds.core.BuilderConfig(name="band", description="Tunes arranged for a band of four."),
        tfds.core.BuilderConfig(name="tunes", description="Single-line melodies."),
    ]

    def __init__(
        self,
        *,
        collections: Sequence[str] | str | None = None,
        midi_dir: str | os.PathLike[str] | None = None,
        source: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ):
        if source is not None:
            raise UserError(
                "source: corpus_scores reads no recordings; expected midi_dir, or nothing"
            )
        if isinstance(collections, str):
            collections = [name.strip() for name in collections.split(",") if name.strip()]
        if collections is not None and midi_dir is not None:
            raise UserError("collections: they name bundled scores, which midi_dir replaces")
        super().__init__(**kwargs)
        # Looked for before anything is written.
        self.midi_dir = None if midi_dir is None else Path(midi_dir)
        self.midi_files = midi.find_files(self.midi_dir) if self.midi_dir else []
        self.collections = catalogue.choose(self.builder_config.name, collections)
        self.options |= {
            "collections": None if midi_dir else [found.name for found in self.collections],
            "midi_dir": None if midi_dir is None else str(Path(midi_dir).resolve()),
        }

    def records(self) -> Mapping[str, Iterable[Record]]:
        pieces: dict[str, Piece] = {}
        by_content: dict[str, str] = {}
        for task, piece in self.parallel(make_piece, self.tasks(), name=lambda task: task.id):
            if isinstance(piece, Unsuitable):
                self.leave_out(piece.kind, task.id, str(piece))
            elif piece.content in by_content:
                self.leave_out("duplicate", task.id, f"the notes of {by_content[piece.content]}")
            else:
                by_content[piece.content] = task.id
                pieces[task.id] = piece
        by_title = self.builder_config.name != "quartets"
        keys = {name: joins(piece, by_title) for name, piece in pieces.items()}
        collection = {name: piece.record.collection for name, piece in pieces.items()}
        split_of = splits.assign(splits.components(keys), collection)
        ordered = sorted(pieces, key=catalogue.rank)
        return {
            split: [pieces[name].record for name in ordered if split_of[name] == split]
            for split in splits.SPLITS
        }

    def tasks(self) -> list[Task]:
        """The pieces to parse; with `limit`, the first of a fixed order that visits every
        collection.
        """
        groups = [self._midi_tasks()] if self.midi_dir else map(self._tasks, self.collections)
        ordered: list[tuple[float, int, Task]] = []
        for tasks in groups:
            tasks = sorted(tasks, key=lambda task: catalogue.rank(task.id))
            ordered += [
                ((index + 0.5) / len(tasks), catalogue.rank(task.id), task)
                for index, task in enumerate(tasks)
            ]
        return [task for _, _, task in sorted(ordered, key=lambda item: item[:2])][: self.limit]

    def _tasks(self, collection: catalogue.Collection) -> list[Task]:
        # Found without importing music21, which takes a second.
        package = importlib.util.find_spec("music21")
        if package is None or package.origin is None:
            raise UserError(
                "corpus_scores: music21 is not installed; expected `pip install mgen[data]`"
            )
        root = Path(package.origin).parent / "corpus"
        tasks = []
        for path in catalogue.find_files(collection, root):
            relative = path.relative_to(root)
            name = f"{collection.name}/{Path(*relative.parts[1:])}"
            task = Task(
                id=name,
                config=self.builder_config.name,
                collection=collection.name,
                licence=collection.licence,
                composer=collection.composer,
                work=catalogue.work_of(collection.name, path, root),
                path=str(path),
            )
            if path.suffix == ".abc" and self.builder_config.name != "quartets":
                for index, tune in enumerate(split_tunes(read_text(path))):
                    tune_id = f"{name}/{index:04}"
                    tasks.append(dataclasses.replace(task, id=tune_id, work=tune_id, tune=tune))
            else:
                tasks.append(task)
        if not tasks:
            raise UserError(f"corpus_scores: {root} has no files of {collection.name} (stripped?)")
        return tasks

    def _midi_tasks(self) -> list[Task]:
        assert self.midi_dir is not None
        return [
            Task(
                id=f"midi/{path.relative_to(self.midi_dir)}",
                config=self.builder_config.name,
                collection="midi",
                licence="",
                composer="",
                work=str(path.relative_to(self.midi_dir).with_suffix("")),
                path=str(path),
            )
            for path in self.midi_files
        ]
