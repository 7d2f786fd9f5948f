"""Stems of any length in bounded memory: windows that overlap, and noise that they share.

Noise is a function of the position in the song, so that where two windows overlap they start alike
and stay alike as far as their context is. Windows follow one another in two ways:

    crossfaded   each by itself, faded into the next one (separation: the mix tells what is where)
    continued    what was made is given to the next one (generation)
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.diffusion.trajectory import Noise, draw_noise
from mgen.errors import UserError
from mgen.typing import Array, Bool, Float, Int, Key, ndarray


@dataclasses.dataclass(frozen=True)
class Source:
    """A signal that is read in parts, so that hours of it need not fit into memory.

    Attributes:
      samples: its length.
      read: (begin, end) -> samples begin to end of it.
    """

    samples: int
    read: Callable[[int, int], Any]

    @classmethod
    def of(cls, signal: Float[ndarray, "... T C"]) -> "Source":
        """What lies in memory."""
        return cls(signal.shape[-2], lambda begin, end: signal[..., begin:end, :])


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of `samples` that begin every `stride`, both multiples of `hop`.

    At most half of a window overlaps the next one, so that no more than two meet anywhere.
    """

    samples: int
    stride: int
    hop: int

    @classmethod
    def overlapping(cls, samples: int, hop: int, share: float) -> "Windows":
        """Windows that overlap by a share of their length, rounded down to a multiple of `hop`.

        Raises:
          UserError: a share that is not from 0 to 0.5.
        """
        if not 0.0 <= share <= 0.5:
            raise UserError(f"overlap is {share} of a window, expected 0 to 0.5")
        return cls(samples, samples - int(share * samples) // hop * hop, hop)

    @property
    def overlap(self) -> int:
        return self.samples - self.stride

    def count(self, samples: int) -> int:
        """Windows that cover a signal; at least one."""
        return 1 + max(0, -(-(samples - self.samples) // self.stride))

    def before(self, sample: int, hole: int) -> int:
        """Where a window begins whose work begins at `sample`: an overlap earlier, or with a `hole`
        of so many samples in its middle, as near as a multiple of `hop` comes."""
        last = sample // self.hop * self.hop
        if not hole:
            return max(0, sample - self.overlap) // self.hop * self.hop
        begin = max(0, sample - (self.samples - hole) // 2) // self.hop * self.hop
        # The rounding must not leave the end of the hole to a window of its own.
        whole = -(-(sample + hole - self.samples) // self.hop) * self.hop
        return min(max(begin, whole), last)

    def rise(self) -> Float[ndarray, " V"]:
        """Weights of a window over its overlap with the one before it. The fade takes the middle
        half: at its very edge a window has seen nothing of one side."""
        quarter = self.overlap / 4
        position = np.arange(self.overlap) + 0.5
        return np.clip((position - quarter) / (2 * quarter), 0.0, 1.0).astype(np.float32)


def positional_noise(keys: Key, first: Int[Array, " B"], shape: tuple[int, ...], hop: int) -> Noise:
    """Standard normal draws [B, S, T, C] by position: block b of `hop` samples of a song draws from
    fold_in(fold_in(fold_in(key, b), i), j), in whatever window it lies.

    Args:
      keys: [B], one a song.
      first: number of the block that each window begins with.
      shape: B, S, T and C; T is a multiple of `hop`.
    """
    batch, stems, length, channels = shape
    numbers = first[:, None] + jnp.arange(length // hop)[None]
    blocks = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))(keys, numbers).ravel()
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))

    def noise(i: Array, j: Array | int) -> Array:
        drawn = draw_noise(fold(fold(blocks, i), j), (stems, hop, channels))
        drawn = drawn.reshape(batch, length // hop, stems, hop, channels)
        return drawn.swapaxes(1, 2).reshape(shape)

    return noise


def crossfaded(
    run: Callable[[Float[ndarray, "B N T C"], ndarray], Float[ndarray, "B N S T C"]],
    mix: Source,
    windows: Windows,
    at_once: int,
) -> Iterator[Float[ndarray, "B S t C"]]:
    """Consecutive stems of a mix [B, T, C], from windows by themselves.

    Args:
      run: stems of N windows of the mix and the samples [N] where these begin; N is always the
        same.
      mix: the last window is filled up with zeros.
      at_once: most windows that run as one batch.
    """

    def window(begin: int) -> ndarray:
        return _longer(mix.read(begin, min(begin + windows.samples, mix.samples)), windows.samples)

    count, done = windows.count(mix.samples), 0
    at_once = min(at_once, count)
    rise, held = windows.rise()[:, None], None
    for first in range(0, count, at_once):
        begins = windows.stride * np.arange(first, first + at_once)
        real = min(at_once, count - first)
        parts = [window(begin) for begin in begins[:real].tolist()]
        # Windows of silence make up the last batch, so that all of them are one program.
        parts += [np.zeros_like(parts[0])] * (at_once - real)
        made = run(np.stack(parts, axis=1), begins)
        for own in range(real):
            piece, after = np.split(made[:, own], [windows.stride], axis=2)
            if held is not None:
                head, rest = np.split(piece, [windows.overlap], axis=2)
                piece = np.concatenate([held + rise * (head - held), rest], axis=2)
            held = after
            yield piece[:, :, : mix.samples - done]
            done += windows.stride
    if held is not None and done < mix.samples:
        yield held[:, :, : mix.samples - done]


def continued(
    run: Callable[[ndarray, ndarray, int], Float[ndarray, "B S T C"]],
    known: Source,
    windows: Windows,
) -> Iterator[Float[ndarray, "B S t C"]]:
    """Consecutive stems, what is not known of them from one window after the other.

    Where something is missing a window begins, an overlap earlier, or so that it has the hole in
    its middle where that leaves a quarter of it on either side; what was made before is given in
    it. What is known everywhere needs no window.

    Args:
      run: (stems [B, S, T, C], True [B, S, T] where they are known, sample where the window
        begins) -> stems.
      known: reads stems [B, S, n, C] and True [B, S, n] where they are known.
    """
    done, held = 0, None
    while done < known.samples:
        end = min(done + windows.samples, known.samples)
        stems, mask = known.read(done, end)
        held = stems[:, :, :0] if held is None else held
        missing = ~mask.all(axis=(0, 1))
        if given := _run(~missing):
            piece = stems[:, :, :given]
        else:
            hole = _run(missing)
            ends = hole < len(missing) and 2 * hole <= windows.samples
            begin = windows.before(done, hole if ends else 0)
            before = held[:, :, held.shape[2] - (done - begin) :]
            window = _continuation(before, stems, mask, windows.samples)
            piece = run(*window, begin)[:, :, done - begin : end - begin]
        yield piece
        done += piece.shape[2]
        held = np.concatenate([held, piece], axis=2)[:, :, -windows.samples :]


def _run(x: Bool[ndarray, " n"]) -> int:
    """Length of the True beginning."""
    return len(x) if x.all() else int(x.argmin())


def _continuation(
    before: Float[ndarray, "B S p C"],
    stems: Float[ndarray, "B S n C"],
    mask: Bool[ndarray, "B S n"],
    samples: int,
) -> tuple[Float[ndarray, "B S T C"], Bool[ndarray, "B S T"]]:
    """A window of `samples`: what was made, then `stems`, past whose end stays known or missing
    what is so at the end."""
    stems = np.concatenate([before, stems], axis=2)[:, :, :samples]
    mask = np.concatenate([np.ones(before.shape[:3], bool), mask], axis=2)[:, :, :samples]
    mask = np.pad(mask, ((0, 0), (0, 0), (0, samples - mask.shape[2])), mode="edge")
    return _longer(stems, samples), mask


def _longer(part: Float[ndarray, "... n C"], samples: int) -> Float[ndarray, "... T C"]:
    """With zeros behind it."""
    padding = [(0, 0)] * (part.ndim - 2) + [(0, samples - part.shape[-2]), (0, 0)]
    return np.pad(part, padding)
