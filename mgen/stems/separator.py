"""A separator trained by regression, the baseline of the diffusion models: Transformers along time
and along frequency bands estimate a complex mask of the mix for each stem (BSRNN, Luo and Yu 2023,
with the Transformers of BS-RoFormer, Lu et al. 2024).

Other than there, the bands are equally wide, so that all are one array, and each is brought to the
level 1 over an example, so that the gain of a mix and its equalisation do not matter.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.audio import stft
from mgen.errors import UserError
from mgen.nn.transformer import Block, TransformerConfig, make_norm
from mgen.stems.config import DTYPES
from mgen.typing import Array, Complex, Float

# Added to the mean square of a band, or silence would become noise: -100 dB of a full-scale tone in
# a window of 2048 samples.
LEVEL_FLOOR = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeparatorConfig:
    """Shape of a `Separator`.

    Attributes:
      stems, channels: S and C.
      n_fft, hop: samples of a window and between windows.
      bands: K, a divisor of n_fft / 2; the bin at half the sample rate is left out.
      width, heads: D and H of the Transformers.
      layers: of a block along time and one along the bands each.
      ff_multiplier: hidden width of the feed-forwards and of the masks' layers, in units of D.
      dtype: compute dtype; parameters, norms, softmax and spectra stay float32.
      remat: whether the backward pass computes each block anew instead of keeping what is in it.
    """

    stems: int = 4
    channels: int = 1
    n_fft: int = 2048
    hop: int = 512
    bands: int = 64
    width: int = 384
    heads: int = 8
    layers: int = 12
    ff_multiplier: int = 4
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"model.dtype is {self.dtype!r}, expected one of {list(DTYPES)}")
        if self.n_fft % (2 * self.hop):
            raise UserError(
                f"model.n_fft is {self.n_fft}, expected a multiple of twice the hop {self.hop}"
            )
        if self.n_fft // 2 % self.bands:
            raise UserError(
                f"model.bands is {self.bands}, expected a divisor of n_fft / 2 = {self.n_fft // 2}"
            )
        if self.width % (2 * self.heads):
            raise UserError(
                f"model.width is {self.width}, expected a multiple of twice the {self.heads} heads"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> "SeparatorConfig":
        """From the `model` part of an experiment config; `UserError` names an unknown field."""
        values = {**dict(config), **overrides}
        fields = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise UserError(f"model.{name}: unknown field, expected one of {sorted(fields)}")
        return cls(**values)

    @property
    def band_bins(self) -> int:
        """Bins of a band."""
        return self.n_fft // 2 // self.bands

    @property
    def block(self) -> TransformerConfig:
        """Of the blocks along either axis."""
        return TransformerConfig(
            dim=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            layers=1,
            ff=self.ff_multiplier * self.width,
            norm="rms",
            causal=False,
            rotary=True,
            dtype=self.dtype,
        )


class BandDense(nn.Module):
    """A linear layer for each band, [B, F, K, I] -> [B, F, K, features]."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B F K I"]) -> Float[Array, "B F K O"]:
        bands, inputs = x.shape[2:]
        init = nn.initializers.lecun_normal(batch_axis=(0,))
        kernel = self.param("kernel", init, (bands, inputs, self.features))
        bias = self.param("bias", nn.initializers.zeros, (bands, self.features))
        x = jnp.einsum("bfki,kio->bfko", x.astype(self.dtype), kernel.astype(self.dtype))
        return x + bias.astype(self.dtype)[None, None]


class Separator(nn.Module):
    """A mix to its stems, [B, T, C] to [B, S, T, C] in float32; they need not sum to it."""

    config: SeparatorConfig

    @nn.compact
    def __call__(self, mix: Float[Array, "B T C"]) -> Float[Array, "B S T C"]:
        """Applies the network.

        Args:
          mix: T is a multiple of `SeparatorConfig.hop`, and over half a window.

        Raises:
          UserError: shapes that do not fit the config.
        """
        config = self.config
        check_shape(config, mix)
        bands = split_bands(config, mix.astype(jnp.float32))
        x = BandDense(config.width, config.dtype, name="embed")(features(bands))
        for layer in range(config.layers):
            x = self._along_time(x, f"time_{layer}")
            x = self._along_bands(x, f"bands_{layer}")
        x = make_norm(config.block, "final_norm")(x)
        return join_bands(config, self._masks(x) * bands[:, None], mix.shape[1])

    def _along_time(self, x: Float[Array, "B F K D"], name: str) -> Float[Array, "B F K D"]:
        batch, frames, bands, width = x.shape
        rows = x.swapaxes(1, 2).reshape(batch * bands, frames, width)
        return self._block(rows, name).reshape(batch, bands, frames, width).swapaxes(1, 2)

    def _along_bands(self, x: Float[Array, "B F K D"], name: str) -> Float[Array, "B F K D"]:
        return self._block(x.reshape(-1, *x.shape[2:]), name).reshape(x.shape)

    def _block(self, x: Float[Array, "N L D"], name: str) -> Float[Array, "N L D"]:
        block: Any = nn.remat(Block) if self.config.remat else Block
        return block(self.config.block, name=name)(x, None, None, None, None)[0]

    def _masks(self, x: Float[Array, "B F K D"]) -> Complex[Array, "B S F K C W"]:
        """Masks of each stem (BSRNN: tanh, then a gate)."""
        config = self.config
        outputs = config.stems * 2 * config.channels * config.band_bins
        hidden = BandDense(config.ff_multiplier * config.width, config.dtype, name="mask_in")(x)
        values = BandDense(2 * outputs, config.dtype, name="mask_out")(jnp.tanh(hidden))
        masks = nn.glu(values).astype(jnp.float32)
        shape = (config.stems, 2, config.channels, config.band_bins)
        masks = jnp.moveaxis(masks.reshape(*x.shape[:3], *shape), 3, 1)
        return jax.lax.complex(masks[..., 0, :, :], masks[..., 1, :, :])


def check_shape(config: SeparatorConfig, mix: Array) -> None:
    _, length, channels = mix.shape
    if channels != config.channels:
        raise UserError(f"mix of {channels} channels, expected {config.channels}")
    if length % config.hop or length <= config.n_fft // 2:
        raise UserError(
            f"mix of {length} samples, expected a multiple of {config.hop} (the hop) of more than "
            f"{config.n_fft // 2}"
        )


def split_bands(config: SeparatorConfig, mix: Float[Array, "B T C"]) -> Complex[Array, "B F K C W"]:
    """Spectrum of a mix, W bins in each of K bands."""
    spectrum = stft.stft(jnp.moveaxis(mix, -1, 1), n_fft=config.n_fft, hop=config.hop)
    bins = spectrum[..., :-1]
    return bins.reshape(*bins.shape[:-1], config.bands, -1).transpose(0, 2, 3, 1, 4)


def join_bands(
    config: SeparatorConfig, bands: Complex[Array, "B S F K C W"], samples: int
) -> Float[Array, "B S T C"]:
    """The inverse of `split_bands`, for each of the stems."""
    bins = bands.transpose(0, 1, 4, 2, 3, 5)
    bins = bins.reshape(*bins.shape[:4], config.n_fft // 2)
    spectrum = jnp.pad(bins, ((0, 0),) * 4 + ((0, 1),))
    audio = stft.istft(spectrum, n_fft=config.n_fft, hop=config.hop, length=samples)
    return jnp.moveaxis(audio, 2, -1)


def features(bands: Complex[Array, "B F K C W"]) -> Float[Array, "B F K I"]:
    """What the network sees of the bands: real and imaginary parts, of mean square 1 over the
    frames of each band."""
    parts = jnp.concatenate([bands.real, bands.imag], axis=-1)
    parts = parts.reshape(*parts.shape[:3], -1)
    level = jnp.mean(jnp.square(parts), axis=(1, 3), keepdims=True)
    return parts / jnp.sqrt(level + LEVEL_FLOOR)
