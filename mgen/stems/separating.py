"""What every way to take a mix apart has in common, whether it draws stems or maps to them."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mgen.errors import UserError
from mgen.stems.windows import Source
from mgen.typing import Array, Float, Int, ndarray

# Share of a window that it has in common with the next one.
FADE = 0.25
# Windows of a mix that run as one batch.
WINDOWS_AT_ONCE = 4

Seeds = Int[Array, " B"] | ndarray | Sequence[int]
# Called with the number of steps that a run (of a window, or a batch of them) has made: 0 to N.
OnStep = Callable[[Any], None]
STATIC = dict(static=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separating(abc.ABC):
    """What takes a mix apart.

    Attributes:
      names: of the stems, in order.
      sample_rate, channels: Hz and C of mix and stems.
      samples: length of the windows, a multiple of `hop`.
    """

    names: tuple[str, ...] = dataclasses.field(metadata=STATIC)
    sample_rate: int = dataclasses.field(metadata=STATIC)
    channels: int = dataclasses.field(metadata=STATIC)
    samples: int = dataclasses.field(metadata=STATIC)
    hop: int = dataclasses.field(metadata=STATIC)

    def separate(
        self, mix: Float[ndarray, "B T C"], *, seeds: Seeds, **settings: Any
    ) -> Float[ndarray, "B S T C"]:
        """Stems of a mix of any length, [B, T, C] or [B, 1, T, C]; see `separate_pieces`."""
        mix = np.asarray(mix, np.float32)
        if mix.ndim == 4 and mix.shape[1] == 1:
            mix = mix[:, 0]
        self.check("mix", mix, (len(seeds), None, self.channels))
        return joined(self.separate_pieces(Source.of(mix), seeds=seeds, **settings))

    @abc.abstractmethod
    def separate_pieces(
        self,
        mix: Source,
        *,
        seeds: Seeds,
        overlap: float = FADE,
        at_once: int = WINDOWS_AT_ONCE,
        on_step: OnStep | None = None,
    ) -> Iterator[Float[ndarray, "B S t C"]]:
        """Consecutive pieces of the stems of a mix; see `windows.crossfaded`.

        Args:
          mix: [B, T, C].
          seeds: one an example: what is made of it does not depend on the others.
          overlap: share of a window that is faded into the next one.
          at_once: windows that run as one batch.
          on_step: told of each step.
        """

    def indices(self, names: Iterable[str]) -> list[int]:
        """Of the stems of these names; `UserError` for one that there is not."""
        names = list(names)
        for name in names:
            if name not in self.names:
                raise UserError(f"stem {name!r}, expected some of {', '.join(self.names)}")
        return [self.names.index(name) for name in names]

    def check(self, what: str, audio: ndarray, shape: tuple[int | None, ...]) -> None:
        """`UserError` for audio of another shape (None: any length above 0) or not finite."""
        fits = len(shape) == audio.ndim and all(
            found == size or (size is None and found) for found, size in zip(audio.shape, shape)
        )
        if not fits:
            expected = ", ".join("T > 0" if size is None else str(size) for size in shape)
            raise UserError(f"{what} of shape {list(audio.shape)}, expected [{expected}]")
        if not np.isfinite(audio).all():
            raise UserError(f"{what}: holds NaN or infinite samples, expected finite audio")


def joined(pieces: Iterable[Float[ndarray, "B S t C"]]) -> Float[ndarray, "B S T C"]:
    """Consecutive pieces as one."""
    return np.concatenate(list(pieces), axis=2)
