"""What a position may see."""

from typing import Any


def visible(query: Any, key: Any, window: int = 0, sink: int = 0) -> Any:
    """Whether causal attention from position `query` sees position `key`; see
    `mgen.nn.attention.Attention`."""
    seen = key <= query
    return seen & ((query - key < window) | (key < sink)) if window else seen
