"""Generation of codes: prefill of conditions and prompts, then cached steps.

Two programs: `_start` fills the cache, `_advance` runs steps up to any other one. What is between
them is on the host, so a caller can listen while the rest is still being made (`stream`).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.lm import condition as conditions
from mgen.lm import decode, depth
from mgen.lm.condition import Condition
from mgen.lm.config import LMConfig
from mgen.lm.filters import SamplingConfig, sample_tokens
from mgen.typing import Array, Float, Int, Params, ndarray

SEGMENT = 512  # steps
Variant = tuple[float, Condition]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenLM:
    """A trained language model with its weights arranged for decoding (see `mgen.lm.decode`)."""

    config: LMConfig = dataclasses.field(metadata=dict(static=True))
    weights: Params

    @classmethod
    def from_trained(cls, config: LMConfig, params: Params) -> "FrozenLM":
        """From the parameters of `LM`, scanned or not."""
        return cls(config, jax.jit(decode.arrange, static_argnums=0)(config, params))

    def int8(self) -> "FrozenLM":
        """The model with int8 matrices, see `decode.quantized`."""
        return FrozenLM(self.config, jax.jit(decode.quantized)(self.weights))

    def generate(
        self,
        *,
        frames: int,
        seeds: Int[Array, " B"] | ndarray,
        prompt: Int[Array, "B P K"] | ndarray | None = None,
        prompt_frames: Int[ndarray, " B"] | None = None,
        condition: Condition | None = None,
        sampling: SamplingConfig | None = None,
        variants: Sequence[Variant] | None = None,
    ) -> Int[Array, "B F K"]:
        """Codes of `frames` frames, the prompt's included. Compiled once for each set of shapes.

        An example's codes depend on its own seed, prompt and condition only, not on its neighbours.

        Args:
          seeds: one for each example.
          prompt: codes to continue, P < frames; they come back unchanged at the front.
          prompt_frames: how many of them each example has, at the front; P by default. Every
            example is continued by frames - max(prompt_frames) frames; what follows is 0.
          condition: what the codes should follow. Guidance contrasts with the absence of all of it.
          sampling: defaults to `SamplingConfig()`.
          variants: instead of `condition` and `sampling.guidance`, conditions and their weights w:
            logits = sum of w logits(condition). (s, c), (1 - s, negative) is guidance away from a
            negative prompt; (1 - s1 - s2, nothing), (s1, c1), (s2, c2) is guidance by two sources.

        Raises:
          UserError: shapes or code values that do not fit the model.
        """
        *_, codes = self.stream(
            frames=frames,
            seeds=seeds,
            prompt=prompt,
            prompt_frames=prompt_frames,
            condition=condition,
            sampling=sampling,
            variants=variants,
        )
        return codes

    def stream(
        self, *, frames: int, seeds: Int[Array, " B"] | ndarray, chunk: int = 0, **arguments: Any
    ) -> Iterator[Int[Array, "B F K"]]:
        """Yields, every `chunk` steps, the codes of the frames that are whole so far, from the
        first; the last are those of `generate`, which takes the same arguments."""
        config = self.config
        inputs, plan = _prepare(config, frames, seeds, **arguments)
        layout = config.make_layout()
        state = _start(self, inputs, plan)
        for end, capacity in plan.stops(chunk):
            state = dataclasses.replace(state, cache=decode.grow_cache(state.cache, capacity))
            state = _advance(self, inputs, state, jnp.int32(end), *plan.shape)
            done = layout.frames_done(frames, end)
            if done == frames or (chunk and done > plan.longest):
                yield _finish(layout.decode(state.sequence, frames)[:, :done], inputs, plan)


@flax.struct.dataclass
class _Inputs:
    """What the programs read. The G variants of a condition stand behind one another, [G B, ...].

    Attributes:
      prompt: int32 [B, F, K], zeros behind each example's prompt_frames [B].
      weights: of the variants [G].
      numbers: fields of `SamplingConfig`.
    """

    seeds: Array
    prompt: Array
    prompt_frames: Array
    condition: Condition
    weights: Array
    numbers: dict[str, Array]


@flax.struct.dataclass
class _State:
    """Between steps.

    Attributes:
      index: the next step of the example with the longest prompt; the others' next step is `lag`
        [B] less.
      sequence: int32 [B, L, S], from each example's own first step.
      column: int32 [B, S], the last one that was written.
    """

    index: Array
    lag: Array
    sequence: Array
    column: Array
    cache: decode.Cache


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Numbers that shape the programs.

    Attributes:
      frames, longest: of the result, and of the longest prompt.
      front: positions before the target.
      first, steps: the first step that is drawn, and how many there are.
      filters: whether top-k and top-p are on.
      segment: steps by which the cache grows.
    """

    frames: int
    longest: int
    front: int
    first: int
    steps: int
    filters: tuple[bool, bool]
    segment: int

    @property
    def shape(self) -> tuple[int, int, tuple[bool, bool]]:
        """What `_advance` is compiled for: prompts of any length run the same program."""
        return self.frames, self.front, self.filters

    def stops(self, chunk: int) -> Iterator[tuple[int, int]]:
        """Steps to stop at, and the cache's length until there. Attention reads the whole cache, so
        a long generation runs in segments, each with a longer one; `chunk` adds stops, which change
        neither a shape nor a result."""
        ends = [end for end in range(self.segment, self.steps, self.segment) if end > self.first]
        ends.append(self.steps)
        inner = range(self.first + chunk, self.steps, chunk) if chunk else ()
        for stop in sorted({*ends, *inner}):
            yield stop, self.front + next(end for end in ends if end >= stop)


def _prepare(
    config: LMConfig,
    frames: int,
    seeds: Any,
    prompt: Any = None,
    prompt_frames: Any = None,
    condition: Condition | None = None,
    sampling: SamplingConfig | None = None,
    variants: Sequence[Variant] | None = None,
) -> tuple[_Inputs, _Plan]:
    """A checked call of `FrozenLM.generate`."""
    if config.objective != "next":
        raise UserError(f"model.objective is {config.objective!r}, expected 'next'")
    sampling = sampling or SamplingConfig()
    seeds = jnp.asarray(seeds, jnp.int32)
    batch, layout = seeds.shape[0], config.make_layout()
    shape = (batch, frames)
    stacked, weights = weighted(config, shape, condition, sampling.guidance, variants)
    prompt, lengths, longest = check_prompt(config, batch, frames, prompt, prompt_frames)
    inputs = _Inputs(
        seeds,
        jnp.pad(prompt, ((0, 0), (0, frames - prompt.shape[1]), (0, 0))),
        lengths,
        stacked,
        weights,
        sampling.numbers(),
    )
    front = sum(vectors.shape[1] for vectors in stacked.front)
    front += sum(codes.shape[1] * codes.shape[2] for codes in stacked.prefix)
    first, steps = int(layout.schedule(frames)[longest].min()), layout.steps(frames)
    return inputs, _Plan(frames, longest, front, first, steps, sampling.filters, SEGMENT)


def weighted(
    config: LMConfig,
    shape: tuple[Any, int],
    condition: Condition | None,
    guidance: Any,
    variants: Sequence[Variant] | None,
) -> tuple[Condition, Float[Array, " G"]]:
    """The G variants of a condition behind one another, [G B, ...], and their weights: those given,
    or those of plain guidance, logits = u + guidance (c - u).

    Args:
      shape: B and F.
    """
    if variants is None:
        known = conditions.complete(config, condition or Condition(), *shape)
        # Without a condition there is nothing to contrast.
        plain = isinstance(guidance, (int, float)) and guidance == 1
        if plain or not jax.tree.leaves(known):
            variants = [(1.0, known)]
        else:
            variants = [(guidance, known), (1.0 - guidance, conditions.absent(config, known))]
    else:
        variants = [(w, conditions.complete(config, c, *shape)) for w, c in variants]
    weights = jnp.stack([jnp.asarray(weight, jnp.float32) for weight, _ in variants])
    return jax.tree.map(lambda *x: jnp.concatenate(x), *(c for _, c in variants)), weights


def check_prompt(
    config: LMConfig, batch: Any, frames: int, prompt: Any, prompt_frames: Any
) -> tuple[Int[Array, "B P K"], Int[Array, " B"], int]:
    """The prompt, empty where there is none, its lengths and the longest one; `UserError` where it
    does not fit."""
    if prompt is None:
        prompt = jnp.zeros((batch, 0, config.num_codebooks), jnp.int32)
    shape = prompt.shape
    if (shape[0], shape[2]) != (batch, config.num_codebooks) or shape[1] >= frames:
        raise UserError(
            f"prompt: shape is {shape}, expected ({batch}, < {frames}, {config.num_codebooks})"
        )
    conditions.check_range("prompt", prompt, config.sizes)
    prompt = jnp.asarray(prompt, jnp.int32)
    if prompt_frames is None:
        return prompt, jnp.full((batch,), shape[1], jnp.int32), shape[1]
    lengths = np.asarray(prompt_frames, np.int32)
    if lengths.shape != (batch,) or lengths.min() < 0 or lengths.max() > shape[1]:
        raise UserError(f"prompt_frames: expected {batch} numbers from 0 to {shape[1]}")
    if config.layout == "coarse_first" and len(set(lengths.tolist())) > 1:
        raise UserError("prompt_frames: expected equal ones with layout 'coarse_first'")
    return prompt, jnp.asarray(lengths), int(lengths.max())


@functools.partial(jax.jit, static_argnames="plan")
def _start(model: FrozenLM, inputs: _Inputs, plan: _Plan) -> _State:
    """The state after the conditions and prompts."""
    config, weights, condition = model.config, model.weights, inputs.condition
    layout, variants = config.make_layout(), inputs.weights.shape[0]
    batch, frames = inputs.seeds.shape[0], plan.frames
    first = jnp.asarray(layout.schedule(frames).min(axis=1))[inputs.prompt_frames]
    lag = plan.first - first
    sequence = _sequence(layout, inputs, plan)
    shifted = layout.shift(sequence)
    column = jnp.take_along_axis(shifted, first[:, None, None], axis=1)[:, 0]
    _, capacity = next(plan.stops(0))
    cache = decode.init_cache(config.transformer, batch * variants, capacity)
    cache = decode.remember_condition(config, weights, cache, condition)
    parts = [x for x in (decode.front(config, weights, condition),) if x is not None]
    if plan.first:
        steps = slice(0, plan.first)
        slots = jnp.asarray(layout.shifted_slots(frames)[steps])[None]
        tokens = repeat(shifted[:, steps], variants)
        own = jnp.broadcast_to(layout.newest(frames)[steps], tokens.shape[:2])
        parts.append(decode.target(config, weights, condition, tokens, slots, own))
    if parts:
        x = jnp.concatenate(parts, axis=1)
        # Everything ends where the longest prompt ends; in front of the others stands filler.
        positions = jnp.arange(x.shape[1])[None] - repeat(lag, variants)[:, None]
        x = jnp.take_along_axis(x, jnp.maximum(positions, 0)[..., None], axis=1)
        x = decode.add_positions(config, x, positions)
        _, cache = decode.forward(
            config.transformer, weights["transformer"], cache, x, positions, 0, condition.mask
        )
    return _State(jnp.int32(plan.first), lag, sequence, column, cache)


def _sequence(layout: Any, inputs: _Inputs, plan: _Plan) -> Int[Array, "B L S"]:
    """The prompts' sequences; special tokens behind each example's last frame, as the end of a
    delayed layout has them."""
    sequence = layout.encode(inputs.prompt)
    last = plan.frames - plan.longest + inputs.prompt_frames
    table, slots = layout.frames_at(plan.frames)[None], layout.slots(plan.frames)
    special = jnp.asarray(layout.sizes)[slots][None]
    return jnp.where(table < last[:, None, None], sequence, special)


@functools.partial(jax.jit, static_argnames=("frames", "front", "filters"), donate_argnames="state")
def _advance(
    model: FrozenLM,
    inputs: _Inputs,
    state: _State,
    end: Int[Array, ""],
    frames: int,
    front: int,
    filters: tuple[bool, bool],
) -> _State:
    """Draws the steps before `end`."""
    config, weights, condition = model.config, model.weights, inputs.condition
    layout, variants = config.make_layout(), inputs.weights.shape[0]
    tables = (layout.frames_at(frames), layout.slots(frames), layout.shifted_slots(frames))
    held, shown, read = map(jnp.asarray, tables)
    newest = jnp.asarray(layout.newest(frames))
    rows = jnp.arange(inputs.seeds.shape[0])
    last = frames - inputs.prompt_frames.max() + inputs.prompt_frames

    def draw(state: _State) -> _State:
        own = state.index - state.lag  # [B], each example's step
        at = jnp.minimum(own, len(held) - 1)
        tokens = repeat(state.column, variants)[:, None]
        # As at the end of training's sequences, behind an example's last frame too.
        frame = repeat(jnp.minimum(newest[at], last - 1), variants)
        slots = repeat(read[at], variants)
        x = decode.target(config, weights, condition, tokens, slots[:, None], frame[:, None])
        positions = repeat(front + own, variants)[:, None]
        x = decode.add_positions(config, x, positions)
        x, cache = decode.forward(
            config.transformer,
            weights["transformer"],
            state.cache,
            x,
            positions,
            front + state.index,
            condition.mask,
        )
        keys = jax.vmap(lambda seed, i: jax.random.fold_in(jax.random.key(seed), i))(
            inputs.seeds, own
        )
        mixed = functools.partial(mix, inputs.weights)
        if config.depth_layers:
            drawn = depth.draw(config, weights, x, mixed, keys, inputs.numbers, filters)
        else:
            logits = mixed(decode.logits(config, weights, x, repeat(shown[at], variants)))
            drawn = sample_tokens(keys, logits, inputs.numbers, filters)
        free = (held[at] >= inputs.prompt_frames[:, None]) & (held[at] < last[:, None])
        column = jnp.where(free, drawn, state.sequence[rows, at])
        sequence = state.sequence.at[rows, at].set(column)
        return dataclasses.replace(
            state, index=state.index + 1, sequence=sequence, column=column, cache=cache
        )

    return jax.lax.while_loop(lambda state: state.index < end, draw, state)


def repeat(x: Array, times: int) -> Array:
    """[B, ...] behind itself, [times B, ...]."""
    return jnp.concatenate([x] * times) if times > 1 else x


def mix(weights: Array, logits: Array) -> Array:
    """Weighted sum over the variants, [G B, ..., V] to [B, ..., V]."""
    if weights.shape[0] == 1:
        return logits
    parts = logits.reshape(weights.shape[0], -1, *logits.shape[1:])
    return jnp.tensordot(weights, parts, axes=1, precision=jax.lax.Precision.HIGHEST)


def _finish(codes: Int[Array, "B F K"], inputs: _Inputs, plan: _Plan) -> Int[Array, "B F K"]:
    """Zeros behind the end of an example with a shorter prompt."""
    last = plan.frames - plan.longest + inputs.prompt_frames
    return jnp.where((jnp.arange(codes.shape[1])[None] < last[:, None])[..., None], codes, 0)
