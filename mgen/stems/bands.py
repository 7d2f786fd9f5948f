"""Spectra of tracks in frequency bands, and Transformers along time and along the bands (BSRNN, Luo
and Yu 2023, with the Transformers of BS-RoFormer, Lu et al. 2024).

Other than there, the bands are equally wide, so that all are one array, and each is brought to the
level 1 over an example.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.audio import stft
from mgen.errors import UserError
from mgen.nn.transformer import Block, make_norm
from mgen.stems.config import BandConfig
from mgen.typing import Array, Complex, Float

# Added to the mean square of a band, or silence would become noise: -100 dB of a full-scale tone in
# a window of 2048 samples.
LEVEL_FLOOR = 1e-5
# Squared magnitude, of a mean of 1, above which the network sees its logarithm.
COMPRESSED = 1e-2


class BandDense(nn.Module):
    """A linear layer for each band, [B, F, K, I] -> [B, F, K, features]; `zero` at first."""

    features: int
    dtype: str
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B F K I"]) -> Float[Array, "B F K O"]:
        bands, inputs = x.shape[2:]
        init = nn.initializers.lecun_normal(batch_axis=(0,))
        init = nn.initializers.zeros if self.zero else init
        kernel = self.param("kernel", init, (bands, inputs, self.features))
        bias = self.param("bias", nn.initializers.zeros, (bands, self.features))
        x = jnp.einsum("bfki,kio->bfko", x.astype(self.dtype), kernel.astype(self.dtype))
        return x + bias.astype(self.dtype)[None, None]


class BandStack(nn.Module):
    """Features of bands to masks of `outputs` spectra.

    Masks are linear with a gate, behind a hidden layer (BSRNN). A condition is added before each
    pair of blocks.

    Attributes:
      zero: whether all masks are 0 at first.
    """

    config: BandConfig
    outputs: int
    zero: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F K I"], condition: Float[Array, "B D"] | None = None
    ) -> Complex[Array, "B O F K C W"]:
        config = self.config
        x = BandDense(config.width, config.dtype, name="embed")(x)
        for layer in range(config.layers):
            if condition is not None:
                change = nn.Dense(config.width, dtype=config.dtype, name=f"condition_{layer}")
                x = x + change(nn.silu(condition))[:, None, None]
            x = self._along_time(x, f"time_{layer}")
            x = self._along_bands(x, f"bands_{layer}")
        return self._masks(make_norm(config.block, "final_norm")(x))

    def _along_time(self, x: Float[Array, "B F K D"], name: str) -> Float[Array, "B F K D"]:
        batch, frames, bands, width = x.shape
        rows = x.swapaxes(1, 2).reshape(batch * bands, frames, width)
        return self._block(rows, name).reshape(batch, bands, frames, width).swapaxes(1, 2)

    def _along_bands(self, x: Float[Array, "B F K D"], name: str) -> Float[Array, "B F K D"]:
        return self._block(x.reshape(-1, *x.shape[2:]), name).reshape(x.shape)

    def _block(self, x: Float[Array, "N L D"], name: str) -> Float[Array, "N L D"]:
        block: Any = nn.remat(Block) if self.config.remat else Block
        return block(self.config.block, name=name)(x, None, None, None, None)[0]

    def _masks(self, x: Float[Array, "B F K D"]) -> Complex[Array, "B O F K C W"]:
        config, dtype = self.config, self.config.dtype
        shape = (self.outputs, 2, config.channels, config.band_bins)
        hidden = BandDense(config.ff_multiplier * config.width, dtype, name="mask_in")(x)
        size = 2 * shape[0] * shape[1] * shape[2] * shape[3]
        values = BandDense(size, dtype, self.zero, name="mask_out")(jnp.tanh(hidden))
        masks = nn.glu(values).astype(jnp.float32)
        masks = jnp.moveaxis(masks.reshape(*x.shape[:3], *shape), 3, 1)
        return jax.lax.complex(masks[..., 0, :, :], masks[..., 1, :, :])


def check_shape(config: BandConfig, what: str, length: int, channels: int) -> None:
    """`UserError` for audio that has no such bands."""
    if channels != config.channels:
        raise UserError(f"{what} of {channels} channels, expected {config.channels}")
    if length % config.hop or length <= config.n_fft // 2:
        raise UserError(
            f"{what} of {length} samples, expected a multiple of {config.hop} (the hop) of more "
            f"than {config.n_fft // 2}"
        )


def split_bands(config: BandConfig, audio: Float[Array, "B T C"]) -> Complex[Array, "B F K C W"]:
    """Spectrum of audio, W bins in each of K bands."""
    spectrum = stft.stft(jnp.moveaxis(audio, -1, 1), n_fft=config.n_fft, hop=config.hop)
    bins = spectrum[..., :-1]
    return bins.reshape(*bins.shape[:-1], config.bands, -1).transpose(0, 2, 3, 1, 4)


def join_bands(
    config: BandConfig, bands: Complex[Array, "B S F K C W"], samples: int
) -> Float[Array, "B S T C"]:
    """The inverse of `split_bands`, for each of the stems."""
    bins = bands.transpose(0, 1, 4, 2, 3, 5)
    bins = bins.reshape(*bins.shape[:4], config.n_fft // 2)
    spectrum = jnp.pad(bins, ((0, 0),) * 4 + ((0, 1),))
    audio = stft.istft(spectrum, n_fft=config.n_fft, hop=config.hop, length=samples)
    return jnp.moveaxis(audio, 2, -1)


def levelled(
    bands: Complex[Array, "B F K C W"],
) -> tuple[Complex[Array, "B F K C W"], Float[Array, "B 1 K 1 1"]]:
    """Bands of mean square 1 over the frames of each example, and their levels before."""
    power = jnp.square(bands.real) + jnp.square(bands.imag)
    level = jnp.sqrt(jnp.mean(power, axis=(1, 3, 4), keepdims=True) + LEVEL_FLOOR)
    return bands / level, level


def features(bands: Complex[Array, "B F K C W"]) -> Float[Array, "B F K I"]:
    """What a network sees of levelled bands: real and imaginary parts, and magnitudes as the ear
    has them, by logarithm."""
    power = jnp.square(bands.real) + jnp.square(bands.imag)
    loudness = jnp.log1p(power / COMPRESSED) / jnp.log1p(1 / COMPRESSED)
    parts = jnp.concatenate([bands.real, bands.imag, loudness], axis=-1)
    return parts.reshape(*parts.shape[:3], -1)
