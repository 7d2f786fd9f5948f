"""HTSAT, the audio tower of CLAP: a Swin Transformer on a folded log-mel spectrogram (Chen et al.
2022; Liu et al. 2021; Wu et al. 2023).

The unfused model: one spectrogram of at most 1024 frames (10 s at CLAP's 100 frames/s). CLAP's
fusion of several crops of a longer recording is not built; longer audio is embedded by windows.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.joint.towers import Embedded, check_choices, check_heads
from mgen.nn.transformer import ACTIVATIONS
from mgen.typing import Array, Bool, Float, ndarray

# Of the norms outside the blocks (patch embedding, merging, output).
NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class HTSATConfig:
    """Shape of an HTSAT; the defaults are CLAP's (laion/clap-htsat-unfused).

    Attributes:
      mels: bins of the spectrogram, a multiple of the patch and of all halvings.
      size: side of the square image that a spectrogram is folded into, a multiple of `mels`; the
        spectrogram has at most size * size / mels frames.
      patch: side of a square patch.
      window: side of the square windows of attention, in patches.
      dim: width of the first stage, doubled by every further one.
      depths, heads: blocks and heads of each stage; each further one halves the map.
      ff: hidden width of the feed-forward as a multiple of a stage's width.
      activation: a name of `mgen.nn.transformer.ACTIVATIONS`.
      norm_epsilon: of the norms inside the blocks.
      dropout: rate on the output of each sub-layer.
      dtype: compute dtype; parameters stay float32.
    """

    mels: int = 64
    size: int = 256
    patch: int = 4
    window: int = 8
    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    ff: float = 4.0
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choices(self, "model.audio", {})
        if len(self.heads) != len(self.depths):
            raise UserError(
                f"model.audio.heads has {len(self.heads)} stages, expected the "
                f"{len(self.depths)} of depths"
            )
        for width, heads in zip(self.widths, self.heads, strict=True):
            check_heads(width, heads, "model.audio")
        shrink = self.patch * 2 ** (len(self.depths) - 1)
        if self.mels % shrink:
            raise UserError(
                f"model.audio.mels is {self.mels}, expected a multiple of {shrink} (the patch and "
                "the halvings)"
            )
        if self.size % self.mels:
            raise UserError(
                f"model.audio.size is {self.size}, expected a multiple of mels {self.mels}"
            )
        if self.size // shrink < self.window:
            raise UserError(
                f"model.audio.window is {self.window}, expected at most the {self.size // shrink} "
                "patches of the last stage's side"
            )

    @property
    def folds(self) -> int:
        """Stretches of time that lie one above the other in the image."""
        return self.size // self.mels

    @property
    def frames(self) -> int:
        """Longest spectrogram."""
        return self.size * self.folds

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))


class HTSAT(nn.Module):
    """Spectrogram to vectors: the mean of the last stage's map; `tokens` are its positions, row of
    bins by row, each in the order of time."""

    config: HTSATConfig

    @nn.compact
    def __call__(self, mel: Float[Array, "B F M"], train: bool = False) -> Embedded:
        """The pooled spectrogram.

        Args:
          mel: log-mel spectrogram of at most `config.frames` frames; a shorter one is stretched.
          train: whether dropout is on (needs the "dropout" generator).

        Raises:
          UserError: a spectrogram of another size.
        """
        config = self.config
        # CLAP's batch norm over mel bins with its running statistics folded in: an affine map a
        # bin.
        scale = self.param("mel_scale", nn.initializers.ones, (config.mels,))
        bias = self.param("mel_bias", nn.initializers.zeros, (config.mels,))
        if mel.shape[2] != config.mels or mel.shape[1] > config.frames:
            raise UserError(
                f"model.audio: the spectrogram has (frames, mels) {mel.shape[1:]}, expected at "
                f"most {config.frames} frames of {config.mels} mels"
            )
        image = fold(config, mel * scale[None, None] + bias[None, None])
        side = config.size // config.patch
        x = image.reshape(-1, side, config.patch, side, config.patch)
        x = x.transpose(0, 1, 3, 2, 4).reshape(-1, side, side, config.patch**2)
        x = nn.Dense(config.dim, dtype=config.dtype, name="patch_embed")(x)
        x = layer_norm(config, "patch_norm", NORM_EPSILON)(x)
        for stage, depth in enumerate(config.depths):
            if stage:
                x = merge_patches(config, x, f"merge_{stage}")
            for i in range(depth):
                shift = i % 2 * (config.window // 2)
                block = SwinBlock(config, config.heads[stage], shift, name=f"stage_{stage}_{i}")
                x = block(x, train)
        x = layer_norm(config, "final_norm", NORM_EPSILON)(x)
        # [B, fold, bin, column, D] -> [B, bin, fold, column, D]: time runs through the folds.
        x = x.reshape(x.shape[0], config.folds, -1, x.shape[2], x.shape[3])
        tokens = x.transpose(0, 2, 1, 3, 4).reshape(x.shape[0], -1, x.shape[-1])
        return Embedded(jnp.mean(tokens.astype(jnp.float32), axis=1), tokens)


def layer_norm(config: HTSATConfig, name: str, epsilon: float) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=config.dtype, name=name)


def fold(config: HTSATConfig, mel: Float[Array, "B F M"]) -> Float[Array, "B S S"]:
    """The square image: stretched to `config.frames`, cut into `config.folds` stretches of time
    which lie one above the other, mel bins downwards and time to the right in each."""
    if mel.shape[1] < config.frames:
        matrix = jnp.asarray(bicubic(mel.shape[1], config.frames))
        mel = jnp.einsum("of,bfm->bom", matrix, mel, precision="highest")
    x = mel.reshape(-1, config.folds, config.size, config.mels)
    return x.transpose(0, 1, 3, 2).reshape(-1, config.size, config.size)


@functools.lru_cache(maxsize=8)
def bicubic(inputs: int, outputs: int) -> ndarray:
    """Matrix [outputs, inputs] of cubic interpolation whose first and last points are those of the
    input (Keys 1981 with a = -0.75, edges repeated; torch's "bicubic", align_corners=True).

    Positions are rounded to float32 as the released model has them, which moves white noise by
    2e-4.
    """
    a = -0.75
    step = np.float32((inputs - 1) / max(outputs - 1, 1))
    position = np.arange(outputs, dtype=np.float32) * step
    start = np.floor(position).astype(int)
    matrix = np.zeros((outputs, inputs), np.float32)
    for tap in range(-1, 3):
        distance = np.abs(position - start - tap)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        column = np.clip(start + tap, 0, inputs - 1)
        np.add.at(matrix, (np.arange(outputs), column), np.where(distance <= 1, near, far))
    return matrix


def merge_patches(
    config: HTSATConfig, x: Float[Array, "B R C D"], name: str
) -> Float[Array, "B R2 C2 D2"]:
    """Half the side and twice the width: 2 x 2 neighbours side by side (column by column), a norm,
    a matrix. Called inside a compact method."""
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows // 2, 2, columns // 2, 2, width)
    x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, rows // 2, columns // 2, 4 * width)
    x = layer_norm(config, f"{name}_norm", NORM_EPSILON)(x)
    return nn.Dense(2 * width, use_bias=False, dtype=config.dtype, name=name)(x)


class SwinBlock(nn.Module):
    """Attention inside square windows, displaced by `shift` patches in every other block, and a
    feed-forward; pre-norm."""

    config: HTSATConfig
    heads: int
    shift: int

    @nn.compact
    def __call__(self, x: Float[Array, "B R C D"], train: bool = False) -> Float[Array, "B R C D"]:
        config, (_, rows, columns, width) = self.config, x.shape
        drop = nn.Dropout(config.dropout, deterministic=not train)
        window = config.window
        # A window as large as the map sees all of it already.
        shift = 0 if min(rows, columns) <= window else self.shift
        y = layer_norm(config, "attention_norm", config.norm_epsilon)(x)
        y = jnp.pad(y, ((0, 0), (0, -rows % window), (0, -columns % window), (0, 0)))
        shape = (y.shape[1], y.shape[2])
        y = cut_windows(jnp.roll(y, (-shift, -shift), (1, 2)), window)
        mask = same_region(shape, window, shift) if shift else None
        y = WindowAttention(self.heads, window, config.dtype, name="attention")(y, mask)
        y = jnp.roll(join_windows(y, shape, window), (shift, shift), (1, 2))
        x = x + drop(y[:, :rows, :columns])
        y = layer_norm(config, "ff_norm", config.norm_epsilon)(x)
        y = nn.Dense(int(config.ff * width), dtype=config.dtype, name="ff_in")(y)
        y = ACTIVATIONS[config.activation](y)
        return x + drop(nn.Dense(width, dtype=config.dtype, name="ff_out")(y))


class WindowAttention(nn.Module):
    """Self-attention of the L = window^2 patches of each of W windows, with a learned bias for each
    offset of rows and columns (Liu et al. 2021, eq. 4). Softmax in float32."""

    heads: int
    window: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B W L D"], mask: Bool[Array, "W L L"] | None
    ) -> Float[Array, "B W L D"]:
        shape = (self.heads, x.shape[-1] // self.heads)

        def project(name: str) -> Array:
            return nn.DenseGeneral(shape, dtype=self.dtype, name=name)(x)  # [B, W, L, H, hd]

        span = 2 * self.window - 1
        init = nn.initializers.normal(0.02)
        table = self.param("relative_bias", init, (span * span, self.heads))
        bias = table[relative_index(self.window)].transpose(2, 0, 1)  # [H, L, L]
        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("bwqhd,bwkhd->bwhqk", query * shape[1] ** -0.5, key)
        scores = scores.astype(jnp.float32) + bias[None, None]
        if mask is not None:
            scores = jnp.where(mask[None, :, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        y = jnp.einsum("bwhqk,bwkhd->bwqhd", weights, value)
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), dtype=self.dtype, name="out")(y)


def relative_index(window: int) -> ndarray:
    """Row of the bias table for each pair of patches of a window: int [L, L]."""
    place = np.stack(np.divmod(np.arange(window * window), window))  # [2, L]: row, column
    offset = place[:, :, None] - place[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def same_region(shape: tuple[int, int], window: int, shift: int) -> Bool[Array, "W L L"]:
    """True for pairs of patches that were neighbours before the map was rolled by `shift`."""
    # Only the last window along an axis holds places from both ends of it.
    wrapped = [jnp.arange(size) >= size - shift for size in shape]
    regions = wrapped[0][:, None] * 2 + wrapped[1][None]
    windows = cut_windows(regions[None, ..., None], window)[0, ..., 0]
    return windows[:, :, None] == windows[:, None, :]


def cut_windows(x: Float[Array, "B R C D"], window: int) -> Float[Array, "B W L D"]:
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows // window, window, columns // window, window, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, window * window, width)


def join_windows(
    x: Float[Array, "B W L D"], shape: tuple[int, int], window: int
) -> Float[Array, "B R C D"]:
    """Inverse of `cut_windows`."""
    rows, columns = shape
    x = x.reshape(x.shape[0], rows // window, columns // window, window, window, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows, columns, -1)
