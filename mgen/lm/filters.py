"""How a token is drawn from logits: temperature, top-k, top-p, then the Gumbel-max rule.

Nothing here uses `lax.top_k` (which exported programs cannot carry) or sorts the vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.nn.extrema import argmax
from mgen.typing import Array, Float, Int


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
            "guidance": (abs(self.guidance) < np.inf, "a finite number"),
        }
        for name, (fine, expected) in ranges.items():
            if not isinstance(fine, jax.core.Tracer) and not fine:
                raise UserError(f"sampling.{name} is {getattr(self, name)}, expected {expected}")

    @property
    def filters(self) -> tuple[bool, bool]:
        """Whether top-k and top-p are on."""
        return self.top_k > 0, self.top_p < 1

    def numbers(self) -> dict[str, Array]:
        """The fields as traced scalars."""
        return {name: jnp.float32(value) for name, value in dataclasses.asdict(self).items()}


def sample_tokens(
    keys: Array,
    logits: Float[Array, "B K V"],
    sampling: dict[str, Array],
    filters: tuple[bool, bool],
) -> Int[Array, "B K"]:
    """One token a stream: temperature, then top-k, then top-p, then a draw by the Gumbel-max
    rule."""
    logits = keep_likely(logits, sampling, filters)
    temperature = sampling["temperature"]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    # argmax(l / t + g) = argmax(l + t g), which is the greedy choice at t = 0.
    return argmax(logits + temperature * noise)


def keep_likely(
    logits: Float[Array, "*B V"], sampling: dict[str, Array], filters: tuple[bool, bool]
) -> Float[Array, "*B V"]:
    """-inf for what top-k, then top-p leave out; `filters` says which of them are on."""
    keep_k, keep_p = filters
    if keep_k:
        logits = top_k_filter(logits, sampling["top_k"])
    if keep_p:
        logits = top_p_filter(logits, sampling["top_p"], sampling["temperature"])
    return logits


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
