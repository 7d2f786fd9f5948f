"""Encoder and decoder of the SEANet family as flat lists of named layers.

encoder: conv_in, per stage (residual units, activation, strided conv), [lstm], act_out, conv_out
decoder: conv_in, [lstm], per stage (activation, transposed conv, residual units), act_out,
conv_out, [act_final]

Stages are numbered from the audio end in the encoder and from the latent end in the decoder, in the
order they are applied. The lists are also what computes receptive fields (`receptive.py`) and what
released weights are mapped onto.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mgen.codec.config import CodecConfig
from mgen.kernels.residual_unit import ACTIVATIONS, Weights, residual_unit
from mgen.nn.activations import Activation
from mgen.nn.conv import Conv1d, ConvTranspose1d
from mgen.nn.recurrent import ResidualLSTM
from mgen.nn.streaming import State
from mgen.typing import Array, Float

NamedLayers = list[tuple[str, Any]]


def run_layers(layers: list[Any], x: Array) -> Array:
    for layer in layers:
        x = layer(x)
    return x


def step_layers(layers: list[Any], state: State, block: Array) -> tuple[State, Array]:
    states = []
    for layer, layer_state in zip(layers, state):
        layer_state, block = layer.step(layer_state, block)
        states.append(layer_state)
    return tuple(states), block


# RMS of audio at which `init="level"` brings the stack to 1: -14 dB.
AUDIO_LEVEL = 0.2


def init_gain(config: CodecConfig, upsampling: int = 1) -> float:
    """Factor on the released initial kernels, with which a layer keeps the level of its input."""
    return (3 * upsampling) ** 0.5 if config.init == "level" else 1.0


def conv_layer(
    config: CodecConfig,
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    level: float = 1.0,
    **kwargs: Any,
) -> Conv1d:
    """A convolution that `init="level"` starts with changing the level by the factor `level`."""
    return Conv1d(
        inputs,
        outputs,
        kernel,
        causal=config.causal,
        pad_mode=config.pad_mode,
        norm=config.norm,
        gain=init_gain(config) * (level if config.init == "level" else 1.0),
        dtype=jnp.dtype(config.dtype),
        **kwargs,
    )


class ResidualUnit(nn.Module):
    """shortcut(x) + conv1x1(act(conv_dilated(act(x)))), [B, T, features] to the same."""

    config: CodecConfig
    features: int
    dilation: int

    @staticmethod
    def branch(config: CodecConfig, features: int, dilation: int) -> NamedLayers:
        hidden = features // config.compress
        dilated = conv_layer(config, features, hidden, config.residual_kernel, dilation=dilation)
        return [
            ("act_0", Activation(config.activation, features)),
            ("conv_0", dilated),
            ("act_1", Activation(config.activation, hidden)),
            ("conv_1", conv_layer(config, hidden, features, 1)),
        ]

    @staticmethod
    def skip(config: CodecConfig, features: int) -> Conv1d:
        return conv_layer(config, features, features, 1)

    def setup(self) -> None:
        self.layers = _attach(self, self.branch(self.config, self.features, self.dilation))
        if self.config.conv_shortcut:
            self.shortcut = self.skip(self.config, self.features)

    def _skip(self, x: Array) -> Array:
        return self.shortcut(x) if self.config.conv_shortcut else x

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        config = self.config
        plain = config.norm in ("none", "weight") and config.pad_mode == "constant"
        if plain and config.activation in ACTIVATIONS and not config.conv_shortcut:
            return self._fused(x.astype(config.dtype))
        return self._skip(x) + run_layers(self.layers, x)

    def _fused(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The same as one operation, which has a kernel."""
        act_0, conv_0, act_1, conv_1 = self.layers
        snake = self.config.activation == "snake"
        weights = Weights(
            conv_0.weight(),
            conv_0.bias,
            conv_1.weight()[0],
            conv_1.bias,
            *((act_0.alpha, act_1.alpha) if snake else ()),
        )
        return residual_unit(
            x,
            weights,
            activation=self.config.activation,
            dilation=self.dilation,
            padding=conv_0.padding,
        )

    def init_state(self, batch: int) -> State:
        return tuple(layer.init_state(batch) for layer in self.layers)

    def step(self, state: State, block: Array) -> tuple[State, Array]:
        state, y = step_layers(self.layers, state, block)
        return state, self._skip(block) + y


def encoder_layers(config: CodecConfig) -> NamedLayers:
    """[B, T, channels] -> [B, F, latent_dim], twice as wide for a VAE (mean and scale)."""
    widths = [config.filters * m for m in config.stage_multipliers]
    outputs = config.latent_dim * (2 if config.bottleneck == "vae" else 1)
    layers: NamedLayers = [
        (
            "conv_in",
            conv_layer(config, config.channels, widths[0], config.kernel_in, level=1 / AUDIO_LEVEL),
        )
    ]
    for i, stride in enumerate(config.strides):
        layers += _residual_units(config, f"stage_{i}", widths[i])
        layers += [
            (f"stage_{i}_act", Activation(config.activation, widths[i])),
            (
                f"stage_{i}_down",
                conv_layer(config, widths[i], widths[i + 1], 2 * stride, stride=stride),
            ),
        ]
    if config.lstm_layers:
        layers.append(("lstm", _lstm(config, widths[-1])))
    layers += [
        ("act_out", Activation(config.activation, widths[-1])),
        ("conv_out", conv_layer(config, widths[-1], outputs, config.encoder_kernel_out)),
    ]
    return layers


def decoder_layers(config: CodecConfig) -> NamedLayers:
    """[B, F, latent_dim] -> [B, F hop, channels]."""
    base = config.decoder_filters or config.filters
    widths = [base * m for m in reversed(config.stage_multipliers)]
    layers: NamedLayers = [
        ("conv_in", conv_layer(config, config.latent_dim, widths[0], config.kernel_in))
    ]
    if config.lstm_layers:
        layers.append(("lstm", _lstm(config, widths[0])))
    for i, stride in enumerate(reversed(config.strides)):
        upsample = ConvTranspose1d(
            widths[i],
            widths[i + 1],
            2 * stride,
            stride,
            causal=config.causal,
            norm=config.norm,
            output_padding=config.output_padding,
            gain=init_gain(config, stride),
            dtype=jnp.dtype(config.dtype),
        )
        layers += [
            (f"stage_{i}_act", Activation(config.activation, widths[i])),
            (f"stage_{i}_up", upsample),
        ]
        layers += _residual_units(config, f"stage_{i}", widths[i + 1])
    conv_out = conv_layer(
        config,
        widths[-1],
        config.channels,
        config.decoder_kernel_out,
        level=AUDIO_LEVEL,
        use_bias=config.decoder_out_bias,
    )
    layers += [("act_out", Activation(config.activation, widths[-1])), ("conv_out", conv_out)]
    if config.final_activation != "none":
        layers.append(("act_final", Activation(config.final_activation, config.channels)))
    return layers


class LayerStack(nn.Module):
    """The layers of `build(config)` one after another, and any run of them by name (`start`,
    `stop`).
    """

    config: CodecConfig
    build: Callable[[CodecConfig], NamedLayers]

    def setup(self) -> None:
        named = self.build(self.config)
        self.names = [name for name, _ in named]
        self.layers = _attach(self, named)

    def _between(self, start: str | None, stop: str | None) -> list[Any]:
        first = 0 if start is None else self.names.index(start)
        last = len(self.names) if stop is None else self.names.index(stop)
        return self.layers[first:last]

    def __call__(self, x: Array, start: str | None = None, stop: str | None = None) -> Array:
        """Applies the layers from `start` up to, without, `stop`; None for the ends."""
        return run_layers(self._between(start, stop), x)

    def init_state(self, batch: int) -> State:
        return tuple(layer.init_state(batch) for layer in self.layers)

    def step(self, state: State, block: Array) -> tuple[State, Array]:
        return step_layers(self.layers, state, block)


def _attach(module: nn.Module, named: NamedLayers) -> list[Any]:
    """Registers layers as submodules under their names (the names of the parameter tree)."""
    for name, layer in named:
        setattr(module, name, layer)
    return [getattr(module, name) for name, _ in named]


def _residual_units(config: CodecConfig, stage: str, features: int) -> NamedLayers:
    return [
        (f"{stage}_res_{j}", ResidualUnit(config, features, dilation))
        for j, dilation in enumerate(config.dilations)
    ]


def _lstm(config: CodecConfig, features: int) -> ResidualLSTM:
    return ResidualLSTM(features, config.lstm_layers, dtype=jnp.dtype(config.dtype))
