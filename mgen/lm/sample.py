"""Generation of codes: prefill, cached steps and sampling in one jitted program."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.lm import decode
from mgen.lm.decode import Condition
from mgen.lm.model import LMConfig
from mgen.typing import Array, Float, Int, Params

SEGMENT = 512  # steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a token is drawn. A change of a number recompiles nothing, unless it turns a filter or
    guidance on or off.

    Attributes:
      temperature: of the softmax; 0 takes the most likely token.
      top_k: only the k most likely tokens may be drawn (and those as likely as the k-th); 0 is off.
      top_p: only the smallest set of most likely tokens with at least this mass; 1 is off.
      guidance: scale s of classifier-free guidance, logits = u + s (c - u); 1 is off (c alone, at
        half the cost).

    Raises:
      UserError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    guidance: float = 3.0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (self.temperature >= 0, "a number >= 0"),
            "top_k": (self.top_k >= 0, "an integer >= 0"),
            "top_p": (0 < self.top_p <= 1, "a number in (0, 1]"),
            "guidance": (np.isfinite(self.guidance), "a finite number"),
        }
        for name, (fine, expected) in ranges.items():
            if not fine:
                raise UserError(f"sampling.{name} is {getattr(self, name)}, expected {expected}")


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

    def generate(
        self,
        *,
        frames: int,
        seeds: Int[Array, " B"],
        prompt: Int[Array, "B P K"] | None = None,
        attributes: Int[Array, "B A"] | None = None,
        condition: Float[Array, "B C W"] | None = None,
        condition_mask: Array | None = None,
        sampling: SamplingConfig | None = None,
    ) -> Int[Array, "B F K"]:
        """Codes of `frames` frames, the prompt's included. Compiled once for each set of shapes.

        An example's codes depend on its own seed, prompt and condition only, not on its neighbours.

        Args:
          seeds: one for each example.
          prompt: codes to continue, P < frames; they come back unchanged at the front.
          attributes: categorical fields, 0 unknown. Guidance contrasts with all unknown.
          condition, condition_mask: vectors for cross-attention. Guidance contrasts with none.
          sampling: defaults to `SamplingConfig()`.

        Raises:
          UserError: shapes or code values that do not fit the model.
        """
        config, sampling = self.config, sampling or SamplingConfig()
        seeds = jnp.asarray(seeds, jnp.int32)
        batch, streams = seeds.shape[0], config.num_codebooks
        if prompt is None:
            prompt = jnp.zeros((batch, 0, streams), jnp.int32)
        _check(config, batch, frames, prompt, attributes, condition)
        if config.attribute_sizes and attributes is None:
            attributes = jnp.zeros((batch, len(config.attribute_sizes)), jnp.int32)
        if condition is not None and condition_mask is None:
            condition_mask = jnp.ones(condition.shape[:2], bool)
        return _generate(
            self,
            jnp.asarray(seeds),
            jnp.asarray(prompt, jnp.int32),
            Condition(attributes, condition, condition_mask),
            {name: jnp.float32(value) for name, value in dataclasses.asdict(sampling).items()},
            frames=frames,
            filters=(sampling.top_k > 0, sampling.top_p < 1),
            # Without a condition there is nothing to contrast.
            guided=sampling.guidance != 1 and (attributes is not None or condition is not None),
        )


def generate(config: LMConfig, params: Params, **arguments: Any) -> Int[Array, "B F K"]:
    """`FrozenLM.generate` on the parameters of `LM`; freeze once instead where it is called
    often."""
    return FrozenLM.from_trained(config, params).generate(**arguments)


def _check(
    config: LMConfig,
    batch: int,
    frames: int,
    prompt: Any,
    attributes: Any,
    condition: Any,
) -> None:
    shape = prompt.shape
    if (shape[0], shape[2]) != (batch, config.num_codebooks) or shape[1] >= frames:
        raise UserError(
            f"prompt: shape is {shape}, expected ({batch}, < {frames}, {config.num_codebooks})"
        )
    if shape[1] and not 0 <= np.min(prompt) <= np.max(prompt) < config.codebook_size:
        raise UserError(f"prompt: a code lies outside 0 .. {config.codebook_size - 1}")
    sizes = np.asarray(config.attribute_sizes)
    if attributes is not None:
        if attributes.shape != (batch, len(sizes)):
            raise UserError(
                f"attributes: shape is {attributes.shape}, expected ({batch}, {len(sizes)})"
            )
        if np.min(attributes, initial=0) < 0 or np.any(np.asarray(attributes) >= sizes):
            raise UserError(f"attributes: a value lies outside the fields' sizes {sizes.tolist()}")
    if condition is not None and (
        not config.condition_width
        or (condition.shape[0], condition.shape[2]) != (batch, config.condition_width)
    ):
        raise UserError(
            f"condition: shape is {condition.shape}, "
            f"expected ({batch}, length, {config.condition_width})"
        )


@functools.partial(jax.jit, static_argnames=("frames", "filters", "guided"))
def _generate(
    model: FrozenLM,
    seeds: Int[Array, " B"],
    prompt: Int[Array, "B P K"],
    condition: Condition,
    sampling: dict[str, Array],
    *,
    frames: int,
    filters: tuple[bool, bool],
    guided: bool,
) -> Int[Array, "B F K"]:
    config, weights = model.config, model.weights
    layout = config.make_layout()
    table = layout.frames_at(frames)  # [L, K]
    free = table >= prompt.shape[1]
    first = int(np.argmax(free.any(axis=1)))
    steps, batch = len(table), seeds.shape[0]
    padded = jnp.pad(prompt, ((0, 0), (0, frames - prompt.shape[1]), (0, 0)))
    sequence = layout.encode(padded)  # zeros where free
    if guided:
        condition = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), condition)
    inputs = layout.shift(sequence)

    def double(x: Array) -> Array:
        return jnp.concatenate([x, x]) if guided else x

    # Attention reads the whole cache, so a long generation runs in segments, each with a longer
    # one.
    ends = [*range(SEGMENT, steps, SEGMENT), steps]
    ends = [end for end in ends if end > first]
    cache = decode.init_cache(config, weights, condition, batch * (1 + guided), ends[0])
    if first:
        _, cache = decode.forward(config, weights, cache, condition, double(inputs[:, :first]), 0)

    def body(index: Array, carry: tuple[Array, Array, decode.Cache]) -> Any:
        sequence, column, cache = carry
        logits, cache = decode.step(config, weights, cache, condition, double(column), index)
        if guided:
            conditional, unconditional = jnp.split(logits, 2)
            logits = unconditional + sampling["guidance"] * (conditional - unconditional)
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), index))(seeds)
        drawn = sample_tokens(keys, logits, sampling, filters)
        column = jnp.where(jnp.asarray(free)[index][None], drawn, sequence[:, index])
        sequence = jax.lax.dynamic_update_slice(sequence, column[:, None], (0, index, 0))
        return sequence, column, cache

    carry = (sequence, inputs[:, first], cache)
    for start, end in zip([first, *ends], ends):
        carry = (*carry[:2], decode.grow_cache(carry[2], end))
        carry = jax.lax.fori_loop(start, end, body, carry)
    return layout.decode(carry[0], frames)


def sample_tokens(
    keys: Array,
    logits: Float[Array, "B K V"],
    sampling: dict[str, Array],
    filters: tuple[bool, bool],
) -> Int[Array, "B K"]:
    """One token a stream: temperature, then top-k, then top-p, then a draw by the Gumbel-max
    rule."""
    temperature = sampling["temperature"]
    keep_k, keep_p = filters
    if keep_k:
        logits = top_k_filter(logits, sampling["top_k"])
    if keep_p:
        logits = top_p_filter(logits, sampling["top_p"], temperature)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    # argmax(l / t + g) = argmax(l + t g), which is the greedy choice at t = 0.
    return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)


def top_k_filter(logits: Float[Array, "*B V"], k: Array) -> Float[Array, "*B V"]:
    """-inf for every logit below the k-th largest."""
    order = _ordered(logits)
    # The largest threshold that at least k logits reach is the k-th largest logit.
    threshold = _largest(lambda t: jnp.sum(order >= t[..., None], axis=-1) >= k, logits.shape[:-1])
    return jnp.where(order >= threshold[..., None], logits, -jnp.inf)


def top_p_filter(
    logits: Float[Array, "*B V"], p: Array, temperature: Array
) -> Float[Array, "*B V"]:
    """-inf outside the smallest set of most likely tokens whose probability is at least p."""
    order = _ordered(logits)
    mass = jax.nn.softmax(logits / jnp.maximum(temperature, 1e-4), axis=-1)
    # Rounding may leave the whole mass short of p: the largest token must always stay.
    p = jnp.minimum(p * mass.sum(axis=-1), mass.sum(axis=-1) * (1 - 1e-6))

    def enough(t: Array) -> Array:
        return jnp.sum(jnp.where(order >= t[..., None], mass, 0.0), axis=-1) >= p

    return jnp.where(order >= _largest(enough, logits.shape[:-1])[..., None], logits, -jnp.inf)


def _ordered(x: Float[Array, "*B V"]) -> Array:
    """uint32 in the order of the floats: flips the sign bit of positives and all bits of
    negatives."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


def _largest(holds: Any, shape: tuple[int, ...]) -> Array:
    """The largest uint32 for which `holds`, true up to some point and false after it, by its bits
    from the top.

    Exact, and free of `lax.top_k` (which exported programs cannot carry) and of a sort of the whole
    vocabulary.
    """

    def bit(i: Array, t: Array) -> Array:
        candidate = t | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, t)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros(shape, jnp.uint32))
