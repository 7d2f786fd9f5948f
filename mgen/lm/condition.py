"""What a language model is conditioned on, and how a condition is taken away for guidance."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.lm.config import LMConfig, Sizes
from mgen.typing import Array, Bool, Key


@flax.struct.dataclass
class Condition:
    """Conditions of a batch: a pytree, each part None or () where the model has no such input.

    Attributes:
      attributes: int32 [B, A] categorical fields, 0 unknown.
      vectors, mask: float32 [B, C, W] for cross-attention and bool [B, C], True where they hold
        something.
      front, front_mask: the same of each sequence of vectors before everything else, [B, N_i, W_i].
      prefix: int32 [B, N_i, K_i] codes before the target.
      aligned: int32 [B, F, K_i] codes with a row for each frame of the target.
    """

    attributes: Array | None = None
    vectors: Array | None = None
    mask: Array | None = None
    front: tuple[Array, ...] = ()
    front_mask: tuple[Array, ...] = ()
    prefix: tuple[Array, ...] = ()
    aligned: tuple[Array, ...] = ()


def complete(config: LMConfig, condition: Condition, batch: int, frames: int) -> Condition:
    """The condition with what was left out filled in as unknown or fully visible, as int32, bool
    and float32.

    Raises:
      UserError: an input that the model does not have, or of another shape or range.
    """
    attributes = None
    if config.attribute_sizes or condition.attributes is not None:
        fields = len(config.attribute_sizes)
        attributes = condition.attributes
        if attributes is None:
            attributes = jnp.zeros((batch, fields), jnp.int32)
        check_shape("attributes", attributes, batch, fields)
        check_range("attributes", attributes, config.attribute_sizes)
        attributes = jnp.asarray(attributes, jnp.int32)
    vectors, mask = _vectors(
        "condition", condition.vectors, condition.mask, batch, config.condition_width
    )
    front, front_mask = _front(config, condition, batch)
    return Condition(
        attributes,
        vectors,
        mask,
        front,
        front_mask,
        _codes("prefix", condition.prefix, config.prefix, batch, None),
        _codes("aligned", condition.aligned, config.aligned, batch, frames),
    )


def absent(config: LMConfig, condition: Condition) -> Condition:
    """The condition of the same shape that says nothing, which guidance contrasts with."""

    def none(x: Array | None) -> Array | None:
        return None if x is None else jnp.zeros_like(x)

    return Condition(
        none(condition.attributes),
        none(condition.vectors),
        none(condition.mask),
        tuple(map(jnp.zeros_like, condition.front)),
        tuple(map(jnp.zeros_like, condition.front_mask)),
        tuple(_unknown(x, sizes) for x, sizes in zip(condition.prefix, config.prefix)),
        tuple(_unknown(x, sizes) for x, sizes in zip(condition.aligned, config.aligned)),
    )


def drop(
    config: LMConfig, key: Key, condition: Condition, rate: float, attribute_rate: float
) -> Condition:
    """Takes the whole condition from a share `rate` of the examples, and single attributes from
    the others (so that a user may give some of them only); for training."""
    leaves = jax.tree.leaves(condition)
    if not leaves:
        return condition
    rows_key, fields_key = jax.random.split(key)
    keep = jax.random.bernoulli(rows_key, 1.0 - rate, (leaves[0].shape[0],))
    dropped = choose(keep, condition, absent(config, condition))
    if dropped.attributes is not None:
        fields = jax.random.bernoulli(fields_key, 1.0 - attribute_rate, dropped.attributes.shape)
        attributes = jnp.where(fields, dropped.attributes, 0)
        return dataclasses.replace(dropped, attributes=attributes)
    return dropped


def choose(keep: Bool[Array, " B"], condition: Condition, other: Condition) -> Condition:
    """An example's condition where `keep`, else its other one."""
    return jax.tree.map(
        lambda x, y: jnp.where(keep.reshape(-1, *(1,) * (x.ndim - 1)), x, y), condition, other
    )


def _unknown(codes: Array, sizes: Sizes) -> Array:
    return jnp.broadcast_to(jnp.asarray(sizes, codes.dtype), codes.shape)


def _vectors(
    name: str, vectors: Array | None, mask: Array | None, batch: int, width: int
) -> tuple[Array | None, Array | None]:
    if vectors is None:
        return None, None
    if not width or (vectors.ndim, vectors.shape[0], vectors.shape[-1]) != (3, batch, width):
        raise UserError(f"{name}: shape is {vectors.shape}, expected ({batch}, length, {width})")
    if mask is None:
        mask = jnp.ones(vectors.shape[:2], bool)
    return jnp.asarray(vectors, jnp.float32), jnp.asarray(mask, bool)


def _front(
    config: LMConfig, condition: Condition, batch: int
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    widths, given = config.front, condition.front
    if not given:
        return (), ()
    masks = condition.front_mask or (None,) * len(given)
    if not len(given) == len(masks) == len(widths):
        raise UserError(
            f"front: {len(given)} sequences of vectors and {len(masks)} masks, expected "
            f"{len(widths)}"
        )
    found = [
        _vectors(f"front {i}", x, mask, batch, width)
        for i, (x, mask, width) in enumerate(zip(given, masks, widths))
    ]
    return tuple(x for x, _ in found), tuple(mask for _, mask in found)


def _codes(
    name: str, given: tuple, sizes: tuple[Sizes, ...], batch: int, frames: int | None
) -> tuple[Array, ...]:
    if len(given) != len(sizes):
        raise UserError(f"{name}: {len(given)} sequences of codes, expected {len(sizes)}")
    for i, (codes, own) in enumerate(zip(given, sizes)):
        check_shape(f"{name} {i}", codes, batch, frames, len(own))
        # Its own size is "unknown".
        check_range(f"{name} {i}", codes, tuple(size + 1 for size in own))
    return tuple(jnp.asarray(codes, jnp.int32) for codes in given)


def check_shape(name: str, x: Any, *expected: int | None) -> None:
    """Raises `UserError` unless `x` has this shape; None stands for any length."""
    fits = len(x.shape) == len(expected)
    if not fits or any(n not in (None, size) for n, size in zip(expected, x.shape)):
        text = ", ".join("length" if n is None else str(n) for n in expected)
        raise UserError(f"{name}: shape is {tuple(x.shape)}, expected ({text})")


def check_range(name: str, x: Any, sizes: Sizes) -> None:
    """Raises `UserError` unless 0 <= x < sizes along the last axis; traced values pass."""
    if isinstance(x, jax.core.Tracer) or not x.size:
        return
    values = np.asarray(x)
    if values.min() < 0 or np.any(values >= np.asarray(sizes)):
        raise UserError(f"{name}: a value lies outside 0 .. size - 1, sizes {sizes}")
