"""Masked models (SoundStorm, MAGNeT, VampNet, StemGen): what is hidden in training, and generation
by confidence, a few passes over everything in place of a step a frame.

Two ways to hide codes:
  "level"  SoundStorm (Borsos et al. 2023, section 3.2): behind a random prompt, one level is hidden
           in part and the finer ones whole; the loss counts the hidden codes of that level. MAGNeT
           (Ziv et al. 2024) hides spans of frames in place of single ones, behind no prompt.
  "all"    VampNet (Garcia et al. 2023) and StemGen (Parker et al. 2024): any code of any level.

Generation (Chang et al. 2022, "MaskGIT") draws every hidden code in each pass and hides again those
that it was least sure of, as many as the cosine schedule leaves.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.lm import condition as conditions
from mgen.lm.condition import Condition
from mgen.lm.config import LMConfig
from mgen.lm.filters import SamplingConfig, keep_likely, sample_tokens
from mgen.lm.model import LM, unstack_layers
from mgen.lm.sample import Variant, check_prompt, mix, repeat, weighted
from mgen.nn.spans import covered, example_keys
from mgen.typing import Array, Bool, Float, Int, Key, Params, ndarray

HIDES = ("level", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How codes are hidden, in training and in generation.

    Attributes:
      hide: one of `HIDES`.
      span: frames that are hidden together: in training spans that begin anywhere and may overlap,
        in generation blocks side by side.
      prompt: with "level", whether training leaves a random prompt in front.
      finer: with "level", whether the loss counts the finer levels too: more to learn from a step.
      steps: passes for each level (SoundStorm: 16, 1, 1, ...; the last number goes for the levels
        behind it), with "all" the first one for everything.
      noise: weight of the Gumbel noise on the log-probabilities that rank codes, falling to 0 from
        the first pass to the last.
      causal_bias: added to that ranking, from this value at the first frame to 0 at the last: early
        codes first (StemGen, section 3.4).
      last_guidance: where `SamplingConfig.guidance` goes to, pass by pass over a level, with the
        share of its codes that is still hidden (MAGNeT: from 10 to 1); None leaves it as it is.
      cooling: whether the temperature falls too, to 0 in the last pass (MAGNeT: from 3).
    """

    hide: str = "level"
    span: int = 1
    prompt: bool = True
    finer: bool = False
    steps: tuple[int, ...] = (16, 1)
    noise: float = 1.0
    causal_bias: float = 0.0
    last_guidance: float | None = None
    cooling: bool = False

    def __post_init__(self) -> None:
        if self.hide not in HIDES:
            raise UserError(f"masking.hide is {self.hide!r}, expected one of {list(HIDES)}")
        if self.span < 1 or not self.steps or min(self.steps) < 1:
            raise UserError(f"masking: span {self.span}, steps {self.steps}, expected 1 or more")

    @classmethod
    def from_config(cls, config: Any) -> "MaskingConfig":
        """From the `masking` part of an experiment config."""
        return cls(**{**dict(config), "steps": tuple(config["steps"])})

    def passes(self, codebooks: int) -> tuple[int, ...]:
        """Of each level, or of everything."""
        if self.hide == "all":
            return self.steps[:1]
        return tuple(self.steps[min(level, len(self.steps) - 1)] for level in range(codebooks))


def training_masks(
    config: MaskingConfig, key: Key, codes: Int[Array, "B F K"]
) -> tuple[Bool[Array, "B F K"], Bool[Array, "B F K"]]:
    """What is hidden, and of that what the loss counts; an example's own whatever its batch."""
    batch, frames, codebooks = codes.shape

    def one(key: Key) -> tuple[Array, Array]:
        ratio_key, mask_key, prompt_key, level_key = jax.random.split(key, 4)
        # The cosine of a uniform angle: most often much is hidden, as at the start of generation.
        ratio = jnp.cos(jax.random.uniform(ratio_key, maxval=np.pi / 2))
        levels = 1 if config.hide == "level" else codebooks
        begins = jax.random.uniform(mask_key, (frames + config.span - 1, levels))
        begins = begins < 1 - (1 - ratio) ** (1 / config.span)
        mask = covered(begins, config.span)
        # At least one code, or the example would count for nothing.
        some = jnp.arange(frames)[:, None] == jax.random.randint(prompt_key, (), 0, frames)
        if config.hide == "all":
            mask = mask | (some & (jnp.arange(codebooks) == 0)[None])
            return mask, mask
        begin = jax.random.randint(prompt_key, (), 0, frames) if config.prompt else 0
        after = jnp.arange(frames) >= begin
        level = jax.random.randint(level_key, (), 0, codebooks)
        own = (jnp.arange(codebooks) == level)[None]
        scored = own & after[:, None] & (mask | some)
        hidden = scored | (jnp.arange(codebooks) > level)[None] & after[:, None]
        return hidden, hidden if config.finer else scored

    return jax.vmap(one)(example_keys(key, batch))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenMasked:
    """A trained masked model; generates as `mgen.lm.sample.FrozenLM` does."""

    config: LMConfig = dataclasses.field(metadata=dict(static=True))
    masking: MaskingConfig = dataclasses.field(metadata=dict(static=True))
    params: Params

    @classmethod
    def from_trained(
        cls, config: LMConfig, masking: MaskingConfig, params: Params
    ) -> "FrozenMasked":
        """From the parameters of `LM`, scanned or not."""
        config = dataclasses.replace(config, scan=False, remat="none", dropout=0.0)
        return cls(config, masking, unstack_layers(params))

    def generate(
        self,
        *,
        frames: int,
        seeds: Int[Array, " B"] | ndarray,
        prompt: Int[Array, "B P K"] | ndarray | None = None,
        prompt_frames: Int[ndarray, " B"] | None = None,
        known: Bool[ndarray, "B F K"] | None = None,
        condition: Condition | None = None,
        sampling: SamplingConfig | None = None,
        variants: Sequence[Variant] | None = None,
    ) -> Int[Array, "B F K"]:
        """Codes of `frames` frames.

        Args:
          seeds, condition, sampling, variants: see `FrozenLM.generate`; the weights of `variants`
            stay as they are whatever `last_guidance` says.
          prompt: codes to keep, at the front, prompt_frames of them (all by default); or, with
            `known`, a whole clip of `frames` frames.
          known: True at the codes of the prompt that stay; the others are made anew: in the middle
            (inpainting), between every n-th frame (VampNet's periodic prompts), finer levels only
            (compression).

        Raises:
          UserError: shapes or code values that do not fit the model.
        """
        config, sampling = self.config, sampling or SamplingConfig()
        seeds = jnp.asarray(seeds, jnp.int32)
        batch = seeds.shape[0]
        given, fixed = self._given(batch, frames, prompt, prompt_frames, known)
        shape = (batch, frames)
        stacked, weights = weighted(config, shape, condition, sampling.guidance, variants)
        last, ends = self.masking.last_guidance, jnp.stack([weights, weights])
        if last is not None and variants is None and len(weights) == 2:
            ends = ends.at[1].set(jnp.asarray([last, 1.0 - last]))
        return _generate(
            self, seeds, given, fixed, stacked, ends, sampling.numbers(), sampling.filters
        )

    def _given(
        self, batch: Any, frames: int, prompt: Any, prompt_frames: Any, known: Any
    ) -> tuple[Int[Array, "B F K"], Bool[Array, "B F K"]]:
        config = self.config
        if known is None:
            codes, lengths, _ = check_prompt(config, batch, frames, prompt, prompt_frames)
            codes = jnp.pad(codes, ((0, 0), (0, frames - codes.shape[1]), (0, 0)))
            fixed = jnp.arange(frames)[None] < lengths[:, None]
            return codes, jnp.broadcast_to(fixed[..., None], codes.shape)
        shape = (batch, frames, config.num_codebooks)
        for name, value in (("prompt", prompt), ("known", known)):
            conditions.check_shape(name, np.zeros(0) if value is None else value, *shape)
        conditions.check_range("prompt", prompt, config.sizes)
        return jnp.asarray(prompt, jnp.int32), jnp.asarray(known, bool)


@functools.partial(jax.jit, static_argnames="filters")
def _generate(
    model: FrozenMasked,
    seeds: Int[Array, " B"],
    given: Int[Array, "B F K"],
    fixed: Bool[Array, "B F K"],
    condition: Condition,
    ends: Float[Array, "2 G"],
    numbers: dict[str, Array],
    filters: tuple[bool, bool],
) -> Int[Array, "B F K"]:
    """`ends` are the weights of the variants in the first pass and where they go to."""
    config, masking = model.config, model.masking
    codes = jnp.where(fixed, given, jnp.asarray(config.sizes)[None, None])
    for number, count in enumerate(masking.passes(config.num_codebooks)):
        level = number if masking.hide == "level" else 0
        own = jax.vmap(lambda seed, n=number: jax.random.fold_in(jax.random.key(seed), n))(seeds)

        def one_pass(i: Array, codes: Array, keys: Key, level: int, count: int) -> Array:
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
            progress = (i + 1) / count
            weights = ends[1] + jnp.cos(i / count * np.pi / 2) * (ends[0] - ends[1])
            heat = 1 - progress if masking.cooling else 1.0
            cooled = numbers | {"temperature": numbers["temperature"] * heat}
            settings = condition, weights, cooled, filters
            return _pass(model, keys, codes, ~fixed, level, progress, *settings)

        one_level = functools.partial(one_pass, keys=own, level=level, count=count)
        codes = jax.lax.fori_loop(0, count, one_level, codes)
    return codes


@functools.partial(jax.jit, static_argnames="filters")
def _pass(
    model: FrozenMasked,
    keys: Key,
    codes: Int[Array, "B F K"],
    missing: Bool[Array, "B F K"],
    level: Int[Array, ""] | int,
    progress: Array,
    condition: Condition,
    weights: Float[Array, " G"],
    numbers: dict[str, Array],
    filters: tuple[bool, bool],
) -> Int[Array, "B F K"]:
    """Draws what is hidden of `missing` and hides the least certain codes of it again: in one
    level, or with hide "all" in all of them."""
    config = model.config
    width = 1 if model.masking.hide == "level" else config.num_codebooks

    def cut(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, level, width, axis=2)

    own, missing, special = cut(codes), cut(missing), cut(jnp.asarray(config.sizes)[None, None])
    hidden = missing & (own == special)
    read = repeat(codes, weights.shape[0])
    logits: Any = LM(config).apply({"params": model.params}, read, condition)
    logits = keep_likely(cut(mix(weights, logits)), numbers, filters)
    drawn = sample_tokens(keys, logits, numbers, (False, False))
    logs = jax.nn.log_softmax(logits, axis=-1)
    certainty = jnp.take_along_axis(logs, drawn[..., None], axis=-1)[..., 0]
    own = jnp.where(hidden, drawn, own)
    rank = _ranking(model.masking, keys, certainty, progress)
    # A span is as certain as its most certain new code (MAGNeT).
    rank = _largest_of_span(jnp.where(hidden, rank, -jnp.inf), model.masking.span)
    # What was drawn in a pass before stays: only new codes can be hidden again.
    rank = jnp.where(hidden, rank, jnp.inf)
    left = jnp.floor(jnp.cos(progress * np.pi / 2) * missing.sum(axis=(1, 2)))
    order = jnp.argsort(rank.reshape(rank.shape[0], -1), axis=1).argsort(axis=1)
    again = (order < left[:, None]).reshape(rank.shape) & hidden
    again = _largest_of_span(again, model.masking.span) & hidden
    own = jnp.where(again, special, own)
    return jax.lax.dynamic_update_slice_in_dim(codes, own, level, axis=2)


def _ranking(
    masking: MaskingConfig, keys: Key, certainty: Float[Array, "B F K"], progress: Array
) -> Float[Array, "B F K"]:
    """How much each new code deserves to stay."""
    frames = certainty.shape[1]
    noise = jax.vmap(
        lambda key: jax.random.gumbel(jax.random.fold_in(key, 1), certainty.shape[1:])
    )(keys)
    rank = certainty + masking.noise * (1 - progress) * noise
    return rank + masking.causal_bias * (1 - jnp.arange(frames) / frames)[None, :, None]


def _largest_of_span(x: Array, span: int) -> Array:
    """The largest value in each block of `span` frames of [B, F, K], at all frames of the block."""
    batch, frames, codebooks = x.shape
    x = jnp.pad(x, ((0, 0), (0, -frames % span), (0, 0)), mode="edge")
    best = x.reshape(batch, -1, span, codebooks).max(axis=2)
    return jnp.repeat(best, span, axis=1)[:, :frames]
