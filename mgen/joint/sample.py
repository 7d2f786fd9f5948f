"""Inference with a trained joint embedding: audio of any length, and text.

Example:
    joint = FrozenJoint.from_trained(config, params)
    vector = joint.embed_audio(audio)             # [T, C] -> [D]
    texts = joint.embed_text(ids, mask)           # [B, L] -> [B, D]
    nearest = (texts @ vector).argmax()
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.joint.config import JointConfig
from mgen.joint.model import COLLECTIONS, JointModel
from mgen.typing import Array, Bool, Float, Int, Params, ndarray

STRIDE_SECONDS = 1.0
# Windows (and texts) that run as one batch; more change the speed little and the memory a lot.
AT_ONCE = 16


class FrozenJoint:
    """A joint embedding's config and weights with jitted inference.

    `config.sample_rate` and `config.channels` are what audio must have, `config.seconds` is the
    length of a window, `config.embed_dim` the width D of the embeddings.
    """

    def __init__(self, config: JointConfig, params: Params, variables: Params | None = None):
        self.config = config
        self.model = JointModel(config)
        own = {name: tree for name, tree in (variables or {}).items() if name in COLLECTIONS}
        self.variables = jax.tree.map(jnp.asarray, {"params": params, **own})

    @classmethod
    def from_trained(
        cls, config: Any, params: Params, variables: Params | None = None
    ) -> "FrozenJoint":
        """From an experiment's config, its parameters and the state's variables."""
        return cls(JointConfig.from_experiment(config), params, variables)

    def window_embeddings(
        self, audio: Float[ndarray, "T C"], stride_seconds: float = STRIDE_SECONDS
    ) -> Float[ndarray, "W D"]:
        """Unit vectors of the windows that start every `stride_seconds` (MusicLM: 10 s windows, 1 s
        stride; of a melody 4 s windows, 3 s stride).

        Window w starts at round(w * stride_seconds * sample_rate); the last is the first that
        reaches the end, filled up with zeros; there is one at least. Memory beside the audio (which
        may be a memory map) is that of `AT_ONCE` windows.

        Raises `UserError` for audio of another shape, or none.
        """
        audio = self._checked(audio)
        length, stride = self.config.samples, stride_seconds * self.config.sample_rate
        count = 1 + max(0, int(np.ceil((len(audio) - length) / stride)))
        vectors = []
        for start in range(0, count, AT_ONCE):
            # Always a full batch: one compiled program, whatever the length.
            batch = np.zeros((AT_ONCE, length, self.config.channels), np.float32)
            for row, window in zip(batch, range(start, min(start + AT_ONCE, count))):
                begin = round(window * stride)
                part = audio[begin : begin + length]
                row[: len(part)] = part
            embedded = _run(self.model, "embed_audio", self.variables, jnp.asarray(batch))
            vectors.append(np.asarray(embedded)[: count - start])
        return np.concatenate(vectors)

    def embed_audio(self, audio: Float[ndarray, "T C"]) -> Float[ndarray, " D"]:
        """Unit vector of a recording: the mean of its windows' (MusicLM, section 3.1)."""
        mean = self.window_embeddings(audio).mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def embed_text(
        self, ids: Int[ndarray, "B L"], mask: Bool[ndarray, "B L"]
    ) -> Float[ndarray, "B D"]:
        """Unit vectors of texts, L = `config.text_length` tokens each as the vocabulary gives them.

        Raises `UserError` for another length, and in a model without a text tower.
        """
        if self.config.text is None:
            raise UserError("this embedding was trained on pairs of audio and reads no text")
        ids, mask = np.asarray(ids, np.int32), np.asarray(mask, bool)
        if ids.ndim != 2 or ids.shape[1] != self.config.text_length or mask.shape != ids.shape:
            raise UserError(
                f"text of shape {ids.shape}, mask {mask.shape}, expected [B, "
                f"{self.config.text_length}] each"
            )
        vectors = [np.zeros((0, self.config.embed_dim), np.float32)]
        for start in range(0, len(ids), AT_ONCE):
            missing = max(0, start + AT_ONCE - len(ids))
            # A padded row repeats the first text: one without tokens would have no mean.
            rows = np.arange(start, start + AT_ONCE) * (np.arange(AT_ONCE) < AT_ONCE - missing)
            embedded = _run(self.model, "embed_text", self.variables, ids[rows], mask[rows])
            vectors.append(np.asarray(embedded)[: AT_ONCE - missing])
        return np.concatenate(vectors)

    def _checked(self, audio: ndarray) -> ndarray:
        if audio.ndim != 2 or audio.shape[1] != self.config.channels or not len(audio):
            raise UserError(
                f"audio of shape {tuple(audio.shape)}, expected [T, {self.config.channels}] with "
                f"T > 0 at {self.config.sample_rate} Hz"
            )
        return audio


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(model: JointModel, method: str, variables: Params, *inputs: Array) -> Any:
    """Compiled once for each config, method and shapes."""
    return model.apply(variables, *inputs, method=method)
