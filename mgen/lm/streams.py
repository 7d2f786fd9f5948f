"""A stage of the hierarchy as data: which token streams a language model reads and which it writes.

A part is some levels of a stream, written "semantic" or "acoustic[0:4]". The target's parts become
one grid of codes [B, F, K]: a frame is as long as the slowest part's, and a faster part's codes of
that time stand side by side. So MusicRL's frames of semantic and acoustic tokens are the target
("semantic", "acoustic[0:4]"), YuE's two tracks ("vocals[0:1]", "accompaniment[0:1]"), with layout
"flatten"; MusicLM's coarse stage is the target ("acoustic[0:4]",) after the prefix ("joint",
"semantic").
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.lm import condition as conditions
from mgen.lm.condition import Condition
from mgen.lm.config import LMConfig
from mgen.typing import Array, Int, Key

Codes = Mapping[str, Any]  # stream -> int32 [B, F, K]
# Streams with a meaning of their own: tokens of the mean embedding of a crop, which data holds as
# vectors, vectors of a text encoder, and what a stem is made to fit: a mix of others, and its slot.
JOINT, JOINT_VECTORS, TEXT = "joint", "joint_embedding", "text"
# A stem is made to fit a mix of others, in its slot; a tune to follow is tokens of its windows'
# embeddings (MusicLM) or pitch classes (MusicGen), vectors in front or tokens beside the frames.
CONTEXT, CATEGORY, MELODY, CHROMA = "context", "category", "melody", "chroma"
# Residual tokens of an excerpt that the piece should sound like (Rouard et al. 2024,
# "MusicGen-Style"): s of the shortest and the longest one, levels that generation knows of it.
STYLE, EXCERPT, STYLE_LEVELS = "style", (1.5, 4.5), 3
ATTRIBUTES = "attributes"  # classes of a piece
# What a user may leave out.
OPTIONAL = (CONTEXT, CATEGORY, MELODY)


@dataclasses.dataclass(frozen=True)
class Part:
    """Levels first .. last - 1 of a stream.

    Attributes:
      size: of a codebook.
      rate: rows a second; 0 for a stream with one row for a whole piece ("category").
    """

    stream: str
    first: int
    last: int
    size: int
    rate: float

    @property
    def levels(self) -> int:
        return self.last - self.first

    def take(self, codes: Codes) -> Int[Array, "B F k"]:
        return codes[self.stream][..., self.first : self.last]

    def rows(self, seconds: float) -> int:
        """Length for a crop."""
        return max(1, round(seconds * self.rate))


def parse(text: str, streams: Mapping[str, Any]) -> Part:
    """A part from its name; `streams` has codebooks, codebook_size and frame_rate of each.

    Raises:
      UserError: no such stream or levels.
    """
    match = re.fullmatch(r"(\w+)(?:\[(\d+):(\d+)\])?", text)
    if not match or match[1] not in streams:
        raise UserError(f"stage: {text!r}, expected one of {sorted(streams)}, or such as name[0:4]")
    about = streams[match[1]]
    first, last = int(match[2] or 0), int(match[3] or about["codebooks"])
    if not 0 <= first < last <= about["codebooks"]:
        raise UserError(f"stage: {text!r}, expected levels within 0 to {about['codebooks']}")
    return Part(match[1], first, last, about["codebook_size"], about["frame_rate"])


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a language model reads and writes.

    Attributes:
      target: the parts of the grid that is predicted.
      prefix: sequences before it.
      aligned: sequences added to it frame by frame, at its rate or a slower one.
      vectors: name of a stream of vectors for cross-attention; "" for none.
      front: streams of vectors before everything else, (name, rows a second) of each; 0 for those
        of a whole crop ("text", "joint_embedding").

    Raises:
      UserError: rates that do not divide one another.
    """

    target: tuple[Part, ...]
    prefix: tuple[Part, ...] = ()
    aligned: tuple[Part, ...] = ()
    vectors: str = ""
    front: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for part in self.target:
            self._whole(part, part.rate / self.frame_rate)
        for part in self.aligned:
            # The rates of pitch classes are not those of codecs.
            if part.stream != CHROMA:
                self._whole(part, self.frame_rate / part.rate)

    def _whole(self, part: Part, ratio: float) -> None:
        if abs(ratio - round(ratio)) > 1e-6 or ratio < 0.5:
            raise UserError(
                f"stage: {part.stream} at {part.rate:g} Hz beside frames at {self.frame_rate:g} Hz,"
                " expected a whole ratio"
            )

    @classmethod
    def from_config(cls, config: Any) -> "Stage":
        """From `streams` and `stage` of an experiment config."""
        parts = {
            role: tuple(parse(text, config.streams) for text in config.stage[role])
            for role in ("target", "prefix", "aligned")
        }
        rated = config.streams
        front = ((n, rated[n].frame_rate if n in rated else 0.0) for n in config.stage.front)
        return cls(vectors=config.stage.vectors, front=tuple(front), **parts)

    @property
    def frame_rate(self) -> float:
        """Frames of the target a second."""
        return min(part.rate for part in self.target)

    def frames(self, seconds: float) -> int:
        """Frames of the target in a crop."""
        return max(1, round(seconds * self.frame_rate))

    def fold(self, part: Part) -> int:
        """Rows of the part in a frame of the target."""
        return round(part.rate / self.frame_rate)

    @property
    def reads(self) -> frozenset[str]:
        """Names of all streams that it is conditioned on."""
        parts = {part.stream for part in (*self.prefix, *self.aligned)}
        return frozenset(parts | {name for name, _ in self.front} | {self.vectors} - {""})

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the token streams that it needs, without repetition."""
        return tuple(dict.fromkeys(p.stream for p in (*self.target, *self.prefix, *self.aligned)))

    def sizes(self) -> dict[str, Any]:
        """The fields of `LMConfig` that follow from it."""
        target = [part.size for part in self.target for _ in range(self.fold(part) * part.levels)]
        return dict(
            sizes=tuple(target),
            prefix=tuple((part.size,) * part.levels for part in self.prefix),
            aligned=tuple((part.size,) * part.levels for part in self.aligned),
        )

    def grid(self, codes: Codes) -> Int[Array, "B F K"]:
        """The target's codes."""
        found = []
        for part in self.target:
            rows = part.take(codes)
            fold = self.fold(part)
            rows = rows[:, : rows.shape[1] // fold * fold]
            found.append(rows.reshape(rows.shape[0], -1, fold * part.levels))
        frames = min(rows.shape[1] for rows in found)
        return jnp.concatenate([rows[:, :frames] for rows in found], axis=-1)

    def split(self, grid: Int[Array, "B F K"]) -> dict[str, Int[Array, "B F k"]]:
        """Inverse of `grid`: the levels that each part has, by stream."""
        found, start = {}, 0
        for part in self.target:
            width = self.fold(part) * part.levels
            rows = grid[..., start : start + width]
            found[part.stream] = rows.reshape(rows.shape[0], -1, part.levels)
            start += width
        return found

    def prefix_codes(self, codes: Codes) -> tuple[Array, ...]:
        return tuple(part.take(codes) for part in self.prefix)

    @property
    def style(self) -> Part | None:
        """The part whose excerpt it reads."""
        return next((part for part in self.prefix if part.stream == STYLE), None)

    def aligned_codes(self, codes: Codes, frames: int) -> tuple[Array, ...]:
        """Each repeated to the target's rate; the last row goes on where it is short."""
        found = []
        for part in self.aligned:
            rows = part.take(codes)
            # Half a frame on, where the rates meet, that rounding decides nothing.
            at = ((np.arange(frames) + 0.5) * part.rate / self.frame_rate).astype(np.int32)
            found.append(rows[:, jnp.minimum(at, rows.shape[1] - 1)])
        return tuple(found)


def pitch_classes(chroma: Any, there: Any = None) -> Int[Array, "B F 1"]:
    """Tokens of pitch classes [B, F, P], the loudest one of each row; P where nothing is there."""
    classes = jnp.argmax(jnp.asarray(chroma), axis=-1)
    known = True if there is None else there
    return jnp.where(known, classes, chroma.shape[-1]).astype(jnp.int32)[..., None]


def model_config(config: Any) -> LMConfig:
    """The shape of the model of an experiment: `model`, and what follows from its stage."""
    stage = Stage.from_config(config)
    shape = LMConfig.from_config(config.model, **stage.sizes())
    if len(shape.front) != len(stage.front):
        raise UserError(
            f"model.front has {len(shape.front)} widths, expected one for each of the "
            f"{len(stage.front)} streams in stage.front"
        )
    return shape


def excerpt(part: Part, codes: Int[Array, "B F K"], key: Key | None = None) -> Int[Array, "B N K"]:
    """The rows of an excerpt of a crop, as many as the longest one has; what is not of it is
    unknown. With a key its place, its length and how many levels are known are random, so that
    the fewer levels say the more of the whole; without one it is all of the crop's beginning, with
    `STYLE_LEVELS`."""
    batch, frames, levels = codes.shape
    count = min(frames, part.rows(EXCERPT[1]))
    at, level = jnp.arange(count)[None], jnp.arange(levels)[None, None]
    if key is None:
        start, length = jnp.zeros((batch, 1), jnp.int32), jnp.full((batch, 1), count)
        known = jnp.full((batch, 1, 1), STYLE_LEVELS)
    else:
        keys = jax.random.split(key, 3)
        shortest = min(count, part.rows(EXCERPT[0]))
        length = jax.random.randint(keys[0], (batch, 1), shortest, count + 1)
        start = jax.random.randint(keys[1], (batch, 1), 0, frames - length + 1)
        known = jax.random.randint(keys[2], (batch, 1, 1), 1, levels + 1)
    rows = jnp.minimum(start + at, frames - 1)
    found = jnp.take_along_axis(codes, rows[..., None], axis=1)
    return jnp.where((at < length)[..., None] & (level < known), found, part.size)


def silenced(
    stage: Stage, config: LMConfig, condition: Condition, names: Collection[str]
) -> Condition:
    """The condition without the streams of these names."""
    nothing = conditions.absent(config, condition)

    def pick(own: Sequence[str], given: tuple, none: tuple) -> tuple:
        return tuple(n if name in names else x for name, x, n in zip(own, given, none))

    front = [name for name, _ in stage.front]
    return dataclasses.replace(
        nothing if stage.vectors in names else condition,
        attributes=nothing.attributes if ATTRIBUTES in names else condition.attributes,
        front=pick(front, condition.front, nothing.front),
        front_mask=pick(front, condition.front_mask, nothing.front_mask),
        prefix=pick([p.stream for p in stage.prefix], condition.prefix, nothing.prefix),
        aligned=pick([p.stream for p in stage.aligned], condition.aligned, nothing.aligned),
    )


def drop_sources(
    stage: Stage, config: LMConfig, key: Key, condition: Condition, rates: Mapping[str, float]
) -> Condition:
    """Takes each stream of `rates` from its own share of the examples; for training."""
    for number, (name, rate) in enumerate(sorted(rates.items())):
        batch = jax.tree.leaves(condition)[0].shape[0]
        keep = jax.random.bernoulli(jax.random.fold_in(key, number), 1.0 - rate, (batch,))
        without = silenced(stage, config, condition, {name})
        condition = conditions.choose(keep, condition, without)
    return condition
