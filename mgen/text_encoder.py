"""A released T5 encoder from its folder: the text vectors of MusicGen and its relatives."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.inputs.vocabulary import Vocabulary
from mgen.interop import text_encoders
from mgen.interop.torch_weights import load_safetensors
from mgen.joint.text import TextTower
from mgen.typing import Array, Bool, Float, Int, Params, ndarray

# What config.json leaves out where it is what T5 was published with.
DEFAULTS = dict(
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    dropout_rate=0.1,
    feed_forward_proj="relu",
)
ACTIVATIONS = {"relu": "relu", "gated-gelu": "gelu_new", "gated-silu": "silu"}


class TextEncoder:
    """Texts to a vector for each of their tokens.

    Attributes:
      width: of a vector.
      length: tokens of a text; longer ones are cut.
      fingerprint: SHA-256 of the weights and the vocabulary.
    """

    def __init__(self, folder: str | Path, length: int = 64):
        """From `config.json`, `model.safetensors` and `spiece.model`, as releases have them.

        Raises:
          UserError: a file is missing, damaged, or of another kind of model.
        """
        folder = Path(folder)
        weights, self._vocabulary = folder / "model.safetensors", folder / "spiece.model"
        shape = _shape(folder / "config.json")
        config = text_encoders.t5_config(shape, scan=False, dropout=0.0)
        params = text_encoders.t5_params(config, load_safetensors(weights))
        self._params = jax.tree.map(jnp.asarray, params)
        self._ids = Vocabulary(self._vocabulary)
        self.width, self.length = config.dim, length
        digest = hashlib.sha256()
        for path in (weights, self._vocabulary):
            digest.update(path.read_bytes())
        self.fingerprint = digest.hexdigest()
        self._embed = jax.jit(functools.partial(_tokens, TextTower(config)))

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Float[ndarray, "B L W"], Bool[ndarray, "B L"]]:
        """Vectors of the tokens of each text and where they are; L is `length`."""
        ids, mask = self._ids.encode(texts, self.length, lower=False)
        return np.asarray(self._embed(self._params, ids, mask)), mask


def _tokens(
    tower: TextTower, params: Params, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> Float[Array, "B L W"]:
    embedded: Any = tower.apply({"params": params}, ids, mask)
    return embedded.tokens


def _shape(path: Path) -> SimpleNamespace:
    """The fields that `t5_config` reads, of a release's config.json."""
    try:
        fields = {**DEFAULTS, **json.loads(path.read_text())}
        kind = fields["feed_forward_proj"]
        if kind not in ACTIVATIONS:
            raise ValueError(f"feed_forward_proj is {kind!r}, expected one of {[*ACTIVATIONS]}")
        fields |= dict(dense_act_fn=ACTIVATIONS[kind], is_gated_act=kind.startswith("gated"))
        names = "vocab_size d_model d_kv d_ff num_layers num_heads"
        for name in names.split():
            if not isinstance(fields.get(name), int):
                raise ValueError(f"{name} is {fields.get(name)!r}, expected a number")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: expected the config of a T5 encoder ({error})") from error
    return SimpleNamespace(**fields)
