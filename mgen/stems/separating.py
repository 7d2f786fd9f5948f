"""What every way to take a mix apart has in common, whether it draws stems or maps to them."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.stems.model import StemsConfig
from mgen.stems.windows import Source, Windows, crossfaded
from mgen.typing import Array, Float, Int, Key, ndarray

# Share of a window that it has in common with the next one.
FADE = 0.25

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
      windows_at_once: windows of a mix that run as one batch.
    """

    windows_at_once: ClassVar[int] = 4

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

    def separate_pieces(
        self,
        mix: Source,
        *,
        seeds: Seeds,
        overlap: float = FADE,
        at_once: int = 0,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Iterator[Float[ndarray, "B S t C"]]:
        """Consecutive pieces of the stems of a mix; see `windows.crossfaded`.

        Args:
          mix: [B, T, C].
          seeds: one an example: what is made of it does not depend on the others.
          overlap: share of a window that is faded into the next one.
          at_once: windows that run as one batch; 0 is `windows_at_once`.
          on_step: told of each step.
          settings: of `separate_windows`.

        Raises `UserError` where the stems come out NaN or infinite.
        """
        keys = keys_of(seeds)

        def run(mixes: ndarray, begins: ndarray) -> ndarray:
            batch, count, length, channels = mixes.shape
            made = self.separate_windows(
                mixes.reshape(-1, 1, length, channels),
                keys[np.repeat(np.arange(batch), count)],
                np.tile(begins // self.hop, batch),
                on_step=on_step,
                **settings,
            )
            return finite(made).reshape(batch, count, -1, length, channels)

        windows = Windows.overlapping(self.samples, self.hop, overlap)
        return crossfaded(run, mix, windows, at_once or self.windows_at_once)

    @abc.abstractmethod
    def separate_windows(
        self,
        mix: Float[ndarray, "N 1 T C"],
        keys: Key,
        first: Int[ndarray, " N"],
        *,
        on_step: OnStep | None = None,
    ) -> Float[Array, "N S T C"]:
        """Stems of windows of `samples`.

        Args:
          keys: [N], those of the songs that the windows are of.
          first: number of the block of `hop` samples in its song that each window begins with.
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


def layout(config: StemsConfig) -> dict[str, Any]:
    """The fields of `Separating`."""
    names = ("names", "sample_rate", "channels", "samples", "hop")
    return {name: getattr(config, name) for name in names}


def keys_of(seeds: Seeds) -> Key:
    """[B], one a seed."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.int32))


def finite(stems: Array) -> Float[ndarray, "B S T C"]:
    """On the host; `UserError` where they left the range of floats."""
    made = np.array(stems)
    if not np.isfinite(made).all():
        raise UserError(
            "the stems came out NaN or infinite: sampling diverged (expected a wider likelihood,"
            " less churn or fewer repeats), or the weights are damaged"
        )
    return made
