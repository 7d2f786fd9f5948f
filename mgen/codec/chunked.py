"""Long audio in bounded memory: windows that overlap by the receptive field, an LSTM's state
carried from block to block.

A codec is split into runs of layers with a finite receptive field and, between them, its LSTM. Each
part is a generator that takes blocks [B, t, C] of any length and yields blocks as soon as their
context is known, so that a file of any length passes through in constant memory, with one compiled
shape a part (and one more for the end where the audio is no multiple of the hop).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from mgen.typing import ndarray

Blocks = Iterable[ndarray]


@dataclasses.dataclass(frozen=True)
class Run:
    """Layers with a finite receptive field, as a function of windows.

    Attributes:
      apply: [B, n in_unit, C] -> [B, n out_unit, E], n frames.
      left, right: frames of context.
      in_unit, out_unit: input and output steps a frame.
      frames: length of the windows, more than left + right.
    """

    apply: Callable[[ndarray], Any]
    left: int
    right: int
    in_unit: int
    out_unit: int
    frames: int

    def __call__(self, blocks: Blocks) -> Iterator[ndarray]:
        """Yields the output of every frame once, in order; outputs equal those of one pass over
        everything.
        """
        held: ndarray | None = None  # What is kept of the input, from frame `start` on.
        start = done = 0
        for block in blocks:
            held = block if held is None else np.concatenate([held, block], axis=1)
            # Strictly more than a window: the end of the signal belongs to the last one.
            while held.shape[1] > (window := max(done - self.left, 0) - start + self.frames) * (
                self.in_unit
            ):
                begin = window - self.frames
                last = start + window - self.right
                yield self._outputs(held, begin, window, done - start - begin, last - done)
                done = last
                keep = min(done - self.left, start + held.shape[1] // self.in_unit - self.frames)
                keep = max(keep, start)
                held, start = held[:, (keep - start) * self.in_unit :], keep
        if held is not None:
            total = -(-held.shape[1] // self.in_unit)
            begin = max(0, total - self.frames)
            yield self._outputs(held, begin, total, done - start - begin, start + total - done)

    def _outputs(self, held: ndarray, begin: int, end: int, skip: int, count: int) -> ndarray:
        """Frames `begin`..`end` of `held` through the layers, of which `count` outputs after the
        first `skip`.
        """
        outputs = np.asarray(self.apply(held[:, begin * self.in_unit : end * self.in_unit]))
        return outputs[:, skip * self.out_unit : (skip + count) * self.out_unit]


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """A layer with a state, run block by block.

    Attributes:
      init_state: batch -> state. step: (state, [B, frames, C]) -> (state, [B, frames, C]).
      frames: length of a block; the last one is filled up with zeros.
    """

    init_state: Callable[[int], Any]
    step: Callable[[Any, ndarray], tuple[Any, Any]]
    frames: int

    def __call__(self, blocks: Blocks) -> Iterator[ndarray]:
        state: Any = None
        for block in rechunk(blocks, self.frames):
            if state is None:
                state = self.init_state(block.shape[0])
            count = block.shape[1]
            padded = np.pad(block, ((0, 0), (0, self.frames - count), (0, 0)))
            state, outputs = self.step(state, padded)
            yield np.asarray(outputs)[:, :count]


def rechunk(blocks: Blocks, length: int) -> Iterator[ndarray]:
    """Blocks of exactly `length` steps, the last one of what is left."""
    held: list[ndarray] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += block.shape[1]
        if count < length:
            continue
        joined = np.concatenate(held, axis=1)
        whole = count // length * length
        for begin in range(0, whole, length):
            yield joined[:, begin : begin + length]
        held, count = [joined[:, whole:]], count - whole
    if count:
        yield np.concatenate(held, axis=1)


def align(blocks: Blocks, unit: int) -> Iterator[ndarray]:
    """Passes blocks on and adds zeros at the end up to a multiple of `unit` steps."""
    count, last = 0, None
    for block in blocks:
        count, last = count + block.shape[1], block
        yield block
    if last is not None and count % unit:
        yield np.zeros((last.shape[0], -count % unit, last.shape[2]), last.dtype)


def overlap_add(segments: ndarray, stride: int) -> ndarray:
    """[B, N, T, C] segments at multiples of `stride` -> [B, (N - 1) stride + T, C], cross-faded
    with triangles (EnCodec).
    """
    batch, count, length, channels = segments.shape
    weight = 0.5 - np.abs(np.linspace(0, 1, length + 2, dtype=np.float32)[1:-1] - 0.5)
    total = np.zeros((batch, (count - 1) * stride + length, channels), np.float32)
    weights = np.zeros((total.shape[1], 1), np.float32)
    for i in range(count):
        here = slice(i * stride, i * stride + length)
        total[:, here] += weight[:, None] * segments[:, i]
        weights[here] += weight[:, None]
    return total / weights
