"""What a diffusion Transformer over tracks is told, and how it is taken away for guidance."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.stems.config import DiTConfig
from mgen.typing import Array, Key

# Channels of a frame: beat and downbeat; pitch classes from C.
CHANNELS = {"beats": 2, "melody": 12}
# The inputs with a row for each frame.
FRAMES = ("chords", "beats", "beats_mask", "melody", "melody_mask")
# The fields that say whether something is known of text, chords, beats and melody.
KNOWN = ("text_mask", "chords", "beats_mask", "melody_mask")


@flax.struct.dataclass
class StemCondition:
    """Conditions of a batch: a pytree; None is unknown, and of `categories` and `present` the first
    S categories and all tracks.

    Attributes:
      categories: int32 [B, S], what each track is.
      present: bool [B, S], False where a song has no such track.
      text, text_mask: float32 [B, L, W] vectors for cross-attention and bool [B, L], True where
        they hold something.
      chords: int32 [B, F], the chord of each frame; `DiTConfig.chords` is unknown.
      beats, beats_mask: float32 [B, F, 2], beats and downbeats, and bool [B, F], True where they
        are known.
      melody, melody_mask: the same of pitch classes [B, F, 12].
    """

    categories: Any = None
    present: Any = None
    text: Any = None
    text_mask: Any = None
    chords: Any = None
    beats: Any = None
    beats_mask: Any = None
    melody: Any = None
    melody_mask: Any = None


def complete(
    config: DiTConfig, condition: StemCondition, batch: int, stems: int, frames: int
) -> StemCondition:
    """The condition with everything that the model reads, unknown where it was left out.

    Raises:
      UserError: an input that the model does not have, or of another shape or range.
    """
    inputs = _inputs(config, condition, batch, stems, frames)
    values = {}
    for field in dataclasses.fields(StemCondition):
        name, value = field.name, getattr(condition, field.name)
        if name not in inputs:
            if value is not None:
                raise UserError(f"condition.{name}: this model has no such input")
            continue
        shape, dtype, unknown = inputs[name]
        if value is None:
            value = jnp.broadcast_to(jnp.asarray(unknown, dtype), shape)
        if value.shape != shape:
            raise UserError(f"condition.{name}: shape is {value.shape}, expected {shape}")
        values[name] = jnp.asarray(value, dtype)
    _check_range("categories", values["categories"], config.categories)
    if config.chords:
        _check_range("chords", values["chords"], config.chords + 1)
    return StemCondition(**values)


def absent(config: DiTConfig, condition: StemCondition) -> StemCondition:
    """The complete condition that knows of no more than the tracks, which guidance contrasts
    with."""
    nothing: dict[str, Any] = dict.fromkeys(KNOWN, False) | {"chords": config.chords}
    given = {name: getattr(condition, name) for name in KNOWN}
    return dataclasses.replace(
        condition,
        **{name: jnp.full_like(x, nothing[name]) for name, x in given.items() if x is not None},
    )


def window(config: DiTConfig, condition: StemCondition, begin: int, frames: int) -> StemCondition:
    """What a condition of a whole song says of `frames` from `begin` on; after its end nothing is
    known."""
    values = {}
    for name in FRAMES:
        if (value := getattr(condition, name)) is not None:
            part = jnp.asarray(value)[:, begin : begin + frames]
            lacking = [(0, 0), (0, frames - part.shape[1]), *[(0, 0)] * (part.ndim - 2)]
            unknown = config.chords if name == "chords" else 0
            values[name] = jnp.pad(part, lacking, constant_values=unknown)
    return dataclasses.replace(condition, **values)


def drop(
    config: DiTConfig, keys: Key, condition: StemCondition, rate: float, input_rate: float
) -> StemCondition:
    """A complete condition of which a share `rate` of the examples lose everything, and the others
    each of text, chords, beats and melody at `input_rate` (so that a user may give some of them
    only); for training.

    Args:
      keys: [B], one an example.
    """

    def draw(key: Key) -> Array:
        whole_key, input_key = jax.random.split(key)
        whole = jax.random.bernoulli(whole_key, rate)
        return whole | jax.random.bernoulli(input_key, input_rate, (len(KNOWN),))

    lost, nothing = jax.vmap(draw)(keys), absent(config, condition)
    fields = {}
    for number, name in enumerate(KNOWN):
        if (value := getattr(condition, name)) is not None:
            fields[name] = jnp.where(lost[:, number, None], getattr(nothing, name), value)
    return dataclasses.replace(condition, **fields)


def frame_inputs(config: DiTConfig, batch: int, frames: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of those of `FRAMES` that the model has."""
    found = _inputs(config, StemCondition(), batch, 1, frames)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, (shape, dtype, _) in found.items()
        if name in FRAMES
    }


def _inputs(
    config: DiTConfig, condition: StemCondition, batch: int, stems: int, frames: int
) -> dict[str, tuple[tuple[int, ...], Any, Any]]:
    """Name -> shape, dtype and what stands for unknown, of the inputs that the model has."""
    tracks, times = (batch, stems), (batch, frames)
    found: dict[str, tuple[tuple[int, ...], Any, Any]] = {
        "categories": (tracks, jnp.int32, np.arange(stems)[None]),
        "present": (tracks, bool, True),
    }
    if config.text_width:
        length = 1 if condition.text is None else condition.text.shape[1]
        shape = batch, length, config.text_width
        found["text"] = shape, jnp.float32, np.zeros((1, 1, 1))
        found["text_mask"] = shape[:2], bool, condition.text is not None
    if config.chords:
        found["chords"] = times, jnp.int32, config.chords
    for name, channels in CHANNELS.items():
        if getattr(config, name):
            found[name] = (*times, channels), jnp.float32, np.zeros((1, 1, 1))
            found[f"{name}_mask"] = times, bool, getattr(condition, name) is not None
    return found


def _check_range(name: str, x: Array, size: int) -> None:
    """Raises `UserError` unless 0 <= x < size; traced values pass."""
    if not isinstance(x, jax.core.Tracer) and x.size and not (x.min() >= 0 and x.max() < size):
        raise UserError(
            f"condition.{name}: values from {x.min()} to {x.max()}, expected 0 to {size - 1}"
        )
