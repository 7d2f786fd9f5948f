"""Discriminators of neural codecs: which are used, and how large, is a config.

- multi-scale complex STFT (EnCodec, arXiv:2210.13438, section 3.4 and figure 2; filters and windows
  as released)
- multi-period waveform (HiFi-GAN, arXiv:2010.05646, section 2.3, with DAC's widths,
  arXiv:2306.06546, section 3.5)
- multi-band multi-resolution complex STFT (DAC, section 3.5)
- multi-scale waveform (MelGAN, arXiv:1910.06711, section 2.3; SoundStream, arXiv:2107.03312,
  section III-D)

Each sub-discriminator maps audio [B, T, C] to logits at some resolution and to the feature maps
behind them. Stereo enters as input channels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from mgen.audio import stft
from mgen.nn.conv import KERNEL_INIT
from mgen.nn.norm import weight_norm
from mgen.typing import Array, Float

DAC_BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Which sub-discriminators there are; empty tuples and 0 leave a kind out.

    Attributes:
      stft_windows: samples, one EnCodec STFT discriminator each (hop a quarter of the window).
      stft_filters: their channels.
      stft_slope: their leaky ReLU's slope (0.2 in EnCodec's release, 0.3 in MusicGen's).
      periods: samples, one multi-period discriminator each.
      period_filters: channels of a multi-period discriminator's layers; all but the last stride by
        3.
      band_windows: samples, one multi-band STFT discriminator each.
      band_filters: their channels.
      bands: edges of the bands as fractions of the STFT bins.
      wave_scales: number of waveform discriminators, at rates 1, 1/2, 1/4, ...
      wave_filters: channels of their first layer, times 4 with each stride of 4.
      wave_max_filters: the most channels they reach.
      normalize: remove the mean and scale the peak to 0.8 before all of them (DAC).
      dtype: of the computation; parameters and logits are float32.
    """

    stft_windows: tuple[int, ...] = ()
    stft_filters: int = 32
    stft_slope: float = 0.2
    periods: tuple[int, ...] = ()
    period_filters: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    band_windows: tuple[int, ...] = ()
    band_filters: int = 32
    bands: tuple[tuple[float, float], ...] = DAC_BANDS
    wave_scales: int = 0
    wave_filters: int = 16
    wave_max_filters: int = 1024
    normalize: bool = False
    dtype: str = "float32"

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "DiscriminatorConfig":
        """Reads the fields of `config` that are named here (a training config holds others beside
        them).
        """
        names = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in config.items() if name in names}
        values["bands"] = tuple(tuple(band) for band in values.get("bands", DAC_BANDS))
        for name in ("stft_windows", "periods", "period_filters", "band_windows"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)

    @property
    def count(self) -> int:
        """Number of sub-discriminators."""
        return (
            len(self.stft_windows) + len(self.periods) + len(self.band_windows) + self.wave_scales
        )


def default_config(**overrides: Any) -> ml_collections.ConfigDict:
    """`DiscriminatorConfig` plus when it trains: from step `start`, on every `update_every`-th
    step. No discriminator as it is.
    """
    fields = dataclasses.asdict(DiscriminatorConfig())
    config = ml_collections.ConfigDict({**fields, "start": 0, "update_every": 1})
    config.update(overrides)
    return config


def recipe(name: str) -> ml_collections.ConfigDict:
    """The discriminators of a published codec: soundstream, encodec, encodec_32khz, dac,
    oobleck.
    """
    windows = (2048, 1024, 512, 256, 128)
    recipes: dict[str, dict[str, Any]] = {
        "soundstream": dict(wave_scales=3, stft_windows=(1024,)),
        "encodec": dict(stft_windows=windows),
        "encodec_32khz": dict(stft_windows=windows, stft_slope=0.3),
        "dac": dict(periods=(2, 3, 5, 7, 11), band_windows=(2048, 1024, 512), normalize=True),
        "oobleck": dict(stft_windows=windows, stft_filters=64),
    }
    if name not in recipes:
        raise ValueError(f"discriminator recipe {name!r}, expected one of {sorted(recipes)}")
    return default_config(**recipes[name])


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one sub-discriminator says: logits [B, ...] (high is real) and the feature maps of its
    layers.
    """

    logits: Array
    features: tuple[Array, ...]


jax.tree_util.register_dataclass(Verdict, ["logits", "features"], [])


class Conv(nn.Module):
    """N-dimensional convolution over [B, ..., C] with weight normalisation (arXiv:1602.07868) per
    output channel.
    """

    features: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int = 1
    weight_norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rank = len(self.kernel)
        strides, dilation = self.strides or (1,) * rank, self.dilation or (1,) * rank
        shape = (*self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", KERNEL_INIT, shape)
        if self.weight_norm:
            axes = tuple(range(rank + 1))
            scale = self.param("scale", lambda _: jnp.sqrt(jnp.sum(kernel**2, axis=axes)))
            kernel = weight_norm(kernel, scale, axes)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        spatial = "HWD"[:rank]
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=strides,
            padding=[((k - 1) * d // 2,) * 2 for k, d in zip(self.kernel, dilation)],
            rhs_dilation=dilation,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=self.groups,
        )
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


def fold_periods(audio: Float[Array, "B T C"], period: int) -> Float[Array, "B R P C"]:
    """Rows of `period` samples; the tail is reflected to fill the last row, by a whole row where it
    is full already (HiFi-GAN).
    """
    batch, length, channels = audio.shape
    padded = jnp.pad(audio, ((0, 0), (0, period - length % period), (0, 0)), mode="reflect")
    return padded.reshape(batch, -1, period, channels)


def band_edges(window: int, bands: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """First (inclusive) and last (exclusive) STFT bin of each band; bins are truncated as in DAC's
    release.
    """
    bins = window // 2 + 1
    return [(int(low * bins), int(high * bins)) for low, high in bands]


def spectrogram_planes(
    audio: Float[Array, "B T C"], window: int, matched: bool
) -> Float[Array, "B F M 2C"]:
    """Real then imaginary parts as channels, hop window/4.

    `matched` pads by reflection so that there are ceil(T / hop) frames (DAC); otherwise only full
    frames are taken, scaled by the window's L2 norm (EnCodec).
    """
    hop = window // 4
    channels_first = jnp.moveaxis(audio, -1, 1)
    if matched:
        before = (window - hop) // 2
        after = before + -audio.shape[1] % hop
        padding = ((0, 0), (0, 0), (before, after))
        channels_first = jnp.pad(channels_first, padding, mode="reflect")
    spectrum = stft.stft(
        channels_first, n_fft=window, hop=hop, center=False, normalized=not matched
    )
    planes = jnp.concatenate([spectrum.real, spectrum.imag], axis=1)
    return jnp.moveaxis(planes, 1, -1)


class STFTDiscriminator(nn.Module):
    """One scale of EnCodec's: 3x9 convolutions over frames and bins, strided by 2 in frequency,
    dilated 1, 2, 4 in time.
    """

    window: int
    filters: int
    slope: float
    dtype: Any

    @nn.compact
    def __call__(self, audio: Float[Array, "B T C"]) -> Verdict:
        x = spectrogram_planes(audio, self.window, matched=False)
        # The release leaves its first layer without weight normalisation.
        layers = [Conv(self.filters, (3, 9), weight_norm=False, dtype=self.dtype)]
        layers += [
            Conv(self.filters, (3, 9), (1, 2), (dilation, 1), dtype=self.dtype)
            for dilation in (1, 2, 4)
        ]
        layers += [Conv(self.filters, (3, 3), dtype=self.dtype)]
        features = []
        for layer in layers:
            x = nn.leaky_relu(layer(x), self.slope)
            features.append(x)
        logits = Conv(1, (3, 3), dtype=self.dtype)(x)
        return Verdict(logits, tuple(features))


class PeriodDiscriminator(nn.Module):
    """One period of HiFi-GAN's: 5x1 convolutions along every `period`-th sample."""

    period: int
    filters: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, audio: Float[Array, "B T C"]) -> Verdict:
        x = fold_periods(audio, self.period)
        features = []
        for index, filters in enumerate(self.filters):
            stride = 3 if index < len(self.filters) - 1 else 1
            x = nn.leaky_relu(Conv(filters, (5, 1), (stride, 1), dtype=self.dtype)(x), 0.1)
            features.append(x)
        logits = Conv(1, (3, 1), dtype=self.dtype)(x)
        return Verdict(logits, tuple(features))


class BandDiscriminator(nn.Module):
    """One resolution of DAC's: a stack of 3x9 convolutions a band, their outputs joined along
    frequency.
    """

    window: int
    filters: int
    bands: tuple[tuple[float, float], ...]
    dtype: Any

    @nn.compact
    def __call__(self, audio: Float[Array, "B T C"]) -> Verdict:
        planes = spectrogram_planes(audio, self.window, matched=True)
        features, outputs = [], []
        for low, high in band_edges(self.window, self.bands):
            x = planes[:, :, low:high]
            for kernel, stride in (((3, 9), 1), *(((3, 9), 2),) * 3, ((3, 3), 1)):
                layer = Conv(self.filters, kernel, (1, stride), dtype=self.dtype)
                x = nn.leaky_relu(layer(x), 0.1)
                features.append(x)
            outputs.append(x)
        logits = Conv(1, (3, 3), dtype=self.dtype)(jnp.concatenate(outputs, axis=2))
        return Verdict(logits, tuple(features))


class WaveDiscriminator(nn.Module):
    """One scale of MelGAN's: four grouped convolutions of stride 4 and kernel 41, four channels a
    group.
    """

    filters: int
    max_filters: int
    dtype: Any

    @nn.compact
    def __call__(self, audio: Float[Array, "B T C"]) -> Verdict:
        layers = [Conv(self.filters, (15,), dtype=self.dtype)]
        filters = self.filters
        for _ in range(4):
            groups, filters = max(filters // 4, 1), min(4 * filters, self.max_filters)
            layers.append(Conv(filters, (41,), (4,), groups=groups, dtype=self.dtype))
        layers.append(Conv(filters, (5,), dtype=self.dtype))
        x, features = audio, []
        for layer in layers:
            x = nn.leaky_relu(layer(x), 0.2)
            features.append(x)
        return Verdict(Conv(1, (3,), dtype=self.dtype)(x), tuple(features))


def halve_rate(audio: Float[Array, "B T C"]) -> Float[Array, "B T/2 C"]:
    """Average over 4 samples with stride 2, as MelGAN lowers the rate; the padding at the ends is
    left out of the mean.
    """
    return nn.avg_pool(audio, (4,), (2,), padding=((1, 1),), count_include_pad=False)


class Discriminator(nn.Module):
    """All sub-discriminators of a config, in the order STFT, period, band, wave."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, audio: Float[Array, "B T C"]) -> list[Verdict]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        if config.normalize:
            audio = audio - jnp.mean(audio, axis=1, keepdims=True)
            audio = 0.8 * audio / (jnp.max(jnp.abs(audio), axis=1, keepdims=True) + 1e-9)
        verdicts = [
            STFTDiscriminator(window, config.stft_filters, config.stft_slope, dtype)(audio)
            for window in config.stft_windows
        ]
        verdicts += [
            PeriodDiscriminator(period, config.period_filters, dtype)(audio)
            for period in config.periods
        ]
        verdicts += [
            BandDiscriminator(window, config.band_filters, config.bands, dtype)(audio)
            for window in config.band_windows
        ]
        for scale in range(config.wave_scales):
            audio = halve_rate(audio) if scale else audio
            verdicts.append(
                WaveDiscriminator(config.wave_filters, config.wave_max_filters, dtype)(audio)
            )
        return jax.tree.map(lambda x: x.astype(jnp.float32), verdicts)
