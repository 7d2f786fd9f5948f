"""SeqIO tasks over token datasets: features and vocabularies of the streams, crops, flat sequences
with an end, mixtures.

A token dataset is its own offline cache (see `mgen.inputs.tokens`): with and without
`use_cached=True` a task reads the files that Grain reads. Needs SeqIO and TensorFlow (extra
`scale`), which are imported inside.

  id of code c of level k = 2 + k V + c;   0 is padding, 1 the end
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgen import manifest
from mgen.errors import UserError
from mgen.inputs import tokens

END, FIRST = 1, 2

Levels = Mapping[str, tuple[int, int]]


def register(
    folder: str | Path, name: str, *, seconds: float = 0.0, levels: Levels | None = None
) -> Any:
    """Adds a `seqio.Task` of a token dataset to SeqIO's registry and returns it.

    A feature a stream, int32 [L] with `PassThroughVocabulary`: frames one after the other, in each
    the levels in order, and the end. Splits are those of the folder.

    Args:
      folder: of a finished token dataset.
      name: of the task.
      seconds: length of a random crop, the same span of time in every stream; 0 takes pieces whole.
        Of a stream whose codes span more than a frame ("joint": windows of 10 s) the codes whose
        window lies inside the crop, one at least.
      levels: stream -> (first, end) of its levels, such as {"acoustic": (0, 4)} for a coarse model;
        streams that are not named are left out. By default all of all streams.

    Raises:
      UserError: no token dataset or an unfinished one, an unknown stream or level.
    """
    import seqio
    import tensorflow as tf

    folder = Path(folder)
    about = manifest.read(folder)
    manifest.require(about, folder / manifest.FILE, kind=tokens.KIND)
    # Vectors are no tokens.
    described = {name: own for name, own in about["streams"].items() if "codebooks" in own}
    streams = {
        stream: _Stream(described, stream, *bounds)
        for stream, bounds in _checked_levels(folder, described, levels).items()
    }
    if not (folder / tokens.COMPLETED).exists():
        raise UserError(f"{folder}: the extraction is not finished, run it again")
    splits = sorted(p.name[len("info.") : -len(".json")] for p in folder.glob("info.*.json"))
    columns = {}
    for stream, own in described.items():
        shape = (own["codebooks"],)
        columns[stream] = tf.io.FixedLenSequenceFeature(shape, tf.int64, allow_missing=True)
    columns["attributes"] = tf.io.FixedLenSequenceFeature((), tf.int64, allow_missing=True)
    columns["id"] = tf.io.FixedLenFeature((), tf.string)
    source = seqio.TFExampleDataSource(
        {split: str(folder / f"{split}.tfrecord-*-of-*") for split in splits}, columns
    )
    steps = [_to_int32, seqio.CacheDatasetPlaceholder()]
    if seconds:
        steps.append(functools.partial(_crop, streams=streams, seconds=seconds))
    steps += [functools.partial(_flatten, streams=streams), seqio.preprocessors.append_eos]
    features = {
        name: seqio.Feature(
            vocabulary=seqio.PassThroughVocabulary(size=stream.vocabulary_size, eos_id=END)
        )
        for name, stream in streams.items()
    }

    class TokenTask(seqio.Task):
        """A task whose cache is the token dataset itself, whatever its folder is called."""

        cache_dir = str(folder)

    return seqio.TaskRegistry.add(name, source, features, preprocessors=steps, task_cls=TokenTask)


def mixture(name: str, rates: Mapping[str, float]) -> Any:
    """Adds a `seqio.Mixture` of registered tasks to the registry: task -> how often it is drawn."""
    import seqio

    return seqio.MixtureRegistry.add(name, list(rates.items()))


class _Stream:
    """What a task needs to know of a stream."""

    def __init__(self, streams: Mapping[str, Any], name: str, first: int, end: int):
        about = streams[name]
        self.rate = float(about["frame_rate"])
        self.window = float(about.get("window_seconds", 1.0 / self.rate))
        self.size = int(about["codebook_size"])
        self.first, self.end = first, end
        self.vocabulary_size = FIRST + (end - first) * self.size

    def frames(self, seconds: float) -> int:
        """Codes whose window lies inside a crop."""
        return max(1, round((seconds - self.window) * self.rate) + 1)


def _checked_levels(
    folder: Path, streams: Mapping[str, Any], levels: Levels | None
) -> Mapping[str, tuple[int, int]]:
    chosen = levels or {name: (0, about["codebooks"]) for name, about in streams.items()}
    for name, (first, end) in chosen.items():
        if name not in streams:
            raise UserError(f"{folder}: has no stream {name!r}, only {', '.join(streams)}")
        if not 0 <= first < end <= streams[name]["codebooks"]:
            raise UserError(
                f"levels of {name!r} are ({first}, {end}), expected some of its"
                f" {streams[name]['codebooks']}"
            )
    return chosen


def _to_int32(dataset: Any) -> Any:
    import tensorflow as tf

    def cast(piece: dict[str, Any]) -> dict[str, Any]:
        return {
            name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value
            for name, value in piece.items()
        }

    return dataset.map(cast, num_parallel_calls=tf.data.AUTOTUNE)


def _crop(dataset: Any, streams: Mapping[str, _Stream], seconds: float) -> Any:
    """The same span of time of all streams; it starts on a frame of the slowest one."""
    import seqio
    import tensorflow as tf

    slowest = min(stream.rate for stream in streams.values())

    @seqio.map_over_dataset(num_seeds=1)
    def crop(piece: dict[str, Any], seed: Any) -> dict[str, Any]:
        room = []
        for name, stream in streams.items():
            spare = tf.shape(piece[name])[0] - stream.frames(seconds)
            room.append(
                tf.cast(tf.floor(tf.cast(spare, tf.float64) * slowest / stream.rate), "int32")
            )
        last = tf.maximum(tf.reduce_min(tf.stack(room)), 0)
        start = tf.random.stateless_uniform((), seed, 0, last + 1, tf.int32)
        cut = dict(piece)
        for name, stream in streams.items():
            first = tf.cast(start, tf.float64) * (stream.rate / slowest)
            first = tf.cast(tf.round(first), tf.int32)
            cut[name] = piece[name][first : first + stream.frames(seconds)]
        return cut

    return crop(dataset)


def _flatten(dataset: Any, streams: Mapping[str, _Stream]) -> Any:
    import tensorflow as tf

    def flatten(piece: dict[str, Any]) -> dict[str, Any]:
        flat = dict(piece)
        for name, stream in streams.items():
            offsets = FIRST + stream.size * tf.range(stream.end - stream.first)
            codes = piece[name][:, stream.first : stream.end] + offsets[None]
            flat[name] = tf.reshape(codes, [-1])
        return flat

    return dataset.map(flatten, num_parallel_calls=tf.data.AUTOTUNE)
