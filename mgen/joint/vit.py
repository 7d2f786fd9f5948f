"""Vision Transformer on a log-mel spectrogram: AST (Gong et al. 2021) and plain ViT, with patchout
in training (Koutini et al. 2022, "PaSST").
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.joint.towers import Embedded, check_choices, check_heads
from mgen.nn.transformer import Transformer, TransformerConfig
from mgen.typing import Array, Float, Int, Key

CHOICES = {"pooling": ("cls", "mean")}
PATCHOUT = ("patchout", "patchout_frames", "patchout_mels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Shape of a spectrogram Transformer; the defaults are AST-base. Pairs are (frames, mel bins).

    Attributes:
      frames, mels: size of the spectrogram.
      patch, stride: size of a patch and step to the next one; equal in a plain ViT.
      class_tokens: learned vectors in front: 2 (class and distillation, DeiT and AST), 1 or 0.
      pooling: "cls" (mean of the class tokens) or "mean" (of the patches).
      dim, layers, heads, ff, head_dim, activation, norm_epsilon, dropout, dtype, scan, remat: see
        `mgen.nn.transformer.TransformerConfig`.
      patchout_frames, patchout_mels: share of the columns and rows of patches that an example loses
        in training (PaSST, structured).
      patchout: share of the patches left after that, drawn one by one (unstructured).
    """

    frames: int = 1024
    mels: int = 128
    patch: tuple[int, int] = (16, 16)
    stride: tuple[int, int] = (10, 10)
    class_tokens: int = 2
    pooling: str = "cls"
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ff: int = 3072
    head_dim: int | None = None
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    patchout: float = 0.0
    patchout_frames: float = 0.0
    patchout_mels: float = 0.0
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"

    def __post_init__(self) -> None:
        check_choices(self, "model.audio", CHOICES)
        if self.head_dim is None:
            check_heads(self.dim, self.heads, "model.audio")
        if self.class_tokens not in (0, 1, 2) or (self.pooling == "cls" and not self.class_tokens):
            raise UserError(
                f"model.audio.class_tokens is {self.class_tokens}, expected 1 or 2 "
                "(0 only with pooling 'mean')"
            )
        for field in PATCHOUT:
            if not 0 <= getattr(self, field) < 1:
                raise UserError(
                    f"model.audio.{field} is {getattr(self, field)}, expected a share in [0, 1)"
                )
        if self.frames < self.patch[0] or self.mels < self.patch[1]:
            raise UserError(
                f"model.audio.patch is {self.patch}, expected at most the "
                f"{self.frames} x {self.mels} of the spectrogram"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (frames, mel bins)."""
        sizes = zip((self.frames, self.mels), self.patch, self.stride, strict=True)
        frames, mels = ((size - patch) // stride + 1 for size, patch, stride in sizes)
        return frames, mels

    @property
    def transformer(self) -> TransformerConfig:
        return TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            kv_heads=self.heads,
            layers=self.layers,
            ff=self.ff,
            head_dim=self.head_dim,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            bias=True,
            causal=False,
            dropout=self.dropout,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
        )


class ViT(nn.Module):
    """Spectrogram to vectors. Patches are listed row of mel bins by row, as AST lists them."""

    config: ViTConfig

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(0.02)
        length = config.class_tokens + math.prod(config.grid)
        self.patch_embed = nn.Dense(config.dim, dtype=config.dtype)
        if config.class_tokens:
            self.class_tokens = self.param("class_tokens", init, (config.class_tokens, config.dim))
        self.positions = self.param("positions", init, (length, config.dim))
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config.transformer)

    def __call__(self, mel: Float[Array, "B F M"], train: bool = False) -> Embedded:
        """The pooled spectrogram; `tokens` are the class tokens and then the patches.

        Args:
          mel: log-mel spectrogram of exactly the config's size.
          train: whether dropout and patchout are on (need the "dropout" and "patchout" generators).

        Raises:
          UserError: a spectrogram of another size.
        """
        config, count = self.config, self.config.class_tokens
        tokens = self.transformer(self.embed(mel, train), train=train)
        kept = tokens[:, :count] if config.pooling == "cls" else tokens[:, count:]
        return Embedded(jnp.mean(kept.astype(jnp.float32), axis=1), tokens)

    def hidden_states(
        self, mel: Float[Array, "B F M"], train: bool = False
    ) -> Float[Array, "N B L D"]:
        """Embeddings and output of every layer, N = layers + 1; see `Transformer.hidden_states`."""
        return self.transformer.hidden_states(self.embed(mel, train), train=train)

    def embed(self, mel: Float[Array, "B F M"], train: bool = False) -> Float[Array, "B L D"]:
        """What the stack reads."""
        config, count = self.config, self.config.class_tokens
        if mel.shape[1:] != (config.frames, config.mels):
            raise UserError(
                f"model.audio: the spectrogram has (frames, mels) {mel.shape[1:]}, expected "
                f"{(config.frames, config.mels)}"
            )
        x = self.patch_embed(cut_patches(mel, config.patch, config.stride))
        x = x + self.positions[None, count:]
        if train and any(getattr(config, field) for field in PATCHOUT):
            kept = keep_patches(config, self.make_rng("patchout"), mel.shape[0])
            x = jnp.take_along_axis(x, kept[..., None], axis=1)
        if count:
            front = (self.class_tokens + self.positions[:count])[None]
            front = jnp.broadcast_to(front, (x.shape[0], *front.shape[1:]))
            x = jnp.concatenate([front.astype(x.dtype), x], axis=1)
        return self.embedding_dropout(x, deterministic=not train)


def cut_patches(
    mel: Float[Array, "B F M"], patch: tuple[int, int], stride: tuple[int, int]
) -> Float[Array, "B N P"]:
    """Patches as rows of patch[0] * patch[1] values, a frame's bins together; listed by mel bins,
    then frames.

    Two gathers and a matmul instead of a convolution: for AST's overlapping patches, forward and
    backward together take about half the time of one on a CPU.
    """

    def index(size: int, patch: int, stride: int) -> np.ndarray:
        return np.arange(0, size - patch + 1, stride)[:, None] + np.arange(patch)

    x = mel[:, index(mel.shape[1], patch[0], stride[0])]  # [B, columns, patch, M]
    x = x[..., index(mel.shape[2], patch[1], stride[1])]  # [B, columns, patch, rows, patch]
    x = x.transpose(0, 3, 1, 2, 4)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1)


def keep_patches(config: ViTConfig, key: Key, batch: int) -> Int[Array, "B N"]:
    """Ascending numbers of the patches that each example keeps, drawn for itself."""
    columns, rows = config.grid

    def draw(key: Key, count: int, rate: float) -> Int[Array, " n"]:
        kept = count - int(rate * count)
        return jnp.sort(jax.random.permutation(key, count)[:kept])

    def example(number: Array) -> Int[Array, "N"]:
        frames_key, mels_key, patch_key = jax.random.split(jax.random.fold_in(key, number), 3)
        column = draw(frames_key, columns, config.patchout_frames)
        row = draw(mels_key, rows, config.patchout_mels)
        patches = (row[:, None] * columns + column[None]).reshape(-1)
        return patches[draw(patch_key, patches.size, config.patchout)]

    return jax.vmap(example)(jnp.arange(batch))
