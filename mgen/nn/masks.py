"""What a position may see."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mgen.typing import Array, Bool


def visible(query: Any, key: Any, window: int = 0, sink: int = 0) -> Any:
    """Whether causal attention from position `query` sees position `key`; see
    `mgen.nn.attention.Attention`."""
    seen = key <= query
    return seen & ((query - key < window) | (key < sink)) if window else seen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nearby:
    """A context that is restricted in some examples (Ziv et al. 2024, "MAGNeT").

    Attributes:
      everything: the examples in which a position sees all others.
      context: in the rest, how far it sees either way,
      front: how many of the first ones it sees beside; those see only one another.
    """

    everything: Bool[Array, " B"]
    context: int = dataclasses.field(metadata=dict(static=True))
    front: int = dataclasses.field(metadata=dict(static=True))

    def mask(self, length: int) -> Bool[Array, "B L L"]:
        """What each position sees."""
        query, key = jnp.arange(length)[:, None], jnp.arange(length)[None]
        near = in_context(query, key, self.context, self.front)
        return self.everything[:, None, None] | near[None]


def in_context(query: Any, key: Any, context: int, front: int) -> Any:
    """Whether position `query` sees position `key` in an example of restricted context."""
    return (key < front) | ((query >= front) & (abs(query - key) <= context))
