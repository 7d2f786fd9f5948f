"""From prepared datasets to batches: one Grain pipeline for audio, stems and tokens.

  order of records (shuffled anew each epoch) -> example g: crop, render or decode, augment -> batch
  -> workers or a thread

Example g draws from `default_rng([seed, g])`, whoever computes it: batches do not depend on the
number of workers, threads or processes, and the state of the iterator is a few integers. With
several processes, process p of P takes every P-th example, so together they see the batch that one
process would see.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import grain
import ml_collections
import numpy as np

from mgen import manifest
from mgen.errors import UserError
from mgen.inputs import aligned, examples, pairs, tokens
from mgen.inputs.records import RecordSource, open_records
from mgen.inputs.render import RenderConfig
from mgen.inputs.vocabulary import Vocabulary

__all__ = ["Iterator", "RecordSource", "check", "default_config", "make_iterator", "open_records"]

Iterator: TypeAlias = grain.DatasetIterator[dict[str, np.ndarray]]

VIEWS = ("audio", "audio_text", "audio_codes", "audio_pair", "stems", "streams")
SOURCES = ("any", "mix", "stems")


def default_config(**overrides: Any) -> ml_collections.ConfigDict:
    """The `data` part of a config, locked; `render` is a dict of `RenderConfig` fields.

    dataset: prepared dataset (a folder), or several separated by commas and mixed by `weights` (all
      alike if empty).
    train_split, eval_split: names of splits.
    view: "audio" {audio [B, T, C]}, "audio_text" {audio [B, T, C] (the mix), text int32 [B, L],
      text_mask bool [B, L]}, "stems" {stems [B, S, T, C], mix [B, T, C], stem_mask [B, S],
      programs [B, S]}, "streams" {each of `streams`: codes [B, F, K] or vectors [B, D], attributes
      [B, A]}, "audio_codes" {audio [B, T, C], codes [B, F, K]} of the same crop, "audio_pair"
      {audio, other [B, T, C], piece int32 [B]}, two renditions of a score's melody, see
      `mgen.inputs.pairs`.
    audio: the prepared dataset that the token dataset was made of, with "audio_codes" (as many as
      datasets, separated by commas).
    streams: of a token dataset: "acoustic", "semantic" (K is 1), "joint_embedding" (the mean over
      the crop's windows), see `mgen.inputs.tokens`; "codes" of "audio_codes" are the first.
    sample_rate: Hz; channels: 1 or 2; seconds: length of a crop; batch_size: over all processes.
    vocabulary: SentencePiece model of the text, see `mgen.inputs.vocabulary`; text_length: L. A
      record without captions is described from what is known of it.
    stems: names of those that the view "stems" gives, in this order; () for all, in the dataset's.
      The mix is of all stems in any case.
    source: what "audio" is: the "mix", one of the "stems", or "any" of them with equal chance.
    min_loudness: dB RMS; quieter crops are drawn again, `attempts` times in all, and the loudest is
      taken.
    min_sounding: with the view "stems", crops are also drawn again where fewer than this many of
      the stems given (all of them, where fewer are given) reach min_loudness.
    control_rate: with the view "stems", frames a second of `mgen.inputs.controls` that come with
      them; 0 for none.
    loudness: LUFS that the mix is brought to, None leaves it.
    gain_db: (low, high) of a random gain. swap_channels: left for right half the time. All gains
      keep |audio| <= 1.
    remix: probability of an example whose stems come from different pieces.
    stem_dropout: probability that a present stem is silenced (one always stays).
    workers: processes; 0 computes in this one. prefetch: batches made ahead (by a thread, or by
      each worker).
    seed: added to the seed of the run.
    """
    config = ml_collections.ConfigDict(
        dict(
            dataset="",
            weights=(),
            train_split="train",
            eval_split="validation",
            view="audio",
            streams=("acoustic",),
            audio="",
            sample_rate=16000,
            channels=1,
            seconds=2.0,
            batch_size=8,
            vocabulary="",
            text_length=64,
            stems=(),
            source="any",
            min_loudness=-50.0,
            min_sounding=0,
            control_rate=0.0,
            attempts=3,
            loudness=ml_collections.config_dict.placeholder(float),
            gain_db=(0.0, 0.0),
            swap_channels=False,
            remix=0.0,
            stem_dropout=0.0,
            workers=0,
            prefetch=2,
            seed=0,
            render={
                name: value
                for name, value in vars(RenderConfig()).items()
                if name not in ("sample_rate", "channels")
            },
        )
    )
    config.lock()
    config.update(overrides)
    return config


def make_iterator(
    config: ml_collections.ConfigDict,
    *,
    split: str,
    seed: int,
    train: bool,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator:
    """Batches of this process's `batch_size / process_count` examples, numpy arrays by name (see
    `default_config`).

    Training: endless; every epoch has its own order, crops and augmentations. Evaluation: one pass
    in the order of the dataset, one crop a piece, without augmentation; the last batch is filled up
    from the start of the split, so that every piece is seen.

    The iterator has `get_state`, `set_state` and `close`, and goes into an Orbax checkpoint as
    `grain.checkpoint.CheckpointSave(it)`. With `workers` > 0 the main module must be importable (an
    `if __name__ == "__main__"` guard in a script).

    Raises:
      UserError: a bad field, dataset or split.
    """
    _validate(config, process_count)
    sources = _open(config, split)
    builder = _builder(config, sources, seed + config.seed, train)
    order = _order(sources, config, seed + config.seed, train)
    if not train:
        batches = -(-len(order) // config.batch_size)
        order = order.repeat()[: batches * config.batch_size]
    # The index is taken before the split over processes: it is the number of the example in the
    # global stream.
    data = order.map_with_index(builder)[process_index::process_count]
    data = data.batch(config.batch_size // process_count, drop_remainder=True)
    ahead = max(0, config.prefetch)
    if not config.workers:
        # One thread: the synthesiser is not for several, and the others would fight for the
        # interpreter.
        threads = min(1, ahead)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        return iter(data.to_iter_dataset(options))
    _parse_flags()
    stream = data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    workers = grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=max(1, ahead))
    return iter(stream.mp_prefetch(workers))


def check(config: ml_collections.ConfigDict, requires: dict[str, Any]) -> dict[str, str]:
    """Opens what `config` names, before anything else is done.

    Args:
      config: see `default_config`.
      requires: manifest fields that token datasets must have (`Task.requires`).

    Returns:
      name -> hash of the artefacts that the tokens were made by (`parents` of their manifest); {}
      for audio.

    Raises:
      UserError: a bad field, dataset or split, or tokens of another codec than `requires` says.
    """
    _validate(config, 1)
    if config.view == "audio_text":
        Vocabulary(config.vocabulary)
    for split in (config.train_split, config.eval_split):
        _open(config, split)
    parents: dict[str, str] = {}
    if config.view in ("streams", "audio_codes"):
        for path in _paths(config.dataset):
            found = manifest.read(path)
            manifest.require(found, f"{path}/{manifest.FILE}", **requires)
            parents |= found.get("parents", {})
    return parents


def _paths(text: str) -> list[str]:
    return [path.strip() for path in text.split(",") if path.strip()]


def _open(config: ml_collections.ConfigDict, split: str) -> list[Any]:
    """One source a dataset: `RecordSource`s, `TokenSource`s for codes, pairs of them for both."""
    paths = _paths(config.dataset)
    if not paths:
        raise UserError("data.dataset is empty, expected the folder of a prepared dataset")
    if len(config.weights) not in (0, len(paths)):
        raise UserError(
            f"data.weights has {len(config.weights)} values, expected one for each of the"
            f" {len(paths)} datasets"
        )
    if config.view in ("streams", "audio_codes"):
        found = [tokens.open_tokens(path, split, streams=config.streams) for path in paths]
        return _with_audio(found, config, split) if config.view == "audio_codes" else found
    sources = [open_records(path, split) for path in paths]
    if config.view == "stems" or config.remix:
        slots = [list(source[0].stem_names) for source in sources]
        for path, names in zip(paths, slots):
            if names != slots[0]:
                raise UserError(f"{path}: stems are {names}, expected {slots[0]} as in {paths[0]}")
    if config.view == "stems":
        examples.slots(sources[0], config.stems)
    return sources


def _with_audio(
    found: Sequence[tokens.TokenSource], config: ml_collections.ConfigDict, split: str
) -> list[tuple[tokens.TokenSource, RecordSource]]:
    paths = _paths(config.audio)
    if len(paths) != len(found):
        raise UserError(
            f"data.audio names {len(paths)} datasets, expected the {len(found)} that the tokens of "
            "data.dataset were made of"
        )
    records = [open_records(path, split) for path in paths]
    for pair in zip(found, records):
        aligned.check_pair(*pair, config)
    return list(zip(found, records))


def _order(
    sources: Sequence[Any], config: ml_collections.ConfigDict, seed: int, train: bool
) -> grain.MapDataset:
    """Pairs (source, index), endless in training."""
    parts = []
    for number, source in enumerate(sources):
        usable = examples.usable(source[0] if isinstance(source, tuple) else source, config)
        part = grain.MapDataset.source(usable).map(examples.Pair(number))
        if train:
            # A seed for each, or datasets of one length would be shuffled alike.
            part = part.shuffle(seed=(seed * 1009 + number) % 2**32).repeat()
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    if train:
        return grain.MapDataset.mix(parts, weights=list(config.weights) or None)
    return grain.MapDataset.concatenate(parts)


def _builder(
    config: ml_collections.ConfigDict, sources: Sequence[Any], seed: int, train: bool
) -> Any:
    settings = config.to_dict()
    if config.view == "audio_codes":
        return aligned.AudioCodesExample(list(sources), settings, seed)
    if config.view == "streams":
        return examples.StreamsExample(list(sources), settings, seed)
    if config.view == "audio_pair":
        return pairs.PairExample(list(sources), settings, seed, train)
    return examples.AudioExample(list(sources), settings, seed, train)


def _validate(config: ml_collections.ConfigDict, process_count: int) -> None:
    for field, choices in (("view", VIEWS), ("source", SOURCES), ("channels", (1, 2))):
        if config[field] not in choices:
            raise UserError(f"data.{field} is {config[field]!r}, expected one of {choices}")
    for field in ("seconds", "sample_rate", "batch_size", "attempts", "text_length"):
        if not config[field] > 0:
            raise UserError(f"data.{field} is {config[field]!r}, expected a positive number")
    for field in ("remix", "stem_dropout"):
        if not 0 <= config[field] <= 1:
            raise UserError(f"data.{field} is {config[field]!r}, expected a probability")
    for field in ("workers", "prefetch", "min_sounding", "control_rate"):
        if config[field] < 0:
            raise UserError(f"data.{field} is {config[field]!r}, expected 0 or more")
    if config.view == "audio_text" and config.remix:
        raise UserError("data.remix: a mix of several pieces has no caption; expected 0")
    if config.batch_size % process_count:
        raise UserError(
            f"data.batch_size is {config.batch_size}, expected a multiple of the {process_count}"
            " processes"
        )


def _parse_flags() -> None:
    """Grain's workers read absl flags; in a notebook or a test nobody has parsed them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
