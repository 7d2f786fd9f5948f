"""Features of a trained encoder: of crops, and of audio of any length in bounded memory.

Example:
    encoder = FrozenSemantic.from_trained(config, params, variables)
    features = encoder.features(audio, layer=7)            # [B, T, C] -> [B, F, D]
    features = encoder.features_long(recording, layer=7)   # [T, C] -> [F25, D] at 25 Hz
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.semantic.config import SemanticConfig
from mgen.semantic.model import Encoder, encoder_params, unstack_layers
from mgen.typing import Array, Float, Params, ndarray

WINDOW_SECONDS = 10.0
# Of a window, at either end: what is thrown away where a neighbour sees it with more context.
MARGIN_SECONDS = 1.0
WINDOWS_AT_ONCE = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenSemantic:
    """A trained encoder; layers behind the one asked for are not computed."""

    config: SemanticConfig = dataclasses.field(metadata=dict(static=True))
    variables: Params

    @classmethod
    def from_trained(
        cls, config: SemanticConfig, params: Params, variables: Params | None = None
    ) -> "FrozenSemantic":
        """From the parameters of `Encoder` or `Pretraining`, scanned or not, and the collections
        beside them."""
        others = {name: v for name, v in (variables or {}).items() if name != "targets"}
        trees = {"params": params, **others}
        trees = {name: unstack_layers(encoder_params(tree)) for name, tree in trees.items()}
        trunk = dataclasses.replace(config.trunk, scan=False, remat="none")
        return cls(dataclasses.replace(config, trunk=trunk), jax.tree.map(jnp.asarray, trees))

    def features(self, audio: Float[Array, "B T C"] | ndarray, layer: int) -> Float[Array, "B F D"]:
        """Hidden states of `layer`, 0 (the trunk's input) to `config.layers` (normalised where the
        trunk has a final norm), float32 at `config.frame_rate`. Compiled once for each shape.

        Raises:
          UserError: no such layer, or audio shorter than one frame.
        """
        layers = self.config.layers
        if not -layers - 1 <= layer <= layers:
            raise UserError(f"layer is {layer}, expected 0 to {layers}")
        samples = audio.shape[1]
        if self.config.frames(samples) < 1:
            raise UserError(
                f"audio has {samples} samples, expected at least {self.config.samples(1)}"
            )
        return _features(self, jnp.asarray(audio, jnp.float32), layer % (layers + 1))

    def features_long(
        self, audio: Float[ndarray, "T C"], layer: int, rate: float = 25.0
    ) -> Float[ndarray, "F D"]:
        """Features of a whole recording at `rate` Hz, a divisor of the frame rate.

        Windows of 10 s overlap by 2 s or more, and give what lies 1 s or more from where they were
        cut; they are of one shape, so that memory does not grow with the recording (but for the
        result). Groups of frames are averaged; a last group may have fewer.

        Raises:
          UserError: as `features`, or a rate that does not divide the frame rate.
        """
        config = self.config
        group = round(config.frame_rate / rate)
        if group < 1 or abs(config.frame_rate - group * rate) > 1e-6 * rate:
            raise UserError(
                f"rate is {rate} Hz, expected a divisor of the frame rate {config.frame_rate} Hz"
            )
        window, margin = (
            round(seconds * config.frame_rate) for seconds in (WINDOW_SECONDS, MARGIN_SECONDS)
        )
        frames = config.frames(audio.shape[0])
        if frames <= window:
            features = np.asarray(self.features(audio[None], layer))[0]
        else:
            features = np.empty((frames, config.dim), np.float32)
            starts = [*range(0, frames - window, window - 2 * margin), frames - window]
            for start, states in zip(starts, self._windows(audio, starts, window, layer)):
                first = margin if start else 0
                features[start + first : start + window] = states[first:]
        padded = np.pad(features, ((0, -len(features) % group), (0, 0)))
        sums = padded.reshape(-1, group, config.dim).sum(axis=1)
        counts = np.minimum(group, len(features) - group * np.arange(len(sums)))
        return sums / counts[:, None].astype(np.float32)

    def _windows(
        self, audio: ndarray, starts: list[int], window: int, layer: int
    ) -> Iterator[ndarray]:
        """States [window, D] of the windows that begin at the frames `starts`, some at a time."""
        hop, samples = self.config.front.hop, self.config.samples(window)
        for i in range(0, len(starts), WINDOWS_AT_ONCE):
            batch = [
                audio[start * hop : start * hop + samples] for start in starts[i:][:WINDOWS_AT_ONCE]
            ]
            count = len(batch)
            batch += batch[:1] * (WINDOWS_AT_ONCE - count)
            yield from np.asarray(self.features(np.stack(batch), layer))[:count]


@functools.partial(jax.jit, static_argnames="layer")
def _features(model: FrozenSemantic, audio: Array, layer: int) -> Array:
    encoder = Encoder(model.config)
    states: Any = encoder.apply(model.variables, audio, method="hidden_states")
    return states[layer].astype(jnp.float32)
