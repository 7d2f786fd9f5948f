"""From audio to frames at the trunk's rate.

A front end first turns audio into what masking noise replaces (`prepare`: the waveform, or the
normalised log-mel frames), then into features (`Front`).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.audio import mel
from mgen.nn.norm import GROUP_NORM_EPS
from mgen.nn.transformer import ACTIVATIONS
from mgen.semantic.config import ConvFrontConfig, MelConfig, MelFrontConfig, SemanticConfig
from mgen.typing import Array, Float

SILENCE = 1e-7  # added to the variance of a waveform (transformers' feature extractor)
gelu = ACTIVATIONS["gelu"]


def log_mel(
    config: MelConfig, sample_rate: int, audio: Float[Array, "B T"]
) -> Float[Array, "B F M"]:
    """The T // hop normalised log-mel frames of audio; frame f is centred on sample f hop."""
    power = mel.mel_spectrogram(
        audio,
        sample_rate=sample_rate,
        n_fft=config.n_fft,
        hop=config.hop,
        n_mels=config.n_mels,
        fmin=config.fmin,
        fmax=config.fmax,
        power=2.0,
        pad_mode="constant",
    )
    frames = audio.shape[-1] // config.hop
    return (jnp.log(jnp.maximum(power[:, :frames], config.floor)) - config.mean) / config.std


def prepare(config: SemanticConfig, audio: Float[Array, "B T C"]) -> Array:
    """The waveform [B, T, 1], or mel frames [B, F stack, M]."""
    mono, front = jnp.mean(audio, axis=-1), config.front
    if isinstance(front, MelFrontConfig):
        frames = config.frames(mono.shape[1]) * front.stack
        return log_mel(front.mel, config.sample_rate, mono)[:, :frames]
    if front.normalize:
        mean = jnp.mean(mono, axis=1, keepdims=True)
        variance = jnp.mean(jnp.square(mono - mean), axis=1, keepdims=True)
        mono = (mono - mean) * jax.lax.rsqrt(variance + SILENCE)
    return mono[..., None]


class Front(nn.Module):
    """What `prepare` gives [B, N, W] to features [B, F, E]."""

    config: SemanticConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B N W"]) -> Float[Array, "B F E"]:
        front, dtype = self.config.front, self.config.trunk.dtype
        if isinstance(front, ConvFrontConfig):
            return WaveConvs(front, dtype, name="convs")(x)
        if not front.channels:
            return x.reshape(x.shape[0], -1, front.stack * x.shape[2])
        return Subsampling(front, dtype, name="subsampling")(x)


class WaveConvs(nn.Module):
    """A stack of strided convolutions, each with an activation (Baevski et al. 2020, section 2)."""

    config: ConvFrontConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B F E"]:
        config = self.config
        layers = zip(config.dims, config.kernels, config.strides)
        for i, (dim, kernel, stride) in enumerate(layers):
            x = nn.Conv(
                dim,
                (kernel,),
                (stride,),
                padding="VALID",
                use_bias=config.bias,
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
                name=f"conv_{i}",
            )(x)
            if config.norm == "layer":
                x = nn.LayerNorm(
                    epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=f"norm_{i}"
                )(x)
            elif i == 0:
                x = ChannelNorm(name="norm_0")(x)
            x = gelu(x)
        return x


class ChannelNorm(nn.Module):
    """Normalises each channel of an example over time: a group norm with one channel a group."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(x32, axis=1, keepdims=True)
        variance = jnp.mean(jnp.square(x32 - mean), axis=1, keepdims=True)
        gain = scale[None, None] * jax.lax.rsqrt(variance + GROUP_NORM_EPS)
        return ((x32 - mean) * gain + bias[None, None]).astype(x.dtype)


class Subsampling(nn.Module):
    """3x3 convolutions with stride 2 over time and mel bins, then channels and bins side by side
    (Gulati et al. 2020, section 2; the residual form: Won et al. 2023, "MusicFM", and MuQ)."""

    config: MelFrontConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B N M"]) -> Float[Array, "B F E"]:
        config = self.config

        def conv(x: Array, stride: int, name: str) -> Array:
            return nn.Conv(config.channels, (3, 3), (stride, stride), dtype=self.dtype, name=name)(
                x
            )

        def norm(x: Array, name: str) -> Array:
            return nn.LayerNorm(dtype=self.dtype, use_fast_variance=False, name=name)(x)

        x = x[..., None]
        for i in range(round(math.log2(config.stack))):
            if not config.residual:
                x = jax.nn.relu(conv(x, 2, f"conv_{i}"))
                continue
            out = jax.nn.relu(norm(conv(x, 2, f"conv_{i}"), f"norm_{i}"))
            out = norm(conv(out, 1, f"conv_{i}_second"), f"norm_{i}_second")
            x = jax.nn.relu(out + norm(conv(x, 2, f"conv_{i}_skip"), f"norm_{i}_skip"))
        return x.reshape(*x.shape[:2], -1)
