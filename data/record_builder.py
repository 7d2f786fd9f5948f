"""Base of the dataset builders: a TFDS builder that writes `mgen.inputs.record.Record`s as
ArrayRecord shards.

A subclass says which records there are; this class parses in parallel, writes, and keeps the
account of what was left out and why. TFDS's own writers shuffle through temporary files that need
TensorFlow above 1 GB, so records are written here in the order given (Grain shuffles when it
reads), one shard after another: memory stays bounded and no TensorFlow is needed. The same inputs
and options give the same bytes, whatever the number of workers.
"""

import collections
import concurrent.futures
import dataclasses
import inspect
import json
import multiprocessing
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from mgen.errors import UserError
from mgen.inputs.record import Record, features, to_example
from mgen.progress import track

REPORT_FILE = "build_report.json"
MAX_SHARD_BYTES = 256 << 20
MAX_LISTED = 20  # items of one kind printed at the end; the report file holds all of them

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclasses.dataclass
class Failure:
    """In place of a result; `reason` is one line and the same in every run."""

    reason: str


def attempt(function: Callable[[Task], Result], task: Task) -> Result | Failure:
    """`function(task)`, or the `Failure` that it ended in. Runs in the worker processes."""
    try:
        return function(task)
    except Exception as error:
        # Memory addresses in messages would make two builds differ.
        lines = re.sub(r" ?(at )?0x[0-9a-f]+", "", str(error)).strip().splitlines()
        return Failure(f"{type(error).__name__}: {lines[0] if lines else 'no message'}")


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the records of `records()`; subclass it in `data/<name>/<name>_dataset_builder.py` as
    `Builder`.

    Args:
      source: folder of the recordings or files to read, None where the dataset has a source of its
        own.
      limit: use at most this many pieces (or tracks), chosen by the subclass without reading them
        all.
      workers: parser processes; None is one a core, 1 parses in this process. Never changes the
        result.
      **kwargs: `data_dir`, `config`, `version` of `tfds.core.DatasetBuilder`.

    A subclass with options of its own takes them as keywords, passes the rest on, and adds them to
    `self.options` (JSON-able values only: they are written to the report and compared when a build
    is reused).
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        source: str | os.PathLike[str] | None = None,
        limit: int | None = None,
        workers: int | None = None,
        **kwargs: Any,
    ):
        if limit is not None and limit < 1:
            raise UserError(f"limit is {limit}, expected a positive number of pieces")
        if workers is not None and workers < 1:
            raise UserError(f"workers is {workers}, expected a positive number of processes")
        self.source = None if source is None else Path(source)
        self.limit = limit
        self.workers = workers or len(os.sched_getaffinity(0))
        self.options: dict[str, Any] = {
            "source": None if source is None else str(Path(source).resolve()),
            "limit": limit,
        }
        self.left_out: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
        super().__init__(**kwargs)

    def records(self) -> Mapping[str, Iterable[Record]]:
        """Splits, in the order to write them, and the records of each; a split without records is
        not written.
        """
        raise NotImplementedError

    def leave_out(self, kind: str, name: str, reason: str) -> None:
        """Notes that piece `name` is not in the dataset: `kind` is "failed", "too_long",
        "duplicate" or the like.
        """
        self.left_out[kind].append({"name": name, "reason": reason})

    def parallel(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        name: Callable[[Task], str] = str,
        description: str = "parsing",
        unit: str = "pieces",
    ) -> Iterator[tuple[Task, Result]]:
        """Yields `(task, function(task))` in the order of `tasks`, with progress; failures are
        noted and skipped.

        Args:
          function: a module-level function of one picklable task with a picklable result.
          tasks: the work; a few per worker are in flight, so results never pile up in memory.
          name: the name of a task in the report of failures.
        """
        outcomes = self._map(function, tasks)
        for task, outcome in track(zip(tasks, outcomes), description, total=len(tasks), unit=unit):
            if isinstance(outcome, Failure):
                self.leave_out("failed", name(task), outcome.reason)
            else:
                yield task, outcome

    def _map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[Result | Failure]:
        workers = min(self.workers, len(tasks))
        if workers <= 1:
            yield from (attempt(function, task) for task in tasks)
            return
        # "spawn": a fork of a process that runs JAX threads can deadlock.
        executor = concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn")
        )
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for task in tasks:
                pending.append(executor.submit(attempt, function, task))
                if len(pending) >= 8 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                f"{self.info.full_name}: a parser process died (out of memory, or a script without"
                ' `if __name__ == "__main__"`); try workers=1'
            ) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    @classmethod
    def prepare(cls, *, overwrite: bool = False, **options: Any) -> Path:
        """Builds the dataset, or finds it built with the same options, and returns its folder.

        Args:
          overwrite: build anew what is there.
          **options: of the subclass's and this class's `__init__`, `data_dir` and `config`.

        Raises:
          UserError: an option or config that the dataset has not, or the folder holds a build with
            other options and `overwrite` is False.
        """
        cls._check(options)
        if overwrite:
            shutil.rmtree(cls._folder(options), ignore_errors=True)
        elif cls._folder(options).exists():
            # Before TFDS stumbles over what it finds there.
            for name in ("dataset_info.json", REPORT_FILE):
                cls._read_json(cls._folder(options) / name)
        builder = cls(**options)
        folder = Path(builder.data_dir)
        if folder.exists():
            report = cls._read_json(folder / REPORT_FILE)
            wanted = json.loads(json.dumps(builder.options))
            for option in sorted({*wanted, *report["options"]}):
                found = report["options"].get(option)
                if found != wanted.get(option):
                    raise UserError(
                        f"{folder}: built with {option}={found!r}, asked for"
                        f" {wanted.get(option)!r}; use another output folder or --overwrite"
                    )
            print(f"{builder.info.full_name}: already built with these options")
        else:
            with tempfile.TemporaryDirectory() as unused:  # TFDS makes one, in data_dir by default
                builder.download_and_prepare(download_dir=unused, file_format="array_record")
            report = cls._read_json(folder / REPORT_FILE)
        print(summary(report))
        return folder

    @classmethod
    def _check(cls, options: Mapping[str, Any]) -> None:
        known = {"data_dir", "config", "version"}
        for base in cls.__mro__:
            if issubclass(base, RecordBuilder):
                parameters = inspect.signature(base.__init__).parameters.values()
                known |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        configs = [config.name for config in cls.BUILDER_CONFIGS]
        config = options.get("config")
        if config is not None and config not in configs:
            names = ", ".join(f"{cls.name}/{name}" for name in configs) or cls.name
            raise UserError(f"{cls.name}/{config}: no such dataset, expected {names}")
        for name in sorted(options.keys() - known):
            raise UserError(
                f"{name}: {cls.name} has no such option, it takes {', '.join(sorted(known))}"
            )

    @classmethod
    def _folder(cls, options: Mapping[str, Any]) -> Path:
        """Where TFDS puts the dataset."""
        configs = [config.name for config in cls.BUILDER_CONFIGS]
        config = options.get("config") or (configs[0] if configs else "")
        return Path(options["data_dir"], cls.name, config, str(cls.VERSION))

    @staticmethod
    def _read_json(path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(
                f"{path.parent}: exists but has no readable {path.name}, so it is no finished"
                " build; remove it or use --overwrite"
            ) from error

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=features(), description=str(type(self).__doc__)
        )

    def _log_download_bytes(self) -> None:
        print(f"{self.info.full_name}: building in {self.data_dir}", flush=True)

    def _log_download_done(self) -> None:
        """TFDS's own message speaks of downloads."""

    def _split_generators(self, dl_manager: Any) -> Any:
        raise NotImplementedError("replaced by _generate_splits")

    def _generate_examples(self, **kwargs: Any) -> Any:
        raise NotImplementedError("replaced by _generate_splits")

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[Any]:
        self.left_out.clear()
        tally = Tally()
        splits = [self._write(split, records, tally) for split, records in self.records().items()]
        if not tally.ids:
            failed = "; ".join(f"{x['name']}: {x['reason']}" for x in self.left_out["failed"][:1])
            raise UserError(
                f"{self.info.full_name}: no pieces left to write"
                + (f" ({failed})" if failed else "")
            )
        report = {
            "dataset": self.info.full_name,
            "options": self.options,
            **tally.as_dict(),
            "left_out": {kind: items for kind, items in sorted(self.left_out.items()) if items},
        }
        text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False)
        (Path(self.data_dir) / REPORT_FILE).write_text(text + "\n")
        return [info for info in splits if info is not None]

    def _write(self, split: str, records: Iterable[Record], tally: "Tally") -> Any:
        """Writes one split; shards are named at the end, as their number is part of the name."""
        template = self._get_filename_template(split_name=split)
        serializer = ExampleSerializer(self.info.features.get_serialized_info())
        folder = Path(self.data_dir)
        lengths: list[int] = []
        total_bytes = shard_bytes = 0
        writer = None
        try:
            for record in records:
                example = self.info.features.encode_example(to_example(record))
                data = serializer.serialize_example(example)
                if writer is None or shard_bytes + len(data) > MAX_SHARD_BYTES:
                    if writer is not None:
                        writer.close()
                    # FLAC does not shrink, and unpacking it again would cost most of a crop's time.
                    options = "group_size:1" + (",uncompressed" if record.audio else "")
                    writer = ArrayRecordWriter(str(folder / f"{split}.{len(lengths)}"), options)
                    lengths.append(0)
                    shard_bytes = 0
                writer.write(data)
                lengths[-1] += 1
                shard_bytes += len(data)
                total_bytes += len(data)
                tally.add(split, record)
        finally:
            if writer is not None:
                writer.close()
        if not lengths:
            return None
        for index in range(len(lengths)):
            name = template.sharded_filepath(shard_index=index, num_shards=len(lengths))
            (folder / f"{split}.{index}").rename(str(name))
        return tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=total_bytes, filename_template=template
        )


class Tally:
    """Pieces and hours by split, collection and licence."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.seconds: dict[str, dict[str, list[float]]] = {
            name: collections.defaultdict(list) for name in ("splits", "collections", "licences")
        }

    def add(self, split: str, record: Record) -> None:
        if record.id in self.ids:
            raise ValueError(f"two records have the id {record.id!r}")
        self.ids.add(record.id)
        groups = {"splits": split, "collections": record.collection, "licences": record.licence}
        for name, group in groups.items():
            self.seconds[name][group].append(record.duration)

    def as_dict(self) -> dict[str, Any]:
        return {
            "pieces": len(self.ids),
            "hours": round(sum(map(sum, self.seconds["splits"].values())) / 3600, 4),
            **{
                name: {
                    group: {"pieces": len(seconds), "hours": round(sum(seconds) / 3600, 4)}
                    for group, seconds in sorted(groups.items())
                }
                for name, groups in self.seconds.items()
            },
        }


def summary(report: dict[str, Any]) -> str:
    """A build report as lines for the screen."""
    lines = [f"{report['dataset']}: {report['pieces']} pieces, {report['hours']:.2f} h"]
    for name in ("splits", "collections", "licences"):
        groups = [
            f"{group or 'unknown'} {x['pieces']} ({x['hours']:.2f} h)"
            for group, x in report[name].items()
        ]
        lines.append(f"  {name}: " + ", ".join(groups))
    for kind, items in report["left_out"].items():
        lines.append(f"  left out, {kind.replace('_', ' ')}: {len(items)}")
        lines += [f"    {item['name']}: {item['reason']}" for item in items[:MAX_LISTED]]
        if len(items) > MAX_LISTED:
            lines.append(f"    and {len(items) - MAX_LISTED} more, listed in {REPORT_FILE}")
    return "\n".join(lines)
