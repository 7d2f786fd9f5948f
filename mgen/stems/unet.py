"""The U-Net of multi-source diffusion (Mariani et al. 2024; the network of Schneider et al. 2023,
"Moûsai", as released in audio-diffusion-pytorch 0.0.43).

All stems are one input: [B, S, T, C] is read as S C channels. Patches of the waveform become
frames; each level strides, refines by residual blocks and may attend; on the way up each block
sees what its mirror image gave. The noise level scales and shifts the second norm of every block.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mgen.errors import UserError
from mgen.nn.attention import Attention
from mgen.nn.conv import KERNEL_INIT, Conv1d, ConvTranspose1d
from mgen.nn.norm import TimeGroupNorm
from mgen.nn.transformer import ACTIVATIONS
from mgen.stems.config import BandDenoiserConfig, UNetConfig
from mgen.typing import Array, Float

gelu = ACTIVATIONS["gelu"]
# Keeps the level of a frame beside its skip, of which there are as many features.
SKIP_SCALE = 2**-0.5


def mean_of_tracks(stems: int, width: int) -> Float[Array, "S D D"]:
    """Initial linear layers of the tracks: their sum is the mean of what they get, so that equal
    levels give what a model of one level gives."""
    return jnp.broadcast_to(jnp.eye(width) / stems, (stems, width, width))


class NoiseEmbedding(nn.Module):
    """Noise levels through learned Fourier features and three layers; with `per_track`, those of
    the stems are added after a linear layer each. All in float32."""

    config: UNetConfig | BandDenoiserConfig

    @nn.compact
    def __call__(self, noise: Float[Array, "B *S"]) -> Float[Array, "B D"]:
        config, width = self.config, self.config.condition_width
        frequency = self.param("frequency", nn.initializers.normal(1.0), (config.width // 2,))
        noise = noise.astype(jnp.float32)[..., None]
        angle = 2 * math.pi * noise * frequency.reshape((1,) * (noise.ndim - 1) + (-1,))
        x = jnp.concatenate([noise, jnp.sin(angle), jnp.cos(angle)], axis=-1)
        for i in range(3):
            x = gelu(nn.Dense(width, kernel_init=KERNEL_INIT, name=f"dense_{i}")(x))
        if config.per_track:
            tracks = self.param("tracks", lambda _: mean_of_tracks(config.stems, width))
            x = jnp.einsum("bsd,sde->be", x, tracks)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions of three frames, each behind a group norm and SiLU, beside a shortcut.

    Attributes:
      features: of the output.
      groups: of the norms; where they do not divide the features, the greatest number that divides
        both.
      dtype: compute dtype.
    """

    features: int
    groups: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F I"], condition: Float[Array, "B D"]
    ) -> Float[Array, "B F O"]:
        dense: dict[str, Any] = dict(kernel_init=KERNEL_INIT, dtype=self.dtype)
        change = nn.Dense(2 * self.features, name="scale_shift", **dense)(nn.silu(condition))
        scale, shift = jnp.split(change[:, None], 2, axis=-1)
        h = self._conv(nn.silu(self._norm(x, "norm_0")), "conv_0")
        h = self._norm(h, "norm_1") * (scale + 1) + shift
        h = self._conv(nn.silu(h), "conv_1")
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, name="shortcut", **dense)(x)
        return h + x

    def _norm(self, x: Array, name: str) -> Array:
        width = x.shape[-1]
        return TimeGroupNorm(width, math.gcd(width, self.groups), name=name)(x)

    def _conv(self, x: Array, name: str) -> Array:
        return Conv1d(x.shape[-1], self.features, 3, dtype=jnp.dtype(self.dtype), name=name)(x)


class SelfAttention(nn.Module):
    """Attention between two layer norms."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B F W"]) -> Float[Array, "B F W"]:
        config = self.config
        attention = Attention(
            config.heads, config.heads, config.head_dim, dtype=config.dtype, name="attention"
        )
        norm_in, norm_out = (layer_norm(config, name) for name in ("norm_in", "norm_out"))
        return norm_out(attention(norm_in(x)))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward with a norm in its middle, each added to its input."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B F W"]) -> Float[Array, "B F W"]:
        config, width = self.config, x.shape[-1]
        dense: dict[str, Any] = dict(use_bias=False, kernel_init=KERNEL_INIT, dtype=config.dtype)
        x = x + SelfAttention(config, name="attention")(x)
        h = layer_norm(config, "ff_norm")(x)
        h = gelu(nn.Dense(config.ff_multiplier * width, name="ff_in", **dense)(h))
        h = layer_norm(config, "ff_middle_norm")(h)
        return x + nn.Dense(width, name="ff_out", **dense)(h)


def layer_norm(config: UNetConfig, name: str) -> nn.LayerNorm:
    """Normalisation in float32 of the last axis."""
    return nn.LayerNorm(
        epsilon=1e-5, use_bias=False, use_fast_variance=False, dtype=config.dtype, name=name
    )


class UNet1d(nn.Module):
    """Stems of some noise level to stems, [B, S, T, C] to the same in float32.

    What is put in and what the output means (here EDM's c_in x, c_noise and F) is the process's
    matter.
    """

    config: UNetConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S T C"], noise: Float[Array, "B *S"]
    ) -> Float[Array, "B S T C"]:
        """Applies the network.

        Args:
          x: T is a multiple of `UNetConfig.hop`.
          noise: level as the process expresses it (EDM: ln(sigma) / 4), [B, S] with `per_track`,
            else [B].

        Raises:
          UserError: shapes that do not fit the config.
        """
        config, batch = self.config, x.shape[0]
        check_shapes(config, x, noise)
        condition = NoiseEmbedding(config, name="noise")(noise)
        x = x.astype(config.dtype).transpose(0, 2, 1, 3).reshape(batch, x.shape[2], -1)
        sources = x.shape[-1]
        # As released: a group for each source, but no more than samples in a patch.
        groups = min(config.patch, sources)

        frames = self._block(config.width // config.patch, groups, "patch")(x, condition)
        x = first = fold(frames, config.patch)
        skips = []
        for level in range(config.levels):
            x, kept = self._down(level, x, condition)
            skips.append(kept)
        x = self._bottleneck(x, condition)
        for level in reversed(range(config.levels)):
            x = self._up(level, x, skips[level], condition)
        x = unfold(x + first, config.patch)
        x = self._block(sources, groups, "unpatch")(x, condition)

        x = x.reshape(batch, -1, config.stems, config.channels).transpose(0, 2, 1, 3)
        return x.astype(jnp.float32)

    def _down(self, level: int, x: Array, condition: Array) -> tuple[Array, list[Array]]:
        """A level's output, and what each of its blocks gave."""
        config, width = self.config, self.config.widths[level + 1]
        factor, name = config.factors[level], f"down_{level}"
        # The release pads `factor` frames on the right too; the stride leaves all but one unread.
        x = Conv1d(
            x.shape[-1],
            width,
            2 * factor + 1,
            factor,
            pads=(factor, 1),
            dtype=jnp.dtype(config.dtype),
            name=f"{name}_conv",
        )(x)
        kept = []
        for i in range(config.blocks[level]):
            x = self._block(width, config.groups, f"{name}_block_{i}")(x, condition)
            kept.append(x)
        if config.attentions[level]:
            x = self._remat(TransformerBlock)(config, name=f"{name}_transformer")(x)
            kept.append(x)
        return x, kept

    def _bottleneck(self, x: Array, condition: Array) -> Array:
        config, width = self.config, x.shape[-1]
        x = self._block(width, config.groups, "bottleneck_block_0")(x, condition)
        # Not added to its input, as released.
        x = self._remat(SelfAttention)(config, name="bottleneck_attention")(x)
        return self._block(width, config.groups, "bottleneck_block_1")(x, condition)

    def _up(self, level: int, x: Array, kept: list[Array], condition: Array) -> Array:
        config, width = self.config, self.config.widths[level + 1]
        factor, outputs, name = config.factors[level], config.widths[level], f"up_{level}"
        for i, skip in enumerate(reversed(kept)):
            x = jnp.concatenate([x, skip * SKIP_SCALE], axis=-1)
            x = self._block(width, config.groups, f"{name}_block_{i}")(x, condition)
        if config.attentions[level]:
            x = self._remat(TransformerBlock)(config, name=f"{name}_transformer")(x)
        end: dict[str, Any] = dict(dtype=jnp.dtype(config.dtype), name=f"{name}_conv")
        if factor == 1:
            return Conv1d(width, outputs, 3, **end)(x)
        return ConvTranspose1d(width, outputs, 2 * factor, factor, **end)(x)

    def _block(self, features: int, groups: int, name: str) -> nn.Module:
        return self._remat(ResidualBlock)(features, groups, self.config.dtype, name=name)

    def _remat(self, block: Any) -> Any:
        return nn.remat(block) if self.config.remat else block


def check_shapes(config: UNetConfig, x: Array, noise: Array) -> None:
    _, stems, length, channels = x.shape
    if (stems, channels) != (config.stems, config.channels):
        raise UserError(
            f"{stems} stems of {channels} channels, expected {config.stems} of {config.channels}"
        )
    if not length or length % config.hop:
        raise UserError(
            f"stems of {length} samples, expected a multiple of {config.hop} (patch times factors)"
        )
    check_levels(config, x, noise)


def check_levels(config: UNetConfig | BandDenoiserConfig, x: Array, noise: Array) -> None:
    """`UserError` for noise levels that are not those of x [B, S, T, C]."""
    expected = x.shape[:2] if config.per_track else x.shape[:1]
    if noise.shape != expected:
        raise UserError(f"noise levels of shape {noise.shape}, expected {expected}")


def fold(x: Float[Array, "B T W"], patch: int) -> Float[Array, "B F P"]:
    """[B, T, W] -> [B, T / patch, W patch]; feature w patch + p is feature w of sample p."""
    batch, length, width = x.shape
    x = x.reshape(batch, length // patch, patch, width)
    return x.swapaxes(2, 3).reshape(batch, length // patch, -1)


def unfold(x: Float[Array, "B F P"], patch: int) -> Float[Array, "B T W"]:
    """The inverse of `fold`."""
    batch, frames, width = x.shape
    x = x.reshape(batch, frames, width // patch, patch)
    return x.swapaxes(2, 3).reshape(batch, frames * patch, -1)
