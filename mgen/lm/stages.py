"""The hierarchy at inference: stages that read what the stages before them wrote, in windows.

A stage goes on by windows as long as the crops it was trained on, one every half of that: each is
prompted by what is already there of it (MusicLM, section 5: 15 s of prompt, 15 s of new tokens).
So minutes take the memory of one window, and because the windows lie where they lie, whoever asks
for the first seconds first (`Timeline.extend`) gets what he would have got at the end.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.lm.condition import Condition
from mgen.lm.filters import SamplingConfig
from mgen.lm.masked import FrozenMasked, MaskingConfig
from mgen.lm.sample import FrozenLM, Variant
from mgen.lm.streams import (
    ATTRIBUTES,
    CHROMA,
    EXCERPT,
    JOINT,
    JOINT_VECTORS,
    OPTIONAL,
    STYLE,
    TEXT,
    Stage,
    model_config,
    pitch_classes,
    silenced,
)
from mgen.nn.cluster import residual_codes
from mgen.typing import Array, Float, Int, Params, ndarray

STRIDE = 0.5  # of a window

Streams: TypeAlias = Mapping[str, ndarray]  # codes int32 [B, F, K], vectors float32 [B, N, D]


@dataclasses.dataclass(frozen=True)
class FrozenStage:
    """A trained language model with what it reads and writes.

    Attributes:
      seconds: length of a window.
      codebook: vectors [K, V, D] of the joint tokens that it was trained with, None without them.
      categories: names of the values of the stream "category".
      text_length: vectors of a text in training.
    """

    stage: Stage
    lm: FrozenLM | FrozenMasked
    seconds: float
    codebook: ndarray | None = None
    categories: tuple[str, ...] = ()
    text_length: int = 0

    @classmethod
    def from_trained(cls, config: Any, params: Params, variables: Params) -> "FrozenStage":
        """From an experiment's config, its parameters and the state's variables."""
        shape = model_config(config)
        lm: FrozenLM | FrozenMasked
        if shape.objective == "masked":
            masking = MaskingConfig.from_config(config.masking)
            lm = FrozenMasked.from_trained(shape, masking, params)
        else:
            lm = FrozenLM.from_trained(shape, params)
        codebook = variables["joint"]["codebook"] if "joint" in variables else None
        codebook = None if codebook is None else np.asarray(codebook)
        categories = tuple(config.streams.get("category", {}).get("names", ()))
        return cls(
            Stage.from_config(config),
            lm,
            config.data.seconds,
            codebook,
            categories,
            config.data.text_length,
        )

    def int8(self) -> "FrozenStage":
        """The stage with int8 weights; `UserError` for a masked model, whose few passes are bound
        by operations, not by reading weights."""
        if isinstance(self.lm, FrozenMasked):
            raise UserError("--int8: a masked model has no int8 weights, expected objective 'next'")
        return dataclasses.replace(self, lm=self.lm.int8())

    @property
    def reads(self) -> frozenset[str]:
        """Streams that it is conditioned on, "attributes" where it knows classes."""
        return self.stage.reads | ({ATTRIBUTES} if self.lm.config.attribute_sizes else set())

    def joint_tokens(self, embedding: Array | ndarray) -> Int[Array, "N 1 K"]:
        """Tokens of embeddings [N, D]."""
        if self.codebook is None:
            raise ValueError("this stage reads no joint tokens")
        return _joint_tokens(embedding, self.codebook)


@jax.jit
def _joint_tokens(embedding: Float[Array, "N D"], codebook: Array) -> Int[Array, "N 1 K"]:
    return residual_codes(embedding, codebook)[0][:, None]


@dataclasses.dataclass(frozen=True)
class Directions:
    """What a clip should be, for each of B clips.

    Attributes:
      told: (second, streams) in order: what to follow from that second on (MusicLM's story mode has
        several), "joint_embedding" [B, 1, D] or "text" [B, L, W] and "text_mask"; () for nothing.
      attributes: int32 [B, A], None for nothing.
      scales: guidance by single sources of a stage, stream -> scale; the other sources are given
        throughout. Empty: guidance by all of them together.
      negative: such streams of what to stay away from, instead of from the absence of conditions.
    """

    told: tuple[tuple[float, Streams], ...] = ()
    attributes: ndarray | None = None
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    negative: Streams | None = None

    def at(self, second: float) -> Streams:
        """What holds at a second."""
        found: Streams = {}
        for begin, streams in self.told:
            if not found or begin <= second:
                found = streams
        return found


class Timeline:
    """One stage's tokens of B clips, as far as they are made.

    Attributes:
      grid: int32 [B, F, K], all that there is.
      stop: frame at which what is made ends.
      after: int32 [B, T, K], codes that stand behind `stop`.
    """

    def __init__(
        self,
        stage: FrozenStage,
        seconds: float,
        seeds: ndarray,
        directions: Directions,
        sampling: SamplingConfig,
        prompt: Streams | None = None,
        hole: tuple[float, float] | None = None,
    ):
        """A clip of `seconds` in all; `prompt` holds streams int32 [B, F, K] to go on from; with
        `hole` the whole clip, of which the codes from its first to its last second are made anew:
        by a masked model from both sides, by another one from what is before."""
        self.frozen, self.stage = stage, stage.stage
        # An exported chain is this code, traced.
        self.xp: Any = jnp if isinstance(seeds, jax.core.Tracer) else np
        self.seeds = self.xp.asarray(seeds)
        self.batch = self.seeds.shape[0]
        self.directions, self.sampling = directions, sampling
        self.total = self.stop = self.stage.frames(seconds)
        self.window = self.stage.frames(stage.seconds)
        self.stride = max(1, round(self.window * STRIDE))
        width = len(self.stage.sizes()["sizes"])
        self.grid = self.after = self.xp.zeros((self.batch, 0, width), np.int32)
        self.both_sides = hole is not None and isinstance(stage.lm, FrozenMasked)
        if prompt is not None:
            self.grid = np.asarray(self.stage.grid(prompt), np.int32)
            if hole is not None:
                self.total = self.grid.shape[1]
                start = min(round(hole[0] * self.stage.frame_rate), self.total - 1)
                self.stop = min(max(start + 1, round(hole[1] * self.stage.frame_rate)), self.total)
                self.grid, self.after = self.grid[:, :start], self.grid[:, self.stop :]
            elif self.grid.shape[1] >= self.total:
                length = self.grid.shape[1] / self.stage.frame_rate
                raise UserError(
                    f"the prompt is {length:.1f} s long, expected less than {seconds:.1f} s"
                )

    @property
    def seconds(self) -> float:
        """How much there is."""
        return self.grid.shape[1] / self.stage.frame_rate

    @property
    def done(self) -> bool:
        return self.grid.shape[1] >= self.total

    def next_end(self) -> float:
        """Second at which the next window ends."""
        return self._span()[1] / self.stage.frame_rate

    def extend(self, streams: Streams) -> None:
        """Makes one window; `streams` holds what the stage reads, at least up to `next_end`."""
        begin, end = self._span()
        before = self.grid.shape[1] - begin
        codes = self.frozen.lm.generate(
            frames=end - begin,
            seeds=self._seeds(begin),
            sampling=self.sampling,
            **self._prompt(begin, end),
            **self._conditions(streams, begin, end),
        )
        made = self.xp.asarray(codes)[:, before : self.stop - begin]
        self.grid = self.xp.concatenate([self.grid, made], axis=1)
        if self.grid.shape[1] == self.stop:
            self.grid = self.xp.concatenate([self.grid, self.after], axis=1)

    def streams(self) -> dict[str, Any]:
        """What was made so far, by stream: the levels that the stage writes, int32 [B, F, K]."""
        return self.stage.split(self.grid)

    def _span(self) -> tuple[int, int]:
        """Frames of the next window: the first of the fixed ones that ends behind what is made; in
        a hole, one with as much before the codes to come as behind them."""
        made = self.grid.shape[1]
        if self.both_sides:
            margin = (self.window - min(self.stop - made, self.stride)) // 2
            begin = max(0, min(made - margin, self.total - self.window))
            return begin, min(begin + self.window, self.total)
        begin = max(0, -(-(made + 1 - self.window) // self.stride)) * self.stride
        return begin, min(begin + self.window, self.stop)

    def _prompt(self, begin: int, end: int) -> dict[str, Any]:
        """What `generate` keeps of a window."""
        before = self.grid[:, begin:]
        if not self.both_sides:
            return {"prompt": before} if before.shape[1] else {}
        batch, made, width = self.grid.shape
        hole = np.zeros((batch, self.stop - made, width), np.int32)
        codes = np.concatenate([before, hole, self.after], axis=1)[:, : end - begin]
        frames = np.arange(begin, end)
        known = (frames < made) | (frames >= self.stop)
        return {"prompt": codes, "known": np.broadcast_to(known[None, :, None], codes.shape)}

    def _seeds(self, begin: int) -> ndarray:
        """A seed a clip and window; that of the first window is the clip's."""
        own = self.seeds.astype(np.uint32) + np.uint32(begin * 2654435761 % (1 << 32))
        return (own & np.uint32((1 << 31) - 1)).astype(np.int32)

    def _conditions(self, streams: Streams, begin: int, end: int) -> dict[str, Any]:
        """What `generate` is to follow in a window, and to stay away from."""
        told, window = self.directions, (streams, begin, end)
        condition = self._condition(*window, told.at(begin / self.stage.frame_rate))
        scales = {k: v for k, v in told.scales.items() if k in self.frozen.reads}
        if scales:
            return {"variants": self._by_source(condition, scales)}
        if told.negative is None or self.stage.reads.isdisjoint((JOINT, JOINT_VECTORS, TEXT)):
            return {"condition": condition}
        scale, other = self.sampling.guidance, self._condition(*window, told.negative)
        return {"variants": [(scale, condition), (1.0 - scale, other)]}

    def _by_source(self, condition: Condition, scales: Mapping[str, float]) -> list[Variant]:
        """Guidance by several sources, logits = u + sum of s_i (c_i - u) with u from none of them
        and c_i from one (Parker et al. 2024, "StemGen", section 3.3)."""
        silent = functools.partial(silenced, self.stage, self.frozen.lm.config, condition)
        alone = [(s, silent(scales.keys() - {name})) for name, s in scales.items()]
        return [(1.0 - sum(scales.values()), silent(scales.keys())), *alone]

    def _condition(self, streams: Streams, begin: int, end: int, told: Streams) -> Condition:
        stage, config, known = self.stage, self.frozen.lm.config, {**streams, **told}
        codes, window = self._codes(known, begin, end), (begin, end)
        vectors = mask = None
        if stage.vectors:
            vectors, mask = self._rows(known, stage.vectors, 0.0, config.condition_width, *window)
        front = [
            self._rows(known, name, rate, width, *window)
            for (name, rate), width in zip(stage.front, config.front)
        ]
        fields = self.directions.attributes
        given = config.attribute_sizes and fields is not None
        return Condition(
            attributes=jnp.asarray(fields) if given else None,
            vectors=vectors,
            mask=mask,
            front=tuple(rows for rows, _ in front),
            front_mask=tuple(there for _, there in front),
            prefix=stage.prefix_codes(codes),
            aligned=stage.aligned_codes(codes, end - begin),
        )

    def _codes(self, streams: Streams, begin: int, end: int) -> dict[str, Array]:
        """The window's rows of the streams of tokens that the stage reads; unknown where what may
        be left out has none."""
        rate = self.stage.frame_rate
        cut: dict[str, Any] = {}
        for part in (*self.stage.prefix, *self.stage.aligned):
            if part.stream == JOINT:
                cut[JOINT] = self._joint(streams.get(JOINT_VECTORS))
            elif part.stream == STYLE:
                nothing = self._full((part.rows(EXCERPT[1]), part.last), part.size)
                cut[STYLE] = streams.get(STYLE, nothing)
            elif part.stream == CHROMA:
                given = self._rows(streams, CHROMA, part.rate, part.size, begin, end)
                cut[CHROMA] = pitch_classes(*given)
            elif part.stream in OPTIONAL:
                rows, there = self._rows(streams, part.stream, part.rate, part.last, begin, end)
                cut[part.stream] = jnp.where(there[..., None], rows, part.size).astype(jnp.int32)
            else:
                first, last = (round(frame / rate * part.rate) for frame in (begin, end))
                rows = self.xp.asarray(streams[part.stream])
                cut[part.stream] = rows[:, first : max(last, first + 1)]
        return {name: jnp.asarray(value) for name, value in cut.items()}

    def _rows(
        self, streams: Streams, name: str, rate: float, width: int, begin: int, end: int
    ) -> tuple[Array, Array]:
        """The window's rows [B, N, width] of a stream that may be short or missing, and bool [B, N]
        where there are any; rate 0 takes all rows."""
        rows = streams.get(name, self.xp.zeros((self.batch, 0, width), np.float32))
        there = streams.get(f"{name}_mask", self.xp.ones(rows.shape[:2], bool))
        start, count = 0, max(1, rows.shape[1])
        if rate:
            first, last = (frame / self.stage.frame_rate for frame in (begin, end))
            start, count = round(first * rate), max(1, round((last - first) * rate))
        rows, there = rows[:, start : start + count], there[:, start : start + count]
        filler = ((0, 0), (0, count - rows.shape[1]))
        pad = self.xp.pad
        return jnp.asarray(pad(rows, (*filler, (0, 0)))), jnp.asarray(pad(there, filler))

    def _joint(self, embedding: ndarray | None) -> Array | ndarray:
        """Tokens of the embedding [B, 1, D]; all unknown without one."""
        if embedding is not None:
            return self.frozen.joint_tokens(embedding[:, 0])
        assert self.frozen.codebook is not None
        levels, size, _ = self.frozen.codebook.shape
        return self._full((1, levels), size)

    def _full(self, shape: tuple[int, int], value: int) -> ndarray:
        return self.xp.full((self.batch, *shape), value, np.int32)


def run(
    timelines: Sequence[Timeline], given: Streams | None = None
) -> Iterator[dict[str, ndarray]]:
    """Goes on with a chain of stages until all are done.

    Every stage runs just far enough for the next one, so that the last one's first window comes
    as soon as it can.

    Args:
      timelines: in order; each reads what those before it write, and `given`.

    Yields:
      after each window of the last stage, all streams int32 [B, F, K] as far as they are made, of
      one time: levels of one stream that several stages write lie side by side.
    """
    last = timelines[-1]
    while not last.done:
        _extend(timelines, last.next_end(), given or {})
        yield merged(timelines, given or {})


def _extend(timelines: Sequence[Timeline], seconds: float, given: Streams) -> None:
    """Runs the last of the timelines up to `seconds`, and before that those that it reads."""
    *before, last = timelines
    while not last.done and last.seconds < seconds - 1e-6:
        if before:
            _extend(before, last.next_end(), given)
        last.extend(merged(before, given))


def merged(timelines: Sequence[Timeline], given: Streams) -> dict[str, ndarray]:
    found: dict[str, Any] = dict(given)
    for timeline in timelines:
        for name, codes in timeline.streams().items():
            if name not in found:
                found[name] = codes
                continue
            frames = min(found[name].shape[1], codes.shape[1])
            parts = [found[name][:, :frames], codes[:, :frames]]
            found[name] = timeline.xp.concatenate(parts, axis=-1)
    return found
