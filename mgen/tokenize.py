"""Tokens of a whole dataset: what a codec, a semantic encoder, a joint embedding and a melody
embedding make of every piece, and its chroma, in one pass.

A piece is rendered or decoded once, at the highest sample rate that a model asks for, and
resampled for the others. The unit of work is a shard: piece i of a split goes to shard i mod
`num_shards`, and the files do not depend on who writes them. Token frame f covers the audio
[f, f + 1) / frame_rate of the piece as performed, which `mixes.whole_mix` makes again from the
record, the seed behind the last slash of the piece's id and `render` of the manifest.
"""

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from mgen import chain, manifest, prefetch, progress
from mgen.audio import chroma
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.inputs import attributes, captions, mixes, tokens
from mgen.inputs.record import Record
from mgen.inputs.records import RecordSource, describe, open_records
from mgen.inputs.render import RenderConfig
from mgen.joint.sample import STRIDE_SECONDS, FrozenJoint
from mgen.kmeans import Codebook
from mgen.semantic.sample import FrozenSemantic
from mgen.text_encoder import TextEncoder

BLOCK_SECONDS = 30.0  # of audio that a codec is given at once
CLUSTERED = ("semantic", "style")  # features of a semantic encoder
WINDOWED = ("joint", "melody")  # embeddings of windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """Workdirs of trained models and folders of codebooks; empty ones are left out. `chroma` needs
    no model."""

    codec: str = ""
    semantic: str = ""
    semantic_codebook: str = ""
    style: str = ""
    style_codebook: str = ""
    joint: str = ""
    joint_codebook: str = ""
    melody: str = ""
    melody_codebook: str = ""
    text_encoder: str = ""
    chroma: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is tokenized, and this worker's part of it.

    With `stems` a performance gives a piece for every stem in place of one for the mix: the streams
    of the stem, beside them "context" [F, K], the acoustic tokens of a random mix of others, and
    "category" [1, 1], the number of its slot (Parker et al. 2024, "StemGen").

    Attributes:
      dataset: prepared dataset; out: folder of the token dataset, see `mgen.inputs.tokens`.
      num_shards: files a split; shard_index, shard_count: this worker and how many there are.
      renders: performances of each score, with as many seeds from `seed`; a recording has one.
      max_seconds: of each piece, from its start.
    """

    dataset: str
    out: str
    splits: tuple[str, ...] = ("train", "validation", "test")
    num_shards: int = 4
    shard_index: int = 0
    shard_count: int = 1
    renders: int = 1
    max_seconds: float = 60.0
    seed: int = 0
    stems: bool = False


class Stage(Protocol):
    """One model: what it needs, what it adds to the manifest, and its streams of a piece."""

    name: str
    sample_rate: int
    channels: int
    about: dict[str, Any]  # of the stream, under `streams` in the manifest
    parents: dict[str, str]

    def __call__(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        """Streams [F, ...] of audio float32 [T, C]."""
        ...


class Acoustic:
    """Codes of a codec: "acoustic" [F, K]."""

    name = "acoustic"

    def __init__(self, codec: FrozenCodec, fingerprint: str):
        config = codec.config
        if not config.has_codes:
            raise UserError(
                f"the codec has bottleneck {config.bottleneck!r}, expected one of codes"
            )
        self._codec = codec
        self.sample_rate, self.channels = config.sample_rate, config.channels
        self.about = dict(
            sample_rate=config.sample_rate,
            channels=config.channels,
            frame_rate=config.frame_rate,
            codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
        )
        self.parents = {"codec": fingerprint}

    def __call__(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        return {"acoustic": self._codec.encode_long(self.blocks(audio))[0]}

    def blocks(self, audio: np.ndarray) -> Iterator[np.ndarray]:
        """Filled up to whole frames: every other length would be compiled anew."""
        hop = self._codec.config.hop
        size = hop * max(1, round(BLOCK_SECONDS * self.sample_rate / hop))
        for start in range(0, len(audio), size):
            block = np.asarray(audio[start : start + size])
            yield np.pad(block, ((0, -len(block) % hop), (0, 0)))[None]


class Semantic:
    """Clusters of an encoder's features, "<name>" [F, K]: "semantic" or, at a low rate, "style"."""

    def __init__(
        self, encoder: FrozenSemantic, codebook: Codebook, fingerprint: str, name: str = "semantic"
    ):
        self._encoder, self._codebook, self.name = encoder, codebook, name
        self.sample_rate, self.channels = encoder.config.sample_rate, 1
        self._layer, self._rate = codebook.about["layer"], codebook.about["frame_rate"]
        self.about = dict(sample_rate=self.sample_rate, frame_rate=self._rate, **_shape(codebook))
        self.parents = {name: fingerprint, f"{name}_codebook": codebook.fingerprint}

    def __call__(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        features = self._encoder.features_long(audio, self._layer, self._rate)
        return {self.name: self._codebook.encode(features)}


class Joint:
    """Embeddings of the windows of a piece, "<name>_embedding" [W, D], and their codes "<name>"
    [W, K]; "joint" of music and text, "melody" of melodies. The windows are as far apart as those
    that the codebook was fitted on."""

    def __init__(
        self, encoder: FrozenJoint, codebook: Codebook, fingerprint: str, name: str = "joint"
    ):
        self._encoder, self._codebook = encoder, codebook
        config = encoder.config
        self.name = name
        self.sample_rate, self.channels = config.sample_rate, config.channels
        rate = codebook.about.get("frame_rate", 1.0 / STRIDE_SECONDS)
        self._stride = 1.0 / rate
        self.about = dict(
            sample_rate=self.sample_rate,
            frame_rate=rate,
            window_seconds=config.seconds,
            embed_dim=config.embed_dim,
            **_shape(codebook),
        )
        self.parents = {name: fingerprint, f"{name}_codebook": codebook.fingerprint}

    def __call__(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        embedding = np.asarray(self._encoder.window_embeddings(audio, self._stride), np.float32)
        return {self.name: self._codebook.encode(embedding), f"{self.name}_embedding": embedding}


class Chroma:
    """The loudest pitch class of every frame: "chroma" [F, 12], see `mgen.audio.chroma.dominant`.
    Frame f is centred on f / frame_rate."""

    name = "chroma"
    sample_rate, channels = chroma.SAMPLE_RATE, 1

    def __init__(self) -> None:
        rate = self.sample_rate
        self.about = dict(sample_rate=rate, frame_rate=rate / chroma.HOP, width=12)
        self.parents: dict[str, str] = {}

    def __call__(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        return {"chroma": chroma.dominant(audio[:, 0])}


class Tokenizer:
    """The models, loaded once for many pieces.

    Attributes:
      player: how scores are played: the highest rate and channel count that a stage asks for.
      seconds: where the time went: "audio" (render or decode, beside what follows), "resample",
        each stage, "write".
      audio_seconds: of music that was tokenized.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        render: dict[str, Any],
        text_encoder: TextEncoder | None = None,
    ):
        if not stages:
            raise UserError(
                "no model given, expected --codec, --semantic, --joint, --melody or --chroma"
            )
        self.stages = list(stages)
        self.text_encoder = text_encoder
        self.player = RenderConfig(
            sample_rate=max(stage.sample_rate for stage in stages),
            channels=max(stage.channels for stage in stages),
            **render,
        )
        parts = [
            "audio",
            "resample",
            *(["text"] * (text_encoder is not None)),
            *(s.name for s in stages),
        ]
        self.seconds = dict.fromkeys([*parts, "write"], 0.0)
        self.audio_seconds = 0.0

    def about(self, stem_names: Sequence[str] = ()) -> dict[str, Any]:
        """Fields of the token dataset's manifest; `stem_names` are the slots where stems are
        tokenized."""
        streams = {stage.name: stage.about for stage in self.stages}
        parents = {name: v for stage in self.stages for name, v in stage.parents.items()}
        if self.text_encoder is not None:
            # One row a token of the description, not of the time.
            streams["text"] = dict(frame_rate=0.0, width=self.text_encoder.width)
            parents["text_encoder"] = self.text_encoder.fingerprint
        if stem_names:
            if Acoustic.name not in streams:
                raise UserError("--stems: expected --codec with it")
            one = dict(codebooks=1, codebook_size=len(stem_names), frame_rate=0.0)
            streams |= {"context": streams[Acoustic.name], "category": {**one, "names": stem_names}}
        return {
            "kind": tokens.KIND,
            # Before what follows from them: the first difference is the one that is reported.
            "parents": parents,
            "streams": streams,
            "render": dataclasses.asdict(self.player),
            "attributes": {name: list(values) for name, values in attributes.NAMES.items()},
        }

    def heard(self, record: Record, seed: int, job: Job) -> tuple[np.ndarray, np.ndarray]:
        """The mix [T, C] of a piece or its stems [S, T, C], as `job` asks, and its attributes."""
        play = mixes.whole_stems if job.stems else mixes.whole_mix
        with self.timed("audio"):
            return play(record, self.player, seed, job.max_seconds)

    def piece(
        self, record: Record, seed: int, mix: np.ndarray, fields: np.ndarray
    ) -> dict[str, np.ndarray]:
        """`attributes` and the streams of a piece."""
        return {"attributes": fields, **self.text(record, seed), **self.streams(mix, self.stages)}

    def text(self, record: Record, seed: int) -> dict[str, np.ndarray]:
        """Vectors "text" [L, W] of the tokens of the performance's description."""
        if self.text_encoder is None:
            return {}
        with self.timed("text"):
            caption = captions.of_performance(record, seed, self.player)
            vectors, mask = self.text_encoder([caption])
        return {"text": vectors[0][mask[0]]}

    def streams(self, audio: np.ndarray, stages: Sequence[Stage]) -> dict[str, np.ndarray]:
        """The streams of audio [T, C] as the player makes it."""
        rate = self.player.sample_rate
        self.audio_seconds += len(audio) / rate
        found: dict[str, np.ndarray] = {}
        layouts = {(rate, self.player.channels): audio}
        for stage in stages:
            layout = stage.sample_rate, stage.channels
            with self.timed("resample"):
                if layout not in layouts:
                    layouts[layout] = mixes.converted(audio, rate, *layout)
            with self.timed(stage.name):
                found |= stage(layouts[layout])
        return found

    def stems(
        self, record: Record, seed: int, stems: np.ndarray, fields: np.ndarray
    ) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Names and pieces of the stems that play, see `Job`; none of a piece with one stem."""
        text = self.text(record, seed)
        rng = np.random.default_rng([seed, zlib.crc32(record.id.encode())])
        playing = np.flatnonzero(record.stem_mask)
        codec = [stage for stage in self.stages if stage.name == Acoustic.name]
        for stem in playing if len(playing) > 1 else ():
            others = playing[playing != stem]
            chosen = rng.choice(others, rng.integers(1, len(others) + 1), replace=False)
            context = self.streams(stems[chosen].sum(axis=0), codec)[Acoustic.name]
            piece = {"attributes": fields, **text, **self.streams(stems[stem], self.stages)}
            piece |= {"context": context, "category": np.full((1, 1), stem, np.int32)}
            yield record.stem_names[stem], piece

    def timed(self, name: str) -> "_Timer":
        """A context whose time is added to `seconds[name]`."""
        return _Timer(self.seconds, name)

    def report(self) -> str:
        """Where the time went, a line a stage: seconds, share, hours of audio an hour."""
        total = sum(self.seconds.values())
        lines = [f"{'stage':<10} {'seconds':>9} {'share':>6} {'x real time':>12}"]
        for name, seconds in {**self.seconds, "total": total}.items():
            rate = self.audio_seconds / max(seconds, 1e-9)
            share = seconds / max(total, 1e-9)
            lines.append(f"{name:<10} {seconds:>9.1f} {share:>6.0%} {rate:>12.1f}")
        return "\n".join(lines)


@dataclasses.dataclass
class _Timer:
    seconds: dict[str, float]
    name: str

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self.name] += time.perf_counter() - self._start


def load(models: Models) -> Tokenizer:
    """The models from their folders.

    Raises:
      UserError: a folder that holds something else, a codebook of another encoder, a model without
        its codebook.
    """
    for name in (*CLUSTERED, *WINDOWED):
        given = [bool(getattr(models, field)) for field in (name, f"{name}_codebook")]
        if any(given) and not all(given):
            raise UserError(f"--{name} and --{name}_codebook: expected both or none")
    stages: list[Stage] = []
    configs = []
    if models.codec:
        codec, trained = chain.load_codec(models.codec)
        stages.append(Acoustic(codec, trained.fingerprint))
        configs.append(trained.config)
    for name in CLUSTERED:
        if workdir := getattr(models, name):
            semantic, trained = chain.load_semantic(workdir)
            book = _codebook(getattr(models, f"{name}_codebook"), workdir, trained.fingerprint)
            stages.append(Semantic(semantic, book, trained.fingerprint, name))
            configs.append(trained.config)
    for name in WINDOWED:
        if workdir := getattr(models, name):
            joint, trained = chain.load_joint(workdir)
            folder = getattr(models, f"{name}_codebook")
            book = _codebook(folder, workdir, trained.fingerprint)
            stages.append(Joint(joint, book, trained.fingerprint, name))
            configs.append(trained.config)
    if models.chroma:
        stages.append(Chroma())
    text = TextEncoder(models.text_encoder) if models.text_encoder else None
    return Tokenizer(stages, configs[0].data.render.to_dict() if configs else {}, text)


def tokenize(models: Models, job: Job) -> Tokenizer:
    """Writes the tokens of a dataset; goes on with the shards that are missing.

    Returns the tokenizer, for its `report`. Raises `UserError` for models or a dataset that cannot
    be read, and where `job.out` holds tokens made otherwise, naming the field.
    """
    sources = open_splits(job)
    tokenizer = load(models)
    write(tokenizer, job, sources)
    return tokenizer


def open_splits(job: Job) -> dict[str, RecordSource]:
    return {split: open_records(job.dataset, split) for split in job.splits}


def write(tokenizer: Tokenizer, job: Job, sources: dict[str, RecordSource]) -> None:
    """`tokenize` with models that are loaded already."""
    mine = job.num_shards, job.shard_index, job.shard_count
    todo = {split: tokens.shards_todo(job.out, split, *mine) for split in job.splits}
    claim(tokenizer, job, sources)
    for split, shards in todo.items():
        for shard in shards:
            write_shard(tokenizer, job, sources[split], shard)
    tokens.finish(job.out, job.splits, job.num_shards)


def claim(tokenizer: Tokenizer, job: Job, sources: dict[str, RecordSource]) -> None:
    """Writes the manifest of a token dataset, or refuses a folder whose manifest says otherwise."""
    options = dict(renders=job.renders, max_seconds=job.max_seconds, seed=job.seed)
    source = next(iter(sources.values()))
    about = tokenizer.about(list(source[0].stem_names) if job.stems else ())
    manifest.claim(job.out, {**about, "dataset": describe(source.folder), **options})


def write_shard(
    tokenizer: Tokenizer,
    job: Job,
    source: RecordSource,
    shard: int,
    track: Callable[..., Any] = progress.track,
) -> None:
    """Writes one shard of a split."""
    count = job.renders if source[0].is_score else 1
    items = [(i, job.seed + variant) for i in range(len(source)) for variant in range(count)]
    mine = items[shard :: job.num_shards]
    name = f"tokenize {source.split} {shard + 1}/{job.num_shards}"
    with tokens.ShardWriter(job.out, source.split, shard, job.num_shards) as writer:

        def heard(item: tuple[int, int]) -> tuple[Record, int, np.ndarray, np.ndarray]:
            index, seed = item
            record = source[index]
            return record, seed, *tokenizer.heard(record, seed, job)

        played = prefetch.ahead(heard, mine)
        for record, seed, *audio in track(played, name, len(mine), unit="pieces"):
            pieces: Iterable[tuple[str, dict[str, np.ndarray]]]
            if job.stems:
                stems = tokenizer.stems(record, seed, *audio)
                pieces = ((f"{record.id}:{name}", piece) for name, piece in stems)
            else:
                pieces = [(record.id, tokenizer.piece(record, seed, *audio))]
            for name, piece in pieces:
                with tokenizer.timed("write"):
                    writer.write(id=f"{name}/{seed}", **piece)


def _codebook(folder: str, encoder: str, fingerprint: str) -> Codebook:
    """The codebook in `folder`, fitted on the features of that encoder."""
    book = Codebook.load(folder)
    found = book.about.get("parents", {}).get("encoder")
    if found != fingerprint:
        raise UserError(
            f"{folder}: was fitted on encoder {str(found)[:12]}, {encoder} is {fingerprint[:12]}"
        )
    return book


def _shape(codebook: Codebook) -> dict[str, int]:
    levels, size, _ = codebook.vectors.shape
    return dict(codebooks=levels, codebook_size=size)
