"""Token layouts: in which step of the sequence each code is written.

A layout is data: an integer array `schedule [F, K]`, the step of code (frame f, codebook k). The
sequence has K streams, one a codebook; a stream with no code at a step holds the special token
(index = codebook size). Everything else (the sequence, its inverse, the loss mask, which positions
a prompt fixes, the number of steps) follows from the schedule, so a new pattern is one more entry
of `SCHEDULES`. Patterns: Copet et al. 2023 (MusicGen), section 2.2.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.typing import Array, Int

Delays = tuple[int, ...]


def _grid(frames: int, codebooks: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(frames)[:, None], np.arange(codebooks)[None, :]


def _parallel(frames: int, codebooks: int, delays: Delays) -> np.ndarray:
    f, k = _grid(frames, codebooks)
    return f + 0 * k


def _delay(frames: int, codebooks: int, delays: Delays) -> np.ndarray:
    f, _ = _grid(frames, codebooks)
    return f + np.asarray(delays or range(codebooks))[None, :]


def _flatten(frames: int, codebooks: int, delays: Delays) -> np.ndarray:
    f, k = _grid(frames, codebooks)
    return f * codebooks + k


def _partial_flatten(frames: int, codebooks: int, delays: Delays) -> np.ndarray:
    f, k = _grid(frames, codebooks)
    return (f if codebooks == 1 else 2 * f) + (k > 0)


def _coarse_first(frames: int, codebooks: int, delays: Delays) -> np.ndarray:
    f, k = _grid(frames, codebooks)
    return f + frames * (k > 0)


SCHEDULES: dict[str, Callable[[int, int, Delays], np.ndarray]] = {
    "parallel": _parallel,
    "delay": _delay,
    "flatten": _flatten,
    "partial_flatten": _partial_flatten,
    "coarse_first": _coarse_first,
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """An invertible map between codes [B, F, K] and the sequence [B, L, K] that a language model
    predicts.

    Attributes:
      name: a key of `SCHEDULES`.
      codebooks: K.
      special: token of a stream without a code at a step, and of the first input; the codebook
        size.
      delays: steps by which each codebook is late; () stands for 0 .. K-1. Read by "delay" only.

    Raises:
      UserError: unknown name, or delays that do not fit.
    """

    name: str
    codebooks: int
    special: int
    delays: Delays = ()

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise UserError(f"layout is {self.name!r}, expected one of {sorted(SCHEDULES)}")
        if self.delays and self.name != "delay":
            raise UserError(f"delays is {self.delays}, expected () for layout {self.name!r}")
        if self.delays and (len(self.delays) != self.codebooks or min(self.delays) != 0):
            raise UserError(
                f"delays is {self.delays}, expected {self.codebooks} numbers, the smallest 0"
            )

    def schedule(self, frames: int) -> np.ndarray:
        """int32 [F, K]: the step at which each code is predicted."""
        return SCHEDULES[self.name](frames, self.codebooks, self.delays).astype(np.int32)

    def steps(self, frames: int) -> int:
        """L, the number of autoregressive steps for `frames` frames."""
        return int(self.schedule(frames).max(initial=-1)) + 1

    def frames_at(self, frames: int) -> np.ndarray:
        """int32 [L, K]: the frame whose code each stream holds at each step, -1 for none."""
        table = np.full((self.steps(frames), self.codebooks), -1, np.int32)
        f, k = np.indices((frames, self.codebooks))
        table[self.schedule(frames), k] = f
        return table

    def mask(self, frames: int) -> np.ndarray:
        """bool [L, K]: True where a stream holds a code; the loss counts these."""
        return self.frames_at(frames) >= 0

    def encode(self, codes: Int[Array, "B F K"]) -> Int[Array, "B L K"]:
        """The sequence of `codes`, special tokens where there is none."""
        table = self.frames_at(codes.shape[1])
        placed = codes[:, np.maximum(table, 0), np.arange(self.codebooks)]
        return jnp.where(table[None] >= 0, placed, self.special)

    def decode(self, sequence: Int[Array, "B L K"], frames: int) -> Int[Array, "B F K"]:
        """Inverse of `encode`."""
        return sequence[:, self.schedule(frames), np.arange(self.codebooks)]

    def shift(self, sequence: Int[Array, "B L K"]) -> Int[Array, "B L K"]:
        """What the model reads to predict `sequence`: a column of special tokens, then all but the
        last column."""
        start = jnp.full_like(sequence[:, :1], self.special)
        return jnp.concatenate([start, sequence[:, :-1]], axis=1)
