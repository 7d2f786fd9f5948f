"""Token layouts: in which step of the sequence each code is written.

A layout is data: an integer array `schedule [F, K]`, the step of code (frame f, codebook k).
Everything else (the sequence, its inverse, the number of steps, which steps a prompt fixes) follows
from it, so a new pattern is one more entry of `SCHEDULES`. A step has K slots, one a codebook, and
a slot without a code holds its codebook's special token (index = size of the codebook); where no
step holds two codes there is one slot, and the table `slots` says whose code it shows.

Patterns: Copet et al. 2023 (MusicGen), section 2.2. Codes of several streams or tracks in turn
(MusicRL's semantic and acoustic frames, YuE's two tracks, stereo) are "flatten" or "delay" over
codebooks that lie side by side, see `mgen.lm.streams`; a depth decoder (RQ-Transformer, Moshi) is
"parallel" in time with a second model over the codebooks of a frame, see `mgen.lm.depth`.
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
    """An invertible map between codes [B, F, K] and the sequence [B, L, S] that a language model
    predicts.

    Attributes:
      name: a key of `SCHEDULES`.
      sizes: of the K codebooks; a codebook's special token is its size.
      delays: steps by which each codebook is late; () stands for 0 .. K-1. Read by "delay" only.

    Raises:
      UserError: unknown name, or delays that do not fit.
    """

    name: str
    sizes: tuple[int, ...]
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

    @property
    def codebooks(self) -> int:
        """K."""
        return len(self.sizes)

    @property
    def width(self) -> int:
        """S, slots a step: 1 where no step holds two codes, else K."""
        return 1 if self.name == "flatten" else self.codebooks

    def schedule(self, frames: int) -> np.ndarray:
        """int32 [F, K]: the step at which each code is predicted."""
        return SCHEDULES[self.name](frames, self.codebooks, self.delays).astype(np.int32)

    def steps(self, frames: int) -> int:
        """L, the number of autoregressive steps for `frames` frames."""
        return int(self.schedule(frames).max(initial=-1)) + 1

    def slots(self, frames: int) -> np.ndarray:
        """int32 [L, S]: the codebook that each slot shows."""
        steps = self.steps(frames)
        if self.width > 1:
            return np.tile(np.arange(self.codebooks, dtype=np.int32), (steps, 1))
        table = np.zeros((steps, 1), np.int32)
        table[self.schedule(frames), 0] = np.arange(self.codebooks)[None]
        return table

    def frames_at(self, frames: int) -> np.ndarray:
        """int32 [L, S]: the frame whose code each slot holds, -1 for none."""
        table = np.full((self.steps(frames), self.width), -1, np.int32)
        f, k = np.indices((frames, self.codebooks))
        table[self.schedule(frames), k if self.width > 1 else 0] = f
        return table

    def newest(self, frames: int) -> np.ndarray:
        """int32 [L]: the last frame of which a step, or in one pass over the frames an earlier one,
        holds a code."""
        held = self.frames_at(frames).max(axis=1)
        return held if self.name == "coarse_first" else np.maximum.accumulate(held)

    def encode(self, codes: Int[Array, "B F K"]) -> Int[Array, "B L S"]:
        """The sequence of `codes`, special tokens where there is none."""
        frames = codes.shape[1]
        table, slots = self.frames_at(frames), self.slots(frames)
        placed = codes[:, np.maximum(table, 0), slots]
        return jnp.where(table[None] >= 0, placed, np.asarray(self.sizes)[slots][None])

    def decode(self, sequence: Int[Array, "B L S"], frames: int) -> Int[Array, "B F K"]:
        """Inverse of `encode`."""
        return sequence[:, self.schedule(frames), np.arange(self.codebooks) % self.width]

    def shift(self, sequence: Int[Array, "B L S"]) -> Int[Array, "B L S"]:
        """What the model reads to predict `sequence`: a column of special tokens (`start`), then
        all but the last column. Its slots are `shifted_slots`."""
        start = jnp.broadcast_to(self.start()[None, None], sequence[:, :1].shape)
        return jnp.concatenate([start, sequence[:, :-1]], axis=1)

    def start(self) -> np.ndarray:
        """int32 [S]: the first input."""
        return np.asarray(self.sizes[: self.width], np.int32)

    def shifted_slots(self, frames: int) -> np.ndarray:
        """int32 [L, S]: the codebook whose token each slot of `shift`'s columns holds."""
        slots = self.slots(frames)
        return np.concatenate([slots[:1], slots[:-1]])

    def frames_done(self, frames: int, steps: int) -> int:
        """How many leading frames are whole after the first `steps` steps."""
        late = self.schedule(frames).max(axis=1) >= steps
        return int(np.argmax(late)) if late.any() else frames
